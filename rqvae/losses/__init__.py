"""The losses of stage 1: reconstruction, LPIPS, and the patch discriminator with its adversarial terms."""

from rqvae.losses.adversarial import AdversarialSchedule, adaptive_weight
from rqvae.losses.config import DiscriminatorConfig, GANConfig, GANLossConfig
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.losses.image_terms import IMAGE_TERMS, build_image_terms
from rqvae.losses.perceptual import PerceptualLoss
from rqvae.losses.reconstruction import reconstruction_loss

__all__ = [
    "AdversarialSchedule",
    "DiscriminatorConfig",
    "GANConfig",
    "GANLossConfig",
    "IMAGE_TERMS",
    "PatchDiscriminator",
    "PerceptualLoss",
    "adaptive_weight",
    "build_image_terms",
    "reconstruction_loss",
]
