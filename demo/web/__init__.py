"""The web demo: two trained models in a browser on this machine, `make web`."""
