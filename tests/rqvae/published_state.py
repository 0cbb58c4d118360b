"""A stage-1 model's tensors as the published code writes them."""

from __future__ import annotations

from torch import Tensor

from rqstack.published_layout import published_from_ours
from rqvae import RQVAE


def published_state(model: RQVAE) -> dict[str, Tensor]:
    return published_from_ours(model.state_dict(), model._sections())
