"""Residual vector quantization under vqtorch's name.

Legend: N vectors, C features, G levels, E code-vector size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.compat.vqtorch.nn.vq import BookSearch, VectorQuant


@checks_arguments
class ResidualVectorQuant(VectorQuant):
    """`groups` levels, each on what the levels before it left over; from one codebook (share) or from
    `num_codes / groups` entries each.

    Results as of `VectorQuant` with z and z_q (..., 1, C), d and q (..., G), and `z_res` (..., G + 1, C): what every
    level saw, and what is left at the end.
    """

    splits_features = False

    def __init__(self, feature_size: int, num_codes: int, groups: int = 1, share: bool = True, **kwargs: Any):
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        super().__init__(feature_size, num_codes, groups=groups, share=share, **kwargs)

    def _quantize_all(self, x: Tensor) -> tuple[dict[str, Tensor], list[list[BookSearch]]]:
        rows_NE = x.reshape(-1, x.shape[-1])
        total_NE = torch.zeros_like(rows_NE)
        seen, levels = [rows_NE], []
        for level in range(self.groups):
            levels.append(self._search(seen[-1], 0 if self.share else level))
            total_NE = total_NE + levels[-1].vectors_NE
            seen.append(rows_NE - total_NE)
        grid = x.shape[:-2]
        codes = [found.searched.codes_N + self.get_codebook_by_group(i)[1] for i, found in enumerate(levels)]
        results = {
            "z_q": total_NE.view_as(x),
            "d": torch.stack([found.distance_N for found in levels], -1).view(*grid, self.groups),
            "q": torch.stack(codes, -1).view(*grid, self.groups),
            "z_res": torch.stack(seen, 1).detach().view(*grid, len(seen), x.shape[-1]),
        }
        return results, [levels] if self.share else [[found] for found in levels]

    def _fit(self, x_NC: Tensor, method: str, seed: int) -> None:
        """Every level on what the levels before it leave over; a shared codebook on what it sees at all levels once it
        has been fitted to those of the first."""
        residual_NE, seen = x_NC, []
        for level in range(self.groups):
            if level == 0 or not self.share:
                self._fit_book(level, residual_NE, method, seed + level)
            seen.append(residual_NE)
            residual_NE = residual_NE - self._search(residual_NE, 0 if self.share else level).vectors_NE
        if self.share and self.groups > 1:
            self._fit_book(0, torch.cat(seen), method, seed + self.groups)
