"""The paper's claims at a size that runs: `python -m benchmarks.paper_claims`."""
