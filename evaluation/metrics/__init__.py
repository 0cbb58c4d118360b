"""The metrics, from features to numbers."""
