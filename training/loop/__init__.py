"""The training loop and what watches over it: when things happen."""
