"""The pictures of README and gallery, drawn from trained models: `python -m demo.pictures [NAME ...]`."""
