"""Sampling speed at the published sizes: `python -m measure_throughput f=32 d=4 c=16384 model=huge batch_size=100`."""
