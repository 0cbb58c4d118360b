"""Finding the quantization layers of a model, and turning them off for a while."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.compat.vqtorch.nn.vq_base import VQBaseLayer


def is_vq(module: nn.Module) -> bool:
    """Whether a module is a quantization layer."""
    return isinstance(module, VQBaseLayer)


@checks_arguments
def get_vq_layers(model: nn.Module) -> list[VQBaseLayer]:
    """All quantization layers in a model."""
    return [module for module in model.modules() if isinstance(module, VQBaseLayer)]


@checks_arguments
def is_vqn(model: nn.Module) -> bool:
    """Whether a model has a quantization layer."""
    return bool(get_vq_layers(model))


@checks_arguments
class no_vq:
    """From the call to the end of the `with` block the quantization layers of the models do not quantize."""

    def __init__(self, modules: nn.Module | Sequence[nn.Module]):
        models = [modules] if isinstance(modules, nn.Module) else list(modules)
        self.before = {layer: layer.enabled for model in models for layer in get_vq_layers(model)}
        for layer in self.before:
            layer.enabled = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        for layer, enabled in self.before.items():
            layer.enabled = enabled
