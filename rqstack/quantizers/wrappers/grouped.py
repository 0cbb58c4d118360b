"""Any quantizers side by side, each on its share of the channels.

Legend: E size of an input vector, G groups, D code depth (of all groups together).

Yang et al., HiFi-Codec: Group-residual Vector Quantization for High Fidelity Audio Codec, 2023 (2305.02765).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rqstack.arguments import check_count
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.given_tensors import check_mask, check_vectors
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer, QuantizerOutput


@checks_arguments
class Grouped(Quantizer):
    """Channels split evenly over `groups`; codes follow each other group by group; the loss is the mean over groups.

    groups: quantizers of vectors of size dim / G. ValueError where the split is not even.
    """

    def __init__(self, dim: int, groups: Sequence[Quantizer]):
        super().__init__()
        if not len(groups) or check_count("dim", dim) % len(groups):
            raise ValueError(f"dim {dim} does not split evenly over {len(groups)} groups")
        self.dim, self.groups = dim, ModuleList(groups)
        self._watch_from_outside(*self.groups)
        self.drops_levels = any(group.drops_levels for group in groups)
        self.num_codes = tuple(size for group in groups for size in group.num_codes)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E); positions where `mask` (...) is False count in no loss and no codebook."""
        shares = self._shares(z)
        check_mask(mask, z.shape[:-1])
        self._before_gathering(z)
        with full_precision(z.device):
            outs = [group(part, mask) for group, part in shares]
            names = dict.fromkeys(name for out in outs for name in out.terms)
            zero = torch.zeros((), device=z.device)
            terms = {name: torch.stack([out.terms.get(name, zero) for out in outs]).mean() for name in names}
            quantized = torch.cat([out.quantized for out in outs], -1)
            codes = torch.cat([out.codes for out in outs], -1)
        return QuantizerOutput(quantized, codes, sum(terms.values(), zero), terms)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> vectors (..., E); missing last depths count as zero."""
        codes = self._checked(codes)
        size = self.dim // len(self.groups)
        parts = [group.decode(part) for group, part in self._split(codes)]
        missing = codes.new_zeros((*codes.shape[:-1], size), dtype=torch.float32)
        return torch.cat(parts + [missing] * (len(self.groups) - len(parts)), -1)

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the part of every depth (..., D, E), zero outside the group; they add up to `decode`."""
        codes = self._checked(codes)
        size, padded = self.dim // len(self.groups), []
        for index, (group, part) in enumerate(self._split(codes)):
            before, after = index * size, self.dim - (index + 1) * size
            padded.append(nn.functional.pad(group.embed_with_depth(part), (before, after)))
        return torch.cat(padded, -2)

    def codebook(self, depth: int) -> Tensor:
        """The code vectors depth `depth` compares `targets` with, in the space of its group."""
        for group in self.groups:
            if depth < len(group.num_codes):
                return group.codebook(depth)
            depth -= len(group.num_codes)
        raise ValueError(f"the quantizer has {len(self.num_codes)} depths")

    @torch.no_grad()
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The vector every depth searches with and its code, group by group."""
        found = [group.targets(part, temp, stochastic, generator) for group, part in self._shares(z)]
        return torch.cat([searched for searched, _ in found], -2), torch.cat([codes for _, codes in found], -1)

    @torch.no_grad()
    def soft_codes(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Those of the groups (..., D, K), filled up with probability 0, and the codes (..., D)."""
        found = [group.soft_codes(part, temp, stochastic, generator) for group, part in self._shares(z)]
        largest = max(self.num_codes)
        probs = [nn.functional.pad(part, (0, largest - part.shape[-1])) for part, _ in found]
        return torch.cat(probs, -2), torch.cat([codes for _, codes in found], -1)

    def update_codebook(self) -> None:
        """Apply what the groups have gathered."""
        for group in dict.fromkeys(self.groups):
            group.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what the groups have gathered."""
        for group in dict.fromkeys(self.groups):
            group.discard_codebook_update()

    def _has_gathered(self) -> bool:
        return any(group._has_gathered() for group in self.groups)

    def restart_counts(self) -> Tensor:
        """Entries the groups have restarted since construction, int64 (D,)."""
        return torch.cat([group.restart_counts() for group in self.groups])

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether those of all groups are fixed."""
        return all(group.fixed_code_vectors for group in self.groups)

    @property
    def uses_all_parameters(self) -> bool:
        """Whether all groups do."""
        return all(group.uses_all_parameters for group in self.groups)

    def _shares(self, z: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """(group, its channels) for every group."""
        check_vectors(z, self.dim)
        return list(zip(self.groups, z.chunk(len(self.groups), -1), strict=True))

    def _split(self, codes: Tensor) -> Iterator[tuple[Quantizer, Tensor]]:
        """(group, its codes) for every group that has codes here."""
        start = 0
        for group in self.groups:
            part = codes[..., start : start + len(group.num_codes)]
            start += len(group.num_codes)
            if part.shape[-1]:
                yield group, part
