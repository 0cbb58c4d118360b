"""The losses of stage 1: reconstruction, LPIPS, and the patch discriminator with its adversarial terms."""

from .adversarial import AdversarialSchedule, adaptive_weight
from .config import DiscriminatorConfig, GANConfig, GANLossConfig
from .discriminator import PatchDiscriminator
from .perceptual import PerceptualLoss
from .reconstruction import reconstruction_loss

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
