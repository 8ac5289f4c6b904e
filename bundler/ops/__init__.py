"""One module per verb: plain arguments and collaborators in, a report out; no printing."""
