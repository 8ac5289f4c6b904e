"""Where images are written down: each source yields references with the reason why they are wanted."""
