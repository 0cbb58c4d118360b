"""Training of both stages: the loop decides when, the stages decide what."""
