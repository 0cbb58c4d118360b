"""Checkpoints to resume from and snapshots to use."""
