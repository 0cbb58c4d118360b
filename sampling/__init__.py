"""From two trained models to images: conditions, draws, rejection, files."""

from sampling.conditions import CaptionConditions, ClassConditions, Conditions
from sampling.rejection import RejectionPlan, RejectionSampler
from sampling.sampler import Sampler, SamplingSettings
from sampling.trained_models import config_beside, find_latest_snapshot, load_models, resolve_checkpoint

__all__ = [
    "CaptionConditions",
    "ClassConditions",
    "Conditions",
    "RejectionPlan",
    "RejectionSampler",
    "Sampler",
    "SamplingSettings",
    "config_beside",
    "find_latest_snapshot",
    "load_models",
    "resolve_checkpoint",
]
