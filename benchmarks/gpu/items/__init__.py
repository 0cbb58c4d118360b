"""The items of the acceptance on a GPU, in the order of `benchmarks.gpu.plan`, and what they share."""
