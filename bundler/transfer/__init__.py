"""The copy itself: plans (pure), and what executes them."""
