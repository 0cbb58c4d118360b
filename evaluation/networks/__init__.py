"""Feature networks, by name, and their weight files."""
