"""The whole project in a few minutes on a CPU: `make demo`."""
