"""Weights of a file into a module that a config has built, where the two may not fit."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from rqstack.strict_loading import check_fit
from runtime.errors import UserError


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Loads every tensor of a state dict.

    Raises:
        UserError: in one line, the first names that are missing, unexpected or of another shape.
    """
    try:
        check_fit(module.state_dict(), tensors, source)
    except ValueError as error:
        raise UserError(str(error)) from None
    module.load_state_dict(dict(tensors))
