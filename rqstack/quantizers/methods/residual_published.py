"""Residual quantization: a vector as a stack of D codes.

Legend: B batch, H W latent grid, h w code grid, D code depth, E size of a latent vector (or of a code vector, which is
larger by the factor of the space-to-depth step when the code grid is smaller), K codebook size, N vectors.

Lee et al., Autoregressive Image Generation using Residual Quantization, CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rqstack.arguments import check_choice, check_count, check_counts, check_number
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.given_tensors import check_mask, check_vectors
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.nearest import sampled_codes
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer, QuantizerOutput
from rqstack.quantizers.codebooks.entry_use import RestartRule
from rqstack.quantizers.codebooks.moving_average import EMACodebook
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqstack.quantizers.wrappers.patches import join_patches, split_patches

CODEBOOK_UPDATES = ("per_depth", "deferred")


@checks_arguments
class ResidualQuantizer(Quantizer):
    """D codes per vector; each quantizes what the codes before it left over. # Eq. 2-3

    dim: E, size of the input vectors. num_codes: codebook size of every depth. shared: one codebook for all depths.
    decay: of the moving averages, one number or one per depth. restart_unused_codes: entries with less than one vector
    per update on average get a vector of the step; without it, and without `codebook_warmup`, most codebooks collapse
    from their random start (in a YAML file the default is false, as published).
    patch: (rows, columns) of latent vectors that are joined into one code vector (space to depth); the input is then
    (B, H, W, E), otherwise any (..., E).

    codebook_update 'deferred': a train-mode forward remembers its vectors, and `update_codebook()`, called once per
    optimizer step, applies one update over all of them. 'per_depth' (published): every train-mode forward updates at
    every depth right after the look-up, so with a shared codebook depth d searches what depth d - 1 just changed. Codes
    and decoder then see slightly different codebooks within one step: a cause of a gap between training and evaluation.
    """

    def __init__(
        self,
        dim: int,
        num_codes: Sequence[int],
        *,
        shared: bool = False,
        decay: float | Sequence[float] = 0.99,
        restart_unused_codes: bool = True,
        codebook_update: str = "deferred",
        patch: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        check_choice("codebook_update", codebook_update, CODEBOOK_UPDATES)
        self.dim, self.num_codes = check_count("dim", dim), check_counts("num_codes", num_codes)
        if len(check_counts("patch", patch)) != 2:
            raise ValueError(f"patch must be (rows, columns), got {patch}")
        self.shared = shared
        self.codebook_update = codebook_update
        self.patch = (patch[0], patch[1])
        each = list(decay) if isinstance(decay, Sequence) else [decay] * len(self.num_codes)
        decays = [check_number("decay", one, 0, 1, below=True) for one in each]
        if len(decays) != len(self.num_codes):
            raise ValueError(f"decay has {len(decays)} values for {len(self.num_codes)} depths")
        if shared and len({*zip(self.num_codes, decays, strict=True)}) != 1:
            raise ValueError(f"a shared codebook needs one size and one decay, got {self.num_codes} and {decays}")
        distinct = 1 if shared else len(self.num_codes)
        self.codebooks = ModuleList(
            EMACodebook(
                size,
                dim * patch[0] * patch[1],
                decay=one_decay,
                restart=RestartRule() if restart_unused_codes else None,
                keep_unused=codebook_update == "deferred",
                seed=depth,  # the rows with which one depth restarts are those that leave no residual to the next
            )
            for depth, (size, one_decay) in enumerate(zip(self.num_codes[:distinct], decays, strict=False))
        )
        self._pending: list[list[CodedVectors]] = [[] for _ in self.num_codes]

    def codebook_at(self, depth: int) -> EMACodebook:
        """The codebook that depth `depth` searches."""
        return self.codebooks[0 if self.shared else depth]

    def codebook(self, depth: int) -> Tensor:
        """The (K, E) code vectors of depth `depth`, fp32."""
        return self.codebook_at(depth).weight

    def code_vectors(self, depth: int) -> Tensor:
        """The same as `codebook`."""
        return self.codebook(depth)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E) in any float dtype; arithmetic is fp32.

        mask: optional, boolean, in the shape of the code grid; False positions get codes but count neither in the loss
        nor in the codebook. loss: commitment loss, the mean over depths of mean squared distances between z and the
        running sum of the code vectors, whose gradient reaches z only. # Eq. 8
        """
        check_vectors(z, self.dim)
        with full_precision(z.device):
            x_hwE = self._to_code_grid(z)
            check_mask(mask, x_hwE.shape[:-1])
            if self.codebook_update == "deferred":
                self._before_gathering(z)
            x_NE = x_hwE.reshape(-1, x_hwE.shape[-1])
            mask_N = None if mask is None else mask.reshape(-1)
            residual_NE, codes, errors = x_NE.detach(), [], []
            total_NE: Tensor | None = None
            for depth in range(len(self.num_codes)):
                book = self.codebook_at(depth)
                codes_N = book.nearest(residual_NE)
                vectors_NE = book.embed(codes_N)
                if self.training:
                    self._gather(depth, residual_NE, codes_N, mask_N)
                residual_NE = residual_NE - vectors_NE
                total_NE = vectors_NE if total_NE is None else total_NE + vectors_NE
                codes.append(codes_N)
                errors.append(_mean_square(x_NE - total_NE, mask_N))
            assert total_NE is not None, "a quantizer has a depth"
            loss = torch.stack(errors).mean()
            quantized = split_patches(total_NE.view_as(x_hwE), self.patch)
            codes_hwD = torch.stack(codes, -1).view(*x_hwE.shape[:-1], len(codes))
        return QuantizerOutput(straight_through(z, quantized), codes_hwD, loss, {"commitment": loss})

    def embed_with_depth(self, codes_hwD: Tensor) -> Tensor:
        """Codes (..., D) -> the code vectors (..., D, E) on the code grid, neither summed nor cumulated."""
        codes_hwD = self._checked(codes_hwD)
        return torch.stack([self.codebook_at(d).embed(codes_hwD[..., d]) for d in range(codes_hwD.shape[-1])], -2)

    def decode(self, codes_hwD: Tensor) -> Tensor:
        """Codes (..., D) -> the sum of their vectors on the latent grid, equal to `forward(...).quantized`. # Eq. 3"""
        codes_hwD = self._checked(codes_hwD)
        total = self.codebook_at(0).embed(codes_hwD[..., 0])
        for depth in range(1, codes_hwD.shape[-1]):
            total = total + self.codebook_at(depth).embed(codes_hwD[..., depth])
        return split_patches(total, self.patch)

    def decode_depth(self, codes_hwD: Tensor, depth: int) -> Tensor:
        """Codes (..., D) -> the vectors of one depth alone on the latent grid."""
        codes_hwD = self._checked(codes_hwD)
        return split_patches(self.codebook_at(depth).embed(codes_hwD[..., depth]), self.patch)

    @torch.no_grad()
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The residual that enters every depth (..., D, E) fp32 and the code chosen there (..., D).

        stochastic: draw the code from softmax(-squared distance / temp) instead of taking the nearest; the residual
        path follows the code drawn. # Eq. 12. The codebook does not change, in train mode either.
        """
        check_vectors(z, self.dim)
        with full_precision(z.device):
            x_hwE = self._to_code_grid(z)
            residual_NE = x_hwE.reshape(-1, x_hwE.shape[-1])
            residuals, codes = [], []
            for depth in range(len(self.num_codes)):
                book = self.codebook_at(depth)
                if stochastic:
                    codes_N = sampled_codes(residual_NE, book.weight, temp, generator)
                else:
                    codes_N = book.nearest(residual_NE)
                residuals.append(residual_NE)
                codes.append(codes_N)
                residual_NE = residual_NE - book.embed(codes_N)
        grid = x_hwE.shape[:-1]
        residuals_NDE, codes_ND = torch.stack(residuals, 1), torch.stack(codes, 1)
        return residuals_NDE.view(*grid, *residuals_NDE.shape[1:]), codes_ND.view(*grid, len(codes))

    def update_codebook(self) -> None:
        """Deferred updates: one update per codebook over all vectors gathered since the last call; none, no update.

        Vectors are ordered by (depth, micro-batch, rank, row), so the result depends on the step's vectors only and not
        on how they were split. All processes must call it after the same number of forwards.
        """
        groups = [[v for pending in self._pending for v in pending]] if self.shared else self._pending
        for book, batches in zip(self.codebooks, groups, strict=True):
            if batches:
                book.update(batches)
        self.discard_codebook_update()

    def discard_codebook_update(self) -> None:
        """Forget the vectors gathered since the last update."""
        self._pending = [[] for _ in self.num_codes]

    def _has_gathered(self) -> bool:
        return any(self._pending)

    def restart_counts(self) -> Tensor:
        """Entries restarted since construction, int64 (D,); the same number at all depths of a shared codebook."""
        return torch.stack([self.codebook_at(depth).num_restarts for depth in range(len(self.num_codes))])

    @torch.no_grad()
    def _gather(self, depth: int, x_NE: Tensor, codes_N: Tensor, mask_N: Tensor | None) -> None:
        """Use (per depth) or remember (deferred) the vectors one depth has just coded, without non-finite ones."""
        valid_N = x_NE.sum(-1).isfinite()
        vectors = CodedVectors(x_NE, codes_N, valid_N if mask_N is None else valid_N & mask_N)
        if self.codebook_update == "per_depth":
            self.codebook_at(depth).update([vectors])
            return
        self._pending[depth].append(vectors)

    def _to_code_grid(self, z: Tensor) -> Tensor:
        return join_patches(z.float(), self.patch)


def _mean_square(error_NE: Tensor, mask_N: Tensor | None) -> Tensor:
    """Mean of squared entries over the rows that count."""
    if mask_N is None:
        return error_NE.square().mean() if len(error_NE) else error_NE.sum()
    kept = torch.where(mask_N[:, None], error_NE, 0.0).square().sum()
    return kept / (mask_N.sum() * error_NE.shape[1]).clamp(min=1)
