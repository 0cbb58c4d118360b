"""The losses of stage 1: reconstruction, LPIPS, and the patch discriminator with its adversarial terms."""

from rqvae.losses.adversarial import AdversarialSchedule, adaptive_weight
from rqvae.losses.config import DiscriminatorConfig, GANConfig, GANLossConfig
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.losses.perceptual import PerceptualLoss
from rqvae.losses.reconstruction import reconstruction_loss

__all__ = [
    "AdversarialSchedule",
    "DiscriminatorConfig",
    "GANConfig",
    "GANLossConfig",
    "PatchDiscriminator",
    "PerceptualLoss",
    "adaptive_weight",
    "reconstruction_loss",
]
