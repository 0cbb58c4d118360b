"""References: what a score compares with, on disk and in the cache."""
