"""From two trained models to images: conditions, draws, rejection, files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sampling.conditions import CaptionConditions, ClassConditions, Conditions
    from sampling.rejection import RejectionPlan, RejectionSampler
    from sampling.sampler import Sampler, SamplingSettings
    from sampling.trained_models import config_beside, load_models, resolve_checkpoint
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "sampling.conditions": ("CaptionConditions", "ClassConditions", "Conditions"),
            "sampling.rejection": ("RejectionPlan", "RejectionSampler"),
            "sampling.sampler": ("Sampler", "SamplingSettings"),
            "sampling.trained_models": ("config_beside", "load_models", "resolve_checkpoint"),
        },
    )

__all__ = [
    "CaptionConditions",
    "ClassConditions",
    "Conditions",
    "RejectionPlan",
    "RejectionSampler",
    "Sampler",
    "SamplingSettings",
    "config_beside",
    "load_models",
    "resolve_checkpoint",
]
