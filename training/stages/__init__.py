"""The two stages: what one optimizer step is."""
