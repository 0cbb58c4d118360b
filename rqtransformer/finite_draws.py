"""Draws from a distribution that is none: logits that are not finite give no code, and whoever hands out codes says so.

A draw whose logits hold a NaN or +inf, or -inf alone, is `NOT_DRAWN` in the code map; what goes on in its place is
code 0. So nothing waits for the device until the codes are looked at.

Legend: B batch, D code depth; `...` any axes between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from rqstack.finite import is_finite, non_finite_names

NOT_DRAWN = -1


class NonFiniteError(ValueError):
    """A model or its input gives numbers that are not finite; nothing that was drawn is of use."""


@contextlib.contextmanager
def naming_weights(model: nn.Module) -> Iterator[None]:
    """A `NonFiniteError` of a part of the model names the weights, as the model calls them."""
    try:
        yield
    except NonFiniteError as error:
        names = non_finite_names([*model.named_parameters(), *model.named_buffers()])
        raise NonFiniteError(f"the model's weights are not finite: {names}" if names else str(error)) from None


def to_embed(code_B: Tensor) -> Tensor:
    """The codes that the model goes on with."""
    return code_B.clamp_min(0)


def check_drawn(codes: Tensor, model: nn.Module, tables: Iterable[tuple[str, Tensor]] = ()) -> Tensor:
    """Codes (B, ..., D) as they are, after a look that waits for the device.

    Args:
        codes: drawn by `model`.
        model: whose weights are looked through where a draw failed.
        tables: other numbers that it read, by name; looked at where a draw failed.

    Raises:
        NonFiniteError: for codes that are `NOT_DRAWN`; names the weights that are not finite, or says that they all
            are.
    """
    if codes.numel() and int(codes.amin()) <= NOT_DRAWN:
        failed = int((codes.flatten(1) <= NOT_DRAWN).any(dim=1).sum())
        names = non_finite_names([*model.named_parameters(), *model.named_buffers(), *tables])
        cause = f"not finite: {names}" if names else "all weights are finite, so products of them or cfg_scale overflow"
        raise NonFiniteError(f"the logits of {failed} of {len(codes)} samples are not finite; {cause}")
    return codes


def check_pixels(image_BCHW: Tensor, model: nn.Module) -> Tensor:
    """Images as they are, after a look that waits for the device.

    Raises:
        NonFiniteError: for pixels that are not finite; names the weights of `model`, which decoded them, that are not.
    """
    if not is_finite(image_BCHW):
        names = non_finite_names([*model.named_parameters(), *model.named_buffers()])
        cause = f"not finite in stage 1: {names}" if names else "all weights of stage 1 are finite"
        raise NonFiniteError(f"pixels of decoded images are not finite; {cause}")
    return image_BCHW
