"""Codebooks: how their entries are kept, learned, started and restarted."""
