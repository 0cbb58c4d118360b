"""The page on one or more runs: `python -m training.report RUN [RUN ...]`."""
