"""Vector quantization: every vector, or every head of it, as one code.

Legend: N vectors, H heads (the code depth), E size of a code vector, K codebook size, k candidates per vector.

van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937; projections and cosine distance: Yu et
al., Vector-quantized Image Modeling with Improved VQGAN, arXiv 2110.04627.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_choice, check_number, shown
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.code_losses import expected_vectors, orthogonal_term, vector_terms
from rqstack.quantizers.arithmetic.given_tensors import check_mask, check_vectors, checked_codes, checked_input
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS, straight_through, synchronised
from rqstack.quantizers.arithmetic.nearest import nearest_codes, sampled_codes
from rqstack.quantizers.arithmetic.nearest_k import TopCodes, nearest_k
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import QuantizerOutput
from rqstack.quantizers.codebooks.affine import LearnedAffine, RunningAffine
from rqstack.quantizers.codebooks.alternating import OptimizerMaker, alternating_step, own_optimizer
from rqstack.quantizers.codebooks.kmeans import kmeans
from rqstack.quantizers.codebooks.learned import LearnedCodebook
from rqstack.quantizers.codebooks.moving_average import EMACodebook, TrainedEMACodebook
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqstack.quantizers.methods.vector_heads import HeadedQuantizer
from rqstack.quantizers.methods.vector_options import VectorOptions

INIT_METHODS = ("kmeans", "data")


@checks_arguments
class VectorQuantizer(HeadedQuantizer):
    """Nearest code vector of every vector. Channels-last input (..., dim), codes (..., H).

    num_codes: K. heads: the vector is cut into H parts with a code each, from one codebook or (separate_codebooks) from
    H. decay: of the moving averages. keep_length: after 'cosine' every part gets its length back; codes decode to
    directions, see `decode`. in_place_optimizer: makes the optimizer of `inplace_lr` from the codebook's parameters, in
    the place of SGD.
    """

    initialized: Tensor

    def __init__(
        self,
        dim: int,
        num_codes: int,
        options: VectorOptions | None = None,
        *,
        heads: int = 1,
        separate_codebooks: bool = False,
        keep_length: bool = False,
        decay: float = 0.99,
        in_place_optimizer: OptimizerMaker | None = None,
    ):
        options = VectorOptions() if options is None else options
        check_number("decay", decay, 0, 1, below=True)
        super().__init__(dim, num_codes, heads, options.codebook_dim, options.distance == "cosine", keep_length)
        self.options, self.frozen = options, False
        self.learned, self.averaged = options.codebook != "ema", options.codebook != "learned"
        books = range(heads if separate_codebooks else 1)
        size = num_codes, self.codebook_dim
        self.codebooks = ModuleList(_make_codebook(*size, options, decay, options.seed + index) for index in books)
        affine = options.affine
        self.affines = ModuleList([] if affine is None else [affine.build(*size) for _ in books])
        self.inplace_optimizer = self._make_optimizer(own_optimizer(options.inplace_lr, in_place_optimizer))
        gathers = self.averaged or options.restart_rule is not None or self._running()
        self._gathers = gathers or self.inplace_optimizer is not None
        self.register_buffer("initialized", torch.tensor(not options.kmeans_init))
        self._known_initialized = not options.kmeans_init
        self._pending: list[list[CodedVectors]] = [[] for _ in self.codebooks]

    def codebook_at(self, head: int) -> EMACodebook | LearnedCodebook:
        """The codebook that head `head` searches, as it is before an affine re-parametrisation."""
        return self.codebooks[head % len(self.codebooks)]

    def codebook(self, depth: int) -> Tensor:
        """The (K, E) code vectors of head `depth`, fp32."""
        return self._weight(depth % len(self.codebooks))

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) every change of the code vectors: updates, k-means start, and learning."""
        self.frozen = frozen
        for parameter in self._codebook_parameters():
            parameter.requires_grad_(not frozen and self.inplace_optimizer is None)
        if frozen:
            self.discard_codebook_update()

    def forward(self, z: Tensor, mask: Tensor | None = None, given: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., dim) in any float dtype; arithmetic is fp32.

        mask: optional, boolean (...); False positions get codes but count neither in the loss nor in the codebook
        (`layout.mask_from_lengths` makes one from the lengths of padded rows).
        given: codes (..., H) to use instead of the nearest ones, as a search over several quantizers finds them.
        loss: the weighted sum of the terms of `VectorLosses`, each averaged over vectors and heads.
        """
        z = checked_input(z, mask, self.dim)
        if self._gathers and not self.frozen:
            self._before_gathering(z)
        with full_precision(z.device):
            parts_NHE = self._split(z)
            x_NHE = self._scaled(parts_NHE)
            mask_N = None if mask is None else mask.reshape(-1)
            if self.training and not self.frozen and not self._is_initialized():
                self._initialize(x_NHE, mask_N, "kmeans")
            weights = self._weights()
            found, chosen, terms = [], [], []
            for head, x_NE in enumerate(x_NHE.unbind(1)):
                weight_KE = weights[head % len(weights)]
                if given is None:
                    codes_N = self._search(head, x_NE.detach(), weight_KE.detach())
                else:
                    codes_N = given[..., head].reshape(-1)
                vectors_NE = F.embedding(codes_N, weight_KE)
                if self.training and self._gathers and not self.frozen:
                    self._pending[head % len(self._pending)].append(_coded(x_NE, codes_N, mask_N))
                found.append(codes_N)
                chosen.append(vectors_NE)
                terms.append(vector_terms(self.options.losses, x_NE, vectors_NE, codes_N, weight_KE, mask_N))
            quantized = self._from_heads(self._estimate(parts_NHE, x_NHE, chosen, weights), z.shape)
            mean = {name: reduce(add, [term[name] for term in terms]) / self.heads for name in terms[0]}
            if self.options.losses.orthogonal > 0:
                mean["orthogonal"] = orthogonal_term(self.options.losses, weights, found, mask_N)
            loss = sum(mean.values(), torch.zeros((), device=z.device))
        codes = torch.stack(found, -1).view(*z.shape[:-1], self.heads)
        return QuantizerOutput(quantized.to(z.dtype), codes, loss, mean)

    def top_codes(self, z: Tensor, k: int) -> TopCodes:
        """The k nearest code vectors of every head of z (..., dim): codes and squared distances (..., H, k), vectors
        (..., H, k, E), in the space that is searched. Nothing is learned or gathered."""
        with full_precision(z.device):
            x_NHE, weights = self._to_heads(z), self._weights()
            books = [weights[head % len(weights)] for head in range(self.heads)]
            found = [nearest_k(x_NHE[:, head], weight_KE.detach(), k) for head, weight_KE in enumerate(books)]
            vectors = [F.embedding(codes, weight_KE) for (codes, _), weight_KE in zip(found, books, strict=True)]
        parts = vectors, [codes for codes, _ in found], [distances for _, distances in found]
        stacked = (torch.stack(part, 1) for part in parts)
        return TopCodes(*(part.view(*z.shape[:-1], *part.shape[1:]) for part in stacked))

    def initialize_codebook(self, z: Tensor, mask: Tensor | None = None, method: str = "kmeans", seed: int = 0) -> None:
        """Set the codebook from z (..., dim): 'kmeans', or 'data' (vectors drawn from it). All processes together."""
        check_choice("method", method, INIT_METHODS)
        check_vectors(z, self.dim)
        check_mask(mask, z.shape[:-1])
        with torch.no_grad(), full_precision(z.device):
            self._initialize(self._to_heads(z), None if mask is None else mask.reshape(-1), method, seed)

    def update_codebook(self) -> None:
        """One update per codebook over all vectors gathered since the last call; none, no update.

        Moving averages, restarts and the moments of `affine`; with an optimizer of its own first a step of that.
        All processes must call it after the same number of forwards.
        """
        if self._pending[0]:
            if self.inplace_optimizer is not None:
                alternating_step(self.inplace_optimizer, self._weights, self._pending)
            self._update(self._pending)
        self.discard_codebook_update()

    def discard_codebook_update(self) -> None:
        """Forget the vectors gathered since the last update."""
        self._pending = [[] for _ in self.codebooks]

    def _has_gathered(self) -> bool:
        return any(self._pending)

    @torch.no_grad()
    def update_from_codes(self, z: Tensor, codes: Tensor, mask: Tensor | None = None) -> None:
        """One update of the moving averages, at once, as if z (..., dim) had been given `codes` (..., H).

        Negative codes and positions where `mask` (...) is False do not count. What forwards have gathered stays. All
        processes call it together; nothing happens to a frozen codebook. ValueError for a codebook without averages.
        """
        if not self.averaged:
            raise ValueError("update_from_codes moves averages: it needs codebook 'ema' or 'both'")
        check_vectors(z, self.dim)
        check_mask(mask, z.shape[:-1])
        if not isinstance(codes, Tensor) or codes.shape != (*z.shape[:-1], self.heads):
            raise ValueError(f"{self.heads} codes per vector of {tuple(z.shape)} expected, got {shown(codes)}")
        codes = checked_codes(codes, self.num_codes, dropped=True)
        if self.frozen:
            return
        batches: list[list[CodedVectors]] = [[] for _ in self.codebooks]
        with full_precision(z.device):
            for head, x_NE in enumerate(self._to_heads(z).unbind(1)):
                codes_N = codes[..., head].reshape(-1)
                counts_N = codes_N >= 0 if mask is None else (codes_N >= 0) & mask.reshape(-1)
                batches[head % len(batches)].append(_coded(x_NE, codes_N, counts_N))
            self._update(batches)

    def restart_counts(self) -> Tensor:
        """Entries restarted since construction, int64 (H,)."""
        return torch.stack([self.codebook_at(head).num_restarts for head in range(self.heads)])

    @property
    def uses_all_parameters(self) -> bool:
        """Not where the code vectors are parameters to which neither a loss term nor the estimator gives a gradient."""
        reached = self.options.losses.codebook > 0 or self.options.losses.orthogonal > 0 or self.options.sync_nu > 0
        reached = reached or self.options.estimator in ("directional", "gumbel")
        return reached or not any(parameter.requires_grad for parameter in self._codebook_parameters())

    def _weight(self, book: int) -> Tensor:
        weight_KE = self.codebooks[book].weight
        if not self.affines:
            return weight_KE
        weight_KE = self.affines[book](weight_KE)
        return F.normalize(weight_KE, dim=1) if self.cosine else weight_KE

    def _weights(self) -> list[Tensor]:
        """The code vectors (K, E) of every codebook."""
        return [self._weight(book) for book in range(len(self.codebooks))]

    def _running(self) -> bool:
        return any(isinstance(affine, RunningAffine) for affine in self.affines)

    def _codebook_parameters(self) -> list[nn.Parameter]:
        return [*self.codebooks.parameters(), *self.affines.parameters()]

    def _make_optimizer(self, make: OptimizerMaker | None) -> torch.optim.Optimizer | None:
        """The codebook's own optimizer; its parameters then get no gradient elsewhere. `state_dict()` does not hold its
        state: it is to be saved like that of any optimizer."""
        if make is None:
            return None
        if self.options.codebook != "learned":
            kind = self.options.codebook
            raise ValueError(f"inplace trains the code vectors alone: it needs codebook 'learned', not {kind!r}")
        if self.options.sync_nu > 0:
            raise ValueError("sync_nu needs a gradient of the model that inplace takes away: choose one of them")
        if self.options.losses.orthogonal > 0:
            raise ValueError("orthogonal regularisation needs a gradient of the model that inplace takes away")
        parameters = self._codebook_parameters()
        for parameter in parameters:
            parameter.requires_grad_(False)
        return make(parameters)

    def _search(self, head: int, x_NE: Tensor, weight_KE: Tensor) -> Tensor:
        if self.training and self.options.sample_temp is not None:
            return sampled_codes(x_NE, weight_KE, self.options.sample_temp)
        return nearest_codes(x_NE, weight_KE)

    def _estimate(
        self,
        parts_NHE: Tensor,
        x_NHE: Tensor,
        chosen: list[Tensor],
        weights: list[Tensor],
    ) -> Tensor:
        """The chosen code vectors, with their lengths if those are kept, with the gradient of the estimator."""
        vectors_NHE = torch.stack(chosen, 1) if self.heads > 1 else chosen[0][:, None]
        source_NHE, length_NH1 = x_NHE, None
        if self.keep_length:
            source_NHE, length_NH1 = parts_NHE, parts_NHE.detach().norm(dim=-1)[..., None]
            vectors_NHE = length_NH1 * vectors_NHE
        if self.options.estimator != "gumbel":
            out_NHE = ESTIMATORS[self.options.estimator](source_NHE, vectors_NHE)
        elif not (self.training and torch.is_grad_enabled()):
            out_NHE = straight_through(source_NHE, vectors_NHE)
        else:
            temp = self.options.sample_temp
            assert temp is not None, "'gumbel' has one"
            rows = enumerate(x_NHE.unbind(1))
            means = [expected_vectors(x_NE, weights[h % len(weights)], temp) for h, x_NE in rows]
            mean_NHE = torch.stack(means, 1) if length_NH1 is None else length_NH1 * torch.stack(means, 1)
            out_NHE = straight_through(mean_NHE, vectors_NHE)
        if self.options.sync_nu > 0:
            out_NHE = synchronised(out_NHE, vectors_NHE, self.options.sync_nu)
        return out_NHE

    def _is_initialized(self) -> bool:
        """Reads the buffer until it is True, so that the host waits for the device only then."""
        if not self._known_initialized:
            self._known_initialized = bool(self.initialized)
        return self._known_initialized

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known_initialized = False
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def _initialize(self, x_NHE: Tensor, mask_N: Tensor | None, method: str, seed: int = 0) -> None:
        separate = len(self.codebooks) > 1
        for affine in self.affines:
            affine.reset()
        for head, book in enumerate(self.codebooks):
            x_NE = x_NHE[:, head] if separate else x_NHE.flatten(0, 1)
            valid_N = mask_N if separate or mask_N is None else mask_N.repeat_interleave(self.heads)
            start = kmeans(
                x_NE,
                self.num_codes[head],
                iterations=self.options.kmeans_iterations if method == "kmeans" else 0,
                cosine=self.cosine,
                valid_N=valid_N,
                seed=seed + head,
            )
            book.assign(*start)
        self.initialized.fill_(True)
        self._known_initialized = True
        self.discard_codebook_update()

    @torch.no_grad()
    def _update(self, batches: Sequence[list[CodedVectors]]) -> None:
        """Averages, restarts and moments of every codebook from the vectors that chose from it."""
        for index, (book, own) in enumerate(zip(self.codebooks, batches, strict=True)):
            affine = self.affines[index] if self.affines else None
            if isinstance(book, LearnedCodebook):
                book.update(own, None if affine is None else affine.inverse)
            else:
                book.update([_placed(batch, affine) for batch in own])
            if isinstance(affine, RunningAffine):
                x_NE, _, valid_N = (torch.cat(parts) for parts in zip(*own, strict=True))
                affine.observe(x_NE, book.weight.detach(), valid_N)


def _make_codebook(
    num_codes: int, dim: int, options: VectorOptions, decay: float, seed: int
) -> EMACodebook | LearnedCodebook:
    """One codebook of a kind in CODEBOOKS."""
    normalize, rule = options.distance == "cosine", options.restart_rule
    if options.codebook == "learned":
        return LearnedCodebook(num_codes, dim, normalize=normalize, decay=decay, restart=rule, seed=seed)
    book = TrainedEMACodebook if options.codebook == "both" else EMACodebook
    return book(num_codes, dim, decay=decay, restart=rule, normalize=normalize, seed=seed)


@torch.no_grad()
def _coded(x_NE: Tensor, codes_N: Tensor, mask_N: Tensor | None) -> CodedVectors:
    """Vectors with their codes; non-finite ones do not count."""
    x_NE = x_NE.detach()
    finite_N = x_NE.sum(-1).isfinite()
    return CodedVectors(x_NE, codes_N, finite_N if mask_N is None else finite_N & mask_N)


def _placed(batch: CodedVectors, affine: LearnedAffine | RunningAffine | None) -> CodedVectors:
    """Vectors where they lie among the code vectors before their re-parametrisation."""
    return batch if affine is None else batch._replace(x_NE=affine.inverse(batch.x_NE))
