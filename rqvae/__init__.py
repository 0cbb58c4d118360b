"""Stage 1: images <-> stacks of discrete codes."""

from rqstack import __version__ as __version__
from rqvae.config import RQVAEConfig
from rqvae.model import RQVAE, RQVAEOutput, load_rqvae

__all__ = ["RQVAE", "RQVAEConfig", "RQVAEOutput", "load_rqvae"]
