"""Weights of a file into a module that a config has built, where the two may not fit."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from runtime.errors import UserError

SHOWN = 4


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Loads every tensor of a state dict.

    Raises:
        UserError: in one line, the first names that are missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in wanted]
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            problems.append(f"{name} is {list(tensors[name].shape)}, the config wants {list(tensor.shape)}")
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(f"{source} does not fit the config: {'; '.join(problems[:SHOWN])}{more}")
    module.load_state_dict(dict(tensors))
