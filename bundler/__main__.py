"""Start-up for ``python -m bundler``, the console script and the single-file build."""
