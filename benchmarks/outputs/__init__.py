"""How benchmarks keep what they measured: a JSON line, a section of a document."""
