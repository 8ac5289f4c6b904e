"""One module per command: options, collaborators, rendering, exit code."""
