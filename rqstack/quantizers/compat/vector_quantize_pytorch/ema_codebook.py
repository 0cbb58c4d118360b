"""The `_codebook` of `VectorQuantize`: its state under the names that programs reach for.

Legend: X codebooks side by side, R rows (vectors), E code-vector size, K codebook size, T best codes.

State is (X, K, E) and (X, K), fp32 buffers (`embed` a parameter where it is learned). Unlike the codebooks of the core
it changes inside the forward, after the look-up; the steps are the core's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision
from rqstack.quantizers.arithmetic.scored_codes import code_scores, expected_by_score
from rqstack.quantizers.codebooks.averages import counts_and_sums, replace_unused, smoothed_sizes, state_seed
from rqstack.quantizers.codebooks.kmeans import kmeans
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqstack.quantizers.compat.vector_quantize_pytorch.affine_moments import AffineMoments
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require
from rqstack.quantizers.compat.vector_quantize_pytorch.look_up import Found, own_codes, side_by_side, table_codes

# A factor on 1 - decay: a number, one per code (X, K) or (K,), or what a function of sums and counts makes of them.
StepWeight = Tensor | float | Callable[[Tensor, Tensor], Tensor | float]

UNIT_EPS = 1e-6  # vectors shorter than this are not scaled to length 1


def unit(x: Tensor) -> Tensor:
    """Scaled to length 1."""
    return F.normalize(x, dim=-1, eps=UNIT_EPS)


class Codebook(KeepsFloat32, AffineMoments):
    """X codebooks of K vectors. See `VectorQuantize` for the settings."""

    initted: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    embed: Tensor
    _seen_initted: tuple[Tensor | None, int]

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        reset_cluster_size: float | None = None,
        use_ddp: bool | None = None,
        learnable_codebook: bool = False,
        stochastic: bool = False,
        straight_through: bool = False,
        sample_codebook_temp: float = 1.0,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        affine_param: bool = False,
        sync_affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        use_cosine_sim: bool = False,
        vq_bridge: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.dim, self.codebook_size, self.num_codebooks = dim, codebook_size, num_codebooks
        self.kmeans_iters, self.sync_kmeans, self.use_ddp = kmeans_iters, sync_kmeans, use_ddp
        self.decay, self.eps = decay, eps
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.has_dead_code_replacement = threshold_ema_dead_code > 0
        self.reset_cluster_size = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.stochastic, self.straight_through = stochastic, straight_through
        self.sample_codebook_temp = sample_codebook_temp
        self.use_cosine_sim, self.learnable_codebook = use_cosine_sim, learnable_codebook
        self._register_state(kmeans_init)
        decays = (affine_param_batch_decay, affine_param_codebook_decay)
        self._register_moments(affine_param, sync_affine_param, *decays, (num_codebooks, 1, dim))
        self.vq_bridge = vq_bridge

    def _register_state(self, kmeans_init: bool) -> None:
        embed_XKE = torch.zeros(self.num_codebooks, self.codebook_size, self.dim, dtype=torch.float32)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed_XKE)
            embed_XKE = self.transform_input(embed_XKE)
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(embed_XKE.shape[:2], dtype=torch.float32))
        self.register_buffer("embed_avg", embed_XKE.clone())
        if self.learnable_codebook:
            self.embed = nn.Parameter(embed_XKE)
        else:
            self.register_buffer("embed", embed_XKE)
        self._known_initted, self._seen_initted = not kmeans_init, (None, 0)

    def transform_input(self, x: Tensor) -> Tensor:
        """Vectors as they are searched: of length 1 for cosine similarity."""
        return unit(x) if self.use_cosine_sim else x

    def _together(self, together: bool = True) -> contextlib.AbstractContextManager[None]:
        """Collectives on, unless this codebook (use_ddp False) or this step does without."""
        return contextlib.nullcontext() if together and self.use_ddp is not False else sync.alone()

    @torch.no_grad()
    def update_affine(self, x_XRE: Tensor, valid_XR: Tensor | None = None) -> None:
        """Average in the moments of the vectors, and in training those of `embed`."""
        with self._together(self.sync_affine_param):
            self.observe(x_XRE, self.embed, valid_XR)

    # --- the code vectors that are searched

    def effective_embed(self) -> Tensor:
        """(X, K, E) fp32: `embed` through the bridge and the affine map, with the gradient of a learned codebook."""
        embed_XKE = (self.embed if self.learnable_codebook else self.embed.detach()).float()
        if self.vq_bridge is not None:
            embed_XKE = self.vq_bridge(embed_XKE)
        return self.to_batch_moments(embed_XKE) if self.affine_param else embed_XKE

    # --- look-up

    def look_up(self, x_XRE: Tensor, valid_XR: Tensor | None, *search: Any, **how: Any) -> Found:
        """`find`, after what every forward does before it: the start from k-means and the moments of the vectors."""
        self.init_embed_(x_XRE.detach(), valid_XR)
        if self.affine_param:
            self.update_affine(x_XRE.detach(), valid_XR)
        return self.find(x_XRE, *search, **how)

    def find(
        self,
        x_XRE: Tensor,
        temp: float | None = None,
        topk: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        keep_scores: bool = False,
    ) -> Found:
        """The codes of x (fp32) and their vectors, before any update.

        transform: gives every vector its own code vectors (X, B, R / B, K, E). keep_scores: the result serves losses
        over all scores, whose backward pass comes after the update of this step.
        """
        weight_XKE = self.effective_embed()
        weight_XKE = weight_XKE.clone() if keep_scores else weight_XKE
        temp = self.sample_codebook_temp if temp is None else temp
        temp = temp if self.training and self.stochastic and temp > 0 else None
        if transform is None:
            return table_codes(x_XRE, weight_XKE, self.use_cosine_sim, temp, topk)
        own_XRKE = self.transform_input(transform(weight_XKE).flatten(1, 2))
        return own_codes(x_XRE, weight_XKE, own_XRKE, self.use_cosine_sim, temp, topk, keep_scores)

    def expected(self, x_XRE: Tensor, weight_XKE: Tensor, temp: float) -> Tensor:
        """Mean code vectors under softmax(score / temp) (X, R, E)."""
        pairs = zip(x_XRE, weight_XKE, strict=True)
        return side_by_side([expected_by_score(x, weight, temp, self.use_cosine_sim) for x, weight in pairs])

    # --- state

    def _is_initted(self) -> bool:
        """Reads the buffer only after it was written, so that the host waits for the device once."""
        if torch.compiler.is_compiling():  # a graph cannot ask
            return self._known_initted
        if self.initted.is_inference():  # has no version
            return bool(self.initted)
        seen, version = self._seen_initted
        if seen is not self.initted or version != self.initted._version:
            self._known_initted = bool(self.initted)
            self._seen_initted = (self.initted, self.initted._version)
        return self._known_initted

    @torch.no_grad()
    def init_embed_(self, x_XRE: Tensor, valid_XR: Tensor | None = None) -> None:
        """Start from the k-means of the vectors, unless started already."""
        if not self._is_initted():
            self.start_from(x_XRE, valid_XR, self.kmeans_iters)

    @torch.no_grad()
    def start_from(self, x_XRE: Tensor, valid_XR: Tensor | None, iterations: int, seed: int = 0) -> None:
        """All state from the k-means of the vectors; without iterations from vectors drawn. Empty clusters keep the
        vector they were drawn with."""
        with self._together(self.sync_kmeans):
            for book, x_RE in enumerate(x_XRE):
                valid_R = None if valid_XR is None else valid_XR[book]
                means_KE, sizes_K = kmeans(
                    x_RE,
                    self.codebook_size,
                    iterations=iterations,
                    cosine=self.use_cosine_sim,
                    valid_N=valid_R,
                    seed=seed + book,
                )
                self.cluster_size[book] = sizes_K.clamp(min=1)
                self.embed_avg[book] = means_KE * self.cluster_size[book][:, None]
        self.cluster_size.grad = self.embed_avg.grad = None
        self.update_ema()
        self.forget_moments()
        self.initted.fill_(True)
        self._known_initted = True

    @torch.no_grad()
    def update_ema(self) -> None:
        """embed = embed_avg / smoothed cluster size."""
        mean_XKE = self.embed_avg / smoothed_sizes(self.cluster_size, self.eps)[..., None]
        self.embed.data.copy_(self.transform_input(mean_XKE))

    @torch.no_grad()
    def update_codebook(
        self,
        rows: list[CodedVectors],
        ema_update_weight: StepWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """One step of the moving averages over the coded vectors of every codebook, then the expiry of unused codes.

        accum_ema_update: only add the sums to `cluster_size.grad` and `embed_avg.grad`; the next step takes them in.
        """
        ema_update = self.ema_update if ema_update is None else ema_update
        if not ema_update and not self.has_dead_code_replacement:
            return
        with self._together():
            self.track(rows, ema_update_weight, accum_ema_update)
            if accum_ema_update:
                return
            if ema_update and not self.manual_ema_update:
                self.update_ema()
            self._expire(rows)

    def track(self, rows: list[CodedVectors], weight: StepWeight | None, accumulate: bool) -> None:
        """Counts and sums of the codes into the moving averages; weight: see `StepWeight`."""
        if self.affine_param:
            rows = [r._replace(x_NE=self.to_codebook_moments(r.x_NE, book)) for book, r in enumerate(rows)]
        totals = [counts_and_sums([r], self.codebook_size) for r in rows]
        counts_XK, sums_XKE = (torch.stack(part) for part in zip(*totals, strict=True))
        weight = weight(sums_XKE, counts_XK) if callable(weight) else weight
        for average, new in ((self.cluster_size, counts_XK), (self.embed_avg, sums_XKE)):
            if accumulate:
                average.grad = new if average.grad is None else average.grad.add_(new)
                continue
            if average.grad is not None:
                new, average.grad = new + average.grad, None
            average.lerp_(new, self._step_size(weight, average))

    def _step_size(self, weight: Tensor | float | None, average: Tensor) -> Tensor | float:
        if weight is None:
            return 1 - self.decay
        if not isinstance(weight, Tensor):
            return (1 - self.decay) * weight
        weight = weight[None] if weight.ndim == 1 else weight
        expected = tuple(average.shape[:2])
        require(weight.shape == expected, f"ema_update_weight of shape {tuple(weight.shape)} is not {expected}")
        return (1 - self.decay) * weight.to(average).view(*expected, *[1] * (average.ndim - 2))

    @torch.no_grad()
    def _expire(self, rows: list[CodedVectors]) -> None:
        """Codes used less than the threshold become vectors of the batch, with the reset cluster size."""
        if not self.has_dead_code_replacement or not self.training:
            return
        unused_XK = self.cluster_size < self.threshold_ema_dead_code
        if unused_XK.device.type != "cpu" or unused_XK.any():  # elsewhere the host would have to wait to know
            self._replace(rows, unused_XK)

    def _replace(self, rows: list[CodedVectors], unused_XK: Tensor) -> None:
        seed = state_seed(self.cluster_size)
        for index, (unused_K, row) in enumerate(zip(unused_XK, rows, strict=True)):
            vectors_KE, replaced_K = replace_unused(unused_K, row, seed + index)
            replaced_K1 = replaced_K[:, None]
            self.embed.data[index] = torch.where(replaced_K1, vectors_KE, self.embed.data[index])
            sums_KE = vectors_KE * self.reset_cluster_size
            self.embed_avg[index] = torch.where(replaced_K1, sums_KE, self.embed_avg[index])
            self.cluster_size[index].masked_fill_(replaced_K, self.reset_cluster_size)

    # --- what programs call on `_codebook` itself: (..., E) or, with several codebooks, (X, ..., E)

    def rows_of(self, x: Tensor) -> Tensor:
        """(..., E), or (X, ..., E) for several codebooks -> (X, R, E) fp32."""
        return x.float().reshape(self.num_codebooks, -1, x.shape[-1])

    def coded(self, x_XRE: Tensor, codes_XR: Tensor | None, valid_XR: Tensor | None) -> list[CodedVectors]:
        """Vectors with their codes; those that are masked, not finite, or coded -1 do not count."""
        finite_XR = x_XRE.sum(-1).isfinite()
        valid_XR = finite_XR if valid_XR is None else finite_XR & valid_XR
        codes_XR = torch.zeros_like(valid_XR, dtype=torch.int64) if codes_XR is None else codes_XR
        valid_XR = valid_XR & (codes_XR >= 0)
        return [CodedVectors(*row) for row in zip(x_XRE, codes_XR.clamp(min=0), valid_XR, strict=True)]

    def expire_codes_(self, batch_samples: Tensor, seq_mask: Tensor | None = None) -> None:
        """Replace codes used less than the threshold by vectors (..., E) drawn from these; in training."""
        with self._together():
            self._expire(self._samples(batch_samples, seq_mask))

    @torch.no_grad()
    def replace(self, batch_samples: Tensor, batch_mask: Tensor, seq_mask: Tensor | None = None) -> None:
        """Replace the codes where `batch_mask` (X, K) is True by vectors (..., E) drawn from the samples."""
        with self._together():
            self._replace(self._samples(batch_samples, seq_mask), batch_mask)

    def _samples(self, x: Tensor, mask: Tensor | None) -> list[CodedVectors]:
        x_XRE = self.transform_input(self.rows_of(x.detach()))
        return self.coded(x_XRE, None, None if mask is None else mask.reshape(len(x_XRE), -1))

    def update_indices(
        self,
        x: Tensor,
        embed_ind: Tensor,
        mask: Tensor | None = None,
        ema_update_weight: StepWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """A moving-average step with vectors (..., E) and codes (...) found elsewhere. mask: (B, N)."""
        x_XRE = self.rows_of(x.detach())
        codes_XR = embed_ind.reshape(len(x_XRE), -1)
        coded = self.coded(x_XRE, codes_XR, self._rows_of_mask(mask, x_XRE))
        self.update_codebook(coded, ema_update_weight, accum_ema_update, ema_update)

    update_ema_indices = update_indices

    def _rows_of_mask(self, mask_BN: Tensor | None, x_XRE: Tensor) -> Tensor | None:
        """(B, N) -> (X, R), repeated for the heads between batch and positions that share a codebook."""
        if mask_BN is None:
            return None
        books, rows, _ = x_XRE.shape
        return mask_BN[:, None].expand(-1, rows // mask_BN.numel(), -1).reshape(1, rows).expand(books, rows)

    def forward(
        self,
        x: Tensor,
        sample_codebook_temp: float | None = None,
        mask: Tensor | None = None,
        freeze_codebook: bool = False,
        codebook_transform_fn: Callable[[Tensor], Tensor] | None = None,
        ema_update_weight: StepWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
        topk: int | None = None,
        update_usage: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, codes and all scores (X, ..., K) of x (..., E) with less than 4 dims, else (X, ..., E); in training
        the codebook learns. `VectorQuantize` does without this, because the scores are N x K."""
        with full_precision(x.device):
            x_XRE = self.rows_of(x)
            valid_XR = self._rows_of_mask(mask, x_XRE)
            found = self.look_up(x_XRE, valid_XR, sample_codebook_temp, topk, codebook_transform_fn, True)
            scores_XRK = found.scores_XRK
            scores_XRK = self.distances(x_XRE, found.weight_XKE) if scores_XRK is None else scores_XRK
            if self.training and update_usage and not freeze_codebook and topk is None:
                coded = self.coded(x_XRE.detach(), found.codes, valid_XR)
                self.update_codebook(coded, ema_update_weight, accum_ema_update, ema_update)
        codes = found.codes.reshape(*x.shape[:-1], *found.codes.shape[2:])
        grid = (len(x_XRE), *x.shape[:-1]) if x.ndim < 4 else x.shape[:-1]
        return found.vectors.reshape(*codes.shape, -1), codes, scores_XRK.reshape(*grid, -1)

    def distances(self, x_XRE: Tensor, weight_XKE: Tensor) -> Tensor:
        """All scores (X, R, K): minus the distances, or the cosines. For small inputs."""
        pairs = zip(x_XRE, weight_XKE, strict=True)
        return torch.stack([code_scores(x_NE, weight_KE, self.use_cosine_sim) for x_NE, weight_KE in pairs])
