"""The draw of one position: D codes from the decoder's logits into the code map.

Legend: B batch, P given positions, T = H*W positions, D code depth, L condition length; 1: an axis of one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rqstack.counter_noise import uniform_noise
from rqtransformer.decoding.allowed_codes import CodeFilter
from rqtransformer.decoding.decoder import Decoder
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.finite_draws import to_embed
from rqtransformer.native import NativePosition


@dataclass(frozen=True)
class DrawInputs:
    """What the draws of a batch read besides the logits.

    Attributes:
        noise_TDB: uniform numbers in [0, 1).
        scale_T1: guidance scale of every position, or None.
        known_BTD, codes_BTD: which codes are given and their values, or None and None.
    """

    noise_TDB: Tensor
    scale_T1: Tensor | None
    known_BTD: Tensor | None
    codes_BTD: Tensor | None

    @classmethod
    def of(cls, request: SamplingRequest, seed: int, num_positions: int) -> DrawInputs:
        """The inputs that a request asks for."""
        depth = len(request.settings)
        addresses = list(itertools.product(range(num_positions), range(depth)))
        noise_TDB = uniform_noise(seed, request.index_B, addresses).unflatten(0, (num_positions, depth))
        scale_T1 = None
        if request.scale_T is not None:
            scale_T1 = torch.tensor(request.scale_T, device=request.index_B.device).unsqueeze(1)
        return cls(noise_TDB, scale_T1, request.known_BTD, request.codes_BTD)

    def clone(self) -> DrawInputs:
        """The same in memory of its own."""
        copies: dict[str, Any] = {name: None if value is None else value.clone() for name, value in self._items()}
        return DrawInputs(**copies)

    def copy_(self, other: DrawInputs) -> None:
        """Takes the numbers of inputs of the same shapes."""
        for name, value in self._items():
            if value is not None:
                value.copy_(getattr(other, name))

    def _items(self) -> list[tuple[str, Tensor | None]]:
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]


class PositionStep:
    """Draws the D codes of the decoder's position into the code map.

    Args:
        decoder: where the logits come from.
        settings: of each depth.
        inputs: of the draws.
        codes_BTD: the code map.
        compiled: all draws in one call, where there is such a thing for this decoder and request.
        code_filter: rules codes out, one by one; not with `compiled`, nor where the position is on the device.
    """

    def __init__(
        self,
        decoder: Decoder,
        settings: Sequence[DrawSettings],
        inputs: DrawInputs,
        codes_BTD: Tensor,
        compiled: NativePosition | None = None,
        code_filter: CodeFilter | None = None,
    ):
        assert code_filter is None or not (compiled or decoder.on_device), "codes are ruled out one by one"
        self.decoder, self.settings, self.inputs, self.codes_BTD = decoder, settings, inputs, codes_BTD
        self._compiled, self._filter = compiled, code_filter

    def __call__(self) -> None:
        """All depths of one position."""
        decoder, inputs = self.decoder, self.inputs
        index = decoder.position_index() if decoder.on_device else decoder.position
        noise_DB = _at(inputs.noise_TDB, index)
        if self._compiled is not None:
            self._write(decoder.draw_position(self._compiled, noise_DB), index)
            return
        scale = None if inputs.scale_T1 is None else _at(inputs.scale_T1, index)
        known_BD = given_BD = None
        if inputs.known_BTD is not None and inputs.codes_BTD is not None:
            known_BD = _at(inputs.known_BTD, index, axis=1)
            given_BD = _at(inputs.codes_BTD, index, axis=1)
        drawn: list[Tensor] = []
        for depth, settings in enumerate(self.settings):
            logits_BV, guidance = decoder.logits(), scale
            if self._filter is not None:
                known_B = None if known_BD is None else known_BD[:, depth]
                size = decoder.model.classifier.vocab_sizes[depth]
                logits_BV = self._filter(logits_BV, scale, self._so_far(drawn), size, known_B)
                guidance = None
            code_B = draw_truncated(logits_BV, noise_DB[depth], settings, guidance)
            if known_BD is not None and given_BD is not None:
                code_B = torch.where(known_BD[:, depth], given_BD[:, depth], code_B)
            drawn.append(code_B)
            given_B = to_embed(code_B)
            decoder.push(given_B if scale is None else given_B.repeat(2))
        self._write(torch.stack(drawn, dim=1), index)

    def _so_far(self, drawn: Sequence[Tensor]) -> Tensor:
        """Codes (B, N) of the finished positions and of this one."""
        finished_BN = self.codes_BTD[:, : self.decoder.position].flatten(1)
        return torch.cat([finished_BN, *(code_B.unsqueeze(1) for code_B in drawn)], dim=1)

    def _write(self, codes_BD: Tensor, index: Tensor | int) -> None:
        if isinstance(index, Tensor):
            self.codes_BTD.index_copy_(1, index, codes_BD.unsqueeze(1))
        else:
            self.codes_BTD[:, index] = codes_BD


def _at(values: Tensor, index: Tensor | int, axis: int = 0) -> Tensor:
    if isinstance(index, Tensor):
        return values.index_select(axis, index).squeeze(axis)
    return values.select(axis, index)
