"""Codes that a caller rules out, step by step: grammars, identifiers that exist, parts of a codebook.

Legend: B batch, N codes drawn so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.arguments import shown
from rqtransformer.decoding.logits import guide

# Codes (B, N) so far, position by position and in each of them depth by depth -> which may come next: (V,) or (B, V).
Allowed = Callable[[Tensor], Tensor]


def check_allowed(allowed: object) -> Allowed | None:
    """The hook as it is. Raises ValueError for what cannot be called."""
    if allowed is None or callable(allowed):
        return allowed
    raise ValueError(f"allowed={shown(allowed)} must be a function: codes so far (B, N) -> mask (V,) or (B, V)")


class CodeFilter:
    """Applies the hook to the logits of one walk, and remembers samples for which it left nothing.

    Args:
        allowed: the hook.
        batch_size: B.
        device: of the walk.
    """

    def __init__(self, allowed: Allowed, batch_size: int, device: torch.device):
        self._allowed = allowed
        self._stuck_B = torch.full((batch_size,), -1, device=device)

    @classmethod
    def of(cls, allowed: Allowed | None, batch_size: int, device: torch.device) -> CodeFilter | None:
        """One for a hook; None without."""
        return None if allowed is None else cls(allowed, batch_size, device)

    def __call__(
        self,
        logits_BV: Tensor,
        scale: Tensor | None,
        codes_BN: Tensor,
        vocab_size: int,
        given_B: Tensor | None = None,
    ) -> Tensor:
        """The logits to draw from, -inf where the hook says no.

        Args:
            logits_BV: of the next code; with guidance (2B, V), those with the condition first.
            scale: of the guidance, which is applied here; None without.
            codes_BN: what the hook is shown.
            vocab_size: codes of this depth; further logits have none.
            given_B: samples whose next code is given; nothing is drawn for these, whatever the hook says.

        Raises:
            ValueError: for a hook that does not answer with a mask of the vocabulary.
        """
        mask = self._allowed(codes_BN)
        shapes = (vocab_size,), (len(codes_BN), vocab_size)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) not in shapes:
            given = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else shown(mask)
            raise ValueError(f"allowed() must give a bool tensor of shape {shapes[0]} or {shapes[1]}, not {given}")
        mask_BV = mask.to(logits_BV.device).expand(shapes[1])
        stuck_B = ~mask_BV.any(dim=1)
        if given_B is not None:
            stuck_B &= ~given_B
        self._stuck_B = self._stuck_B.where((self._stuck_B >= 0) | ~stuck_B, codes_BN.shape[1])
        if scale is not None:
            conditional_BV, unconditional_BV = logits_BV.float().chunk(2)
            logits_BV = guide(conditional_BV, unconditional_BV, scale)
        ruled_out_BV = F.pad(~mask_BV, (0, logits_BV.shape[1] - vocab_size), value=True)
        return logits_BV.masked_fill(ruled_out_BV, float("-inf"))

    def check(self) -> None:
        """Looks, once, whether there always was a code to draw; waits for the device.

        Raises:
            ValueError: naming the first code of a sample that had no choice.
        """
        stuck = self._stuck_B.tolist()
        failed = [(step, row) for row, step in enumerate(stuck) if step >= 0]
        if failed:
            step, row = min(failed)
            raise ValueError(
                f"allowed() left no code for {len(failed)} of {len(stuck)} samples, "
                f"first for code {step} (counted from 0) of sample {row}"
            )
