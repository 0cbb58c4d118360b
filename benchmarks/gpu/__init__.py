"""The acceptance on a GPU: `python -m benchmarks.gpu [--minutes 8]`; see `docs/gpu.md`."""
