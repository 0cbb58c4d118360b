"""The ground that both models stand on: the quantizer library, checkpoints, noise by address. What is promised:

quantizers                    images aside: vectors into codes and back
snapshots, archive            writing a model as a folder; reading one, or a published file
published_layout, conversion  the names and shapes of published checkpoints, and the way there and back
hub                           `from_pretrained`, `save_pretrained` and `push_to_hub` of both models
strict_loading                whether tensors fit a module, and in what they do not
commands                      the console script `rqstack`, which nothing imports
printable                     text from elsewhere on its way to a terminal, a log or a page
counter_noise                 random numbers as a function of their address
"""

__version__ = "0.1.0"
"""Of the wheel, and so of all three packages; `pyproject.toml` reads it from here."""

__all__ = [
    "archive",
    "conversion",
    "counter_noise",
    "hub",
    "printable",
    "published_layout",
    "quantizers",
    "snapshots",
    "strict_loading",
]
