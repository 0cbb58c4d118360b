"""Whole experiments on real images, one command each: `python -m benchmarks.recipes NAME`."""
