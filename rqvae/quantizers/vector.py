"""Vector quantization: every vector, or every head of it, as one code.

Legend: N vectors, H heads (the code depth), E size of a code vector, K codebook size.

van den Oord et al., Neural Discrete Representation Learning, arXiv 1711.00937; projections and cosine distance: Yu et
al., Vector-quantized Image Modeling with Improved VQGAN, arXiv 2110.04627.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rqvae.quantizers.base import QuantizerOutput, TargetQuantizer, full_precision
from rqvae.quantizers.code_losses import VectorLosses, expected_vectors, orthogonal_term, vector_terms
from rqvae.quantizers.codebook import EMACodebook, RestartRule
from rqvae.quantizers.distance import check_temperature, nearest_codes, sampled_codes
from rqvae.quantizers.gradient import ESTIMATORS, straight_through
from rqvae.quantizers.kmeans import kmeans
from rqvae.quantizers.learned_codebook import LearnedCodebook
from rqvae.quantizers.restart import CodedVectors

DISTANCES = ("euclidean", "cosine")
CODEBOOKS = ("ema", "learned")
INIT_METHODS = ("kmeans", "data")
MAX_PENDING = 1024


class VectorQuantizer(TargetQuantizer):
    """Nearest code vector of every vector. Channels-last input (..., dim), codes (..., H).

    heads: the vector is cut into H parts with a code each, from one codebook or (separate_codebooks) from H.
    codebook_dim: E; where H * E is not dim, learned projections lead there and back. Its default is dim / H.
    distance: 'euclidean', or 'cosine' (vectors and code vectors are scaled to length 1, and the loss is between those).
    codebook: 'ema' (buffers; `update_codebook()` once per optimizer step) or 'learned' (a parameter with a loss term).
    kmeans_init: the first train-mode forward sets the codebook to the k-means of its vectors, over all processes.
    restart: which EMA entries count as unused and get a vector of the step; None, none.
    sample_temp: in train mode draw the code from softmax(-squared distance / sample_temp); None, take the nearest.
    estimator: 'straight_through', 'rotation', 'directional' (see `gradient.py`) or 'gumbel', whose gradient is that of
    the mean of the draw; 'gumbel' needs sample_temp.
    """

    def __init__(
        self,
        dim: int,
        num_codes: int,
        *,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebooks: bool = False,
        distance: str = "euclidean",
        codebook: str = "ema",
        decay: float = 0.99,
        restart: RestartRule | None = None,
        kmeans_init: bool = False,
        kmeans_iterations: int = 10,
        estimator: str = "straight_through",
        sample_temp: float | None = None,
        losses: VectorLosses | None = None,
    ):
        super().__init__()
        losses = losses or VectorLosses()
        _check_choice("distance", distance, DISTANCES)
        _check_choice("codebook", codebook, CODEBOOKS)
        _check_choice("estimator", estimator, (*ESTIMATORS, "gumbel"))
        if codebook_dim is None and dim % heads:
            raise ValueError(f"dim {dim} cannot be cut into {heads} heads; give codebook_dim")
        if estimator == "gumbel" and sample_temp is None:
            raise ValueError("estimator 'gumbel' needs sample_temp")
        if sample_temp is not None:
            check_temperature(sample_temp)
        if codebook == "ema" and losses.orthogonal > 0:
            raise ValueError("orthogonal regularisation trains the code vectors: it needs codebook 'learned'")
        self.dim, self.heads = dim, heads
        self.codebook_dim = dim // heads if codebook_dim is None else codebook_dim
        self.num_codes = (num_codes,) * heads
        self.cosine = distance == "cosine"
        self.learned = codebook == "learned"
        self.kmeans_iterations = kmeans_iterations
        self.estimator, self.sample_temp, self.losses = estimator, sample_temp, losses
        self.frozen = False
        inner = heads * self.codebook_dim
        self.project_in = nn.Linear(dim, inner) if inner != dim else None
        self.project_out = nn.Linear(inner, dim) if inner != dim else None
        self.codebooks = nn.ModuleList(
            LearnedCodebook(num_codes, self.codebook_dim, normalize=self.cosine)
            if self.learned
            else EMACodebook(
                num_codes,
                self.codebook_dim,
                decay=decay,
                restart_unused_codes=restart or False,
                normalize=self.cosine,
            )
            for _ in range(heads if separate_codebooks else 1)
        )
        self.register_buffer("initialized", torch.tensor(not kmeans_init))
        self._known_initialized = not kmeans_init
        self._pending: list[list[CodedVectors]] = [[] for _ in self.codebooks]

    def codebook_at(self, head: int) -> EMACodebook | LearnedCodebook:
        """The codebook that head `head` searches."""
        return self.codebooks[head % len(self.codebooks)]

    def codebook(self, depth: int) -> torch.Tensor:
        """The (K, E) code vectors of head `depth`, fp32."""
        return self.codebook_at(depth).weight

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) every change of the code vectors: updates, k-means start, and learning."""
        self.frozen = frozen
        for parameter in self.codebooks.parameters():
            parameter.requires_grad_(not frozen)
        if frozen:
            self.discard_codebook_update()

    def forward(
        self, z: torch.Tensor, mask: torch.Tensor | None = None, given: torch.Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize z (..., dim) in any float dtype; arithmetic is fp32.

        mask: optional, boolean (...); False positions get codes but count neither in the loss nor in the codebook.
        given: codes (..., H) to use instead of the nearest ones, as a search over several quantizers finds them.
        loss: the weighted sum of the terms of `VectorLosses`, each averaged over vectors and heads.
        """
        with full_precision(z.device):
            x_NHE = self._to_heads(z)
            mask_N = None if mask is None else mask.reshape(-1)
            if self.training and not self.frozen and not self._is_initialized():
                self._initialize(x_NHE, mask_N, "kmeans")
            weights = [book.weight for book in self.codebooks]
            codes, outputs, terms = [], [], []
            for head, x_NE in enumerate(x_NHE.unbind(1)):
                weight_KE = weights[head % len(weights)]
                if given is None:
                    codes_N = self._search(head, x_NE.detach(), weight_KE.detach())
                else:
                    codes_N = given[..., head].reshape(-1)
                vectors_NE = F.embedding(codes_N, weight_KE)
                if self.training and not self.frozen and not self.learned:
                    self._gather(head, x_NE.detach(), codes_N, mask_N)
                codes.append(codes_N)
                outputs.append(self._estimate(x_NE, vectors_NE, weight_KE))
                terms.append(vector_terms(self.losses, x_NE, vectors_NE, codes_N, weight_KE, mask_N))
            quantized = self._from_heads(torch.stack(outputs, 1) if self.heads > 1 else outputs[0][:, None], z.shape)
            mean = {name: sum(term[name] for term in terms) / self.heads for name in terms[0]}
            if self.losses.orthogonal > 0:
                mean["orthogonal"] = orthogonal_term(self.losses, weights, codes, mask_N)
            loss = sum(mean.values(), torch.zeros((), device=z.device))
        return QuantizerOutput(quantized.to(z.dtype), torch.stack(codes, -1).view(*z.shape[:-1], -1), loss, mean)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., H) -> vectors (..., dim), equal to `forward(...).quantized`; missing last heads count as zero."""
        vectors = self.head_vectors(codes)
        vectors = F.pad(vectors, (0, 0, 0, self.heads - codes.shape[-1]))
        with full_precision(codes.device):
            return self._from_heads(vectors.flatten(-2), (*codes.shape[:-1], self.dim))

    def head_vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., H) -> the code vector of every head (..., H, E), before the output projection."""
        self._check_codes(codes)
        return torch.stack([F.embedding(codes[..., h], self.codebook(h)) for h in range(codes.shape[-1])], -2)

    def embed_with_depth(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., H) -> the part of every head (..., H, dim); they add up to `decode`. Head 0 has the bias."""
        parts, size = [], self.codebook_dim
        with full_precision(codes.device):
            for head, vectors in enumerate(self.head_vectors(codes).unbind(-2)):
                if self.project_out is None:
                    parts.append(F.pad(vectors, (head * size, (self.heads - head - 1) * size)))
                    continue
                weight = self.project_out.weight.float()[:, head * size : (head + 1) * size]
                parts.append(F.linear(vectors, weight, None if head else self.project_out.bias.float()))
        return torch.stack(parts, -2)

    @torch.no_grad()
    def targets(
        self, z: torch.Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The vector every head searches with (..., H, E) fp32 and its code (..., H), nearest or drawn."""
        with full_precision(z.device):
            x_NHE = self._to_heads(z)
            books = [(x_NHE[:, h], self.codebook(h)) for h in range(self.heads)]
            found = [sampled_codes(*pair, temp, generator) if stochastic else nearest_codes(*pair) for pair in books]
        return x_NHE.view(*z.shape[:-1], *x_NHE.shape[1:]), torch.stack(found, -1).view(*z.shape[:-1], -1)

    def initialize_codebook(
        self, z: torch.Tensor, mask: torch.Tensor | None = None, method: str = "kmeans", seed: int = 0
    ) -> None:
        """Set the codebook from z (..., dim): 'kmeans', or 'data' (vectors drawn from it). All processes together."""
        _check_choice("method", method, INIT_METHODS)
        with torch.no_grad(), full_precision(z.device):
            self._initialize(self._to_heads(z), None if mask is None else mask.reshape(-1), method, seed)

    def update_codebook(self) -> None:
        """One EMA update per codebook over all vectors gathered since the last call; none, no update.

        All processes must call it after the same number of forwards.
        """
        for book, batches in zip(self.codebooks, self._pending, strict=True):
            if batches:
                book.update(batches)
        self.discard_codebook_update()

    def discard_codebook_update(self) -> None:
        """Forget the vectors gathered since the last update."""
        self._pending = [[] for _ in self.codebooks]

    def restart_counts(self) -> torch.Tensor:
        """Entries restarted since construction, int64 (H,)."""
        return torch.stack([self.codebook_at(head).num_restarts for head in range(self.heads)])

    def _to_heads(self, z: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != self.dim:
            raise ValueError(f"vectors have {z.shape[-1]} channels in their last dim; the quantizer takes {self.dim}")
        x = z.float()
        if self.project_in is not None:
            x = _linear(self.project_in, x)
        x_NHE = x.reshape(-1, self.heads, self.codebook_dim)
        return F.normalize(x_NHE, dim=-1) if self.cosine else x_NHE

    def _from_heads(self, vectors_NHE: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        vectors = vectors_NHE.reshape(*shape[:-1], self.heads * self.codebook_dim)
        return vectors if self.project_out is None else _linear(self.project_out, vectors)

    def _search(self, head: int, x_NE: torch.Tensor, weight_KE: torch.Tensor) -> torch.Tensor:
        if self.training and self.sample_temp is not None:
            return sampled_codes(x_NE, weight_KE, self.sample_temp)
        return nearest_codes(x_NE, weight_KE)

    def _estimate(self, x_NE: torch.Tensor, vectors_NE: torch.Tensor, weight_KE: torch.Tensor) -> torch.Tensor:
        if self.estimator != "gumbel":
            return ESTIMATORS[self.estimator](x_NE, vectors_NE)
        if not (self.training and torch.is_grad_enabled()):
            return straight_through(x_NE, vectors_NE)
        return straight_through(expected_vectors(x_NE, weight_KE, self.sample_temp), vectors_NE)

    def _is_initialized(self) -> bool:
        """Reads the buffer until it is True, so that the host waits for the device only then."""
        if not self._known_initialized:
            self._known_initialized = bool(self.initialized)
        return self._known_initialized

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._known_initialized = False
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def _initialize(self, x_NHE: torch.Tensor, mask_N: torch.Tensor | None, method: str, seed: int = 0) -> None:
        separate = len(self.codebooks) > 1
        for head, book in enumerate(self.codebooks):
            x_NE = x_NHE[:, head] if separate else x_NHE.flatten(0, 1)
            valid_N = mask_N if separate or mask_N is None else mask_N.repeat_interleave(self.heads)
            start = kmeans(
                x_NE,
                self.num_codes[head],
                iterations=self.kmeans_iterations if method == "kmeans" else 0,
                cosine=self.cosine,
                valid_N=valid_N,
                seed=seed + head,
            )
            book.assign(*start)
        self.initialized.fill_(True)
        self._known_initialized = True
        self.discard_codebook_update()

    @torch.no_grad()
    def _gather(self, head: int, x_NE: torch.Tensor, codes_N: torch.Tensor, mask_N: torch.Tensor | None) -> None:
        """Remember the vectors one head has just coded, without non-finite ones."""
        pending = self._pending[head % len(self._pending)]
        if len(pending) >= MAX_PENDING * self.heads:
            raise RuntimeError(f"{MAX_PENDING} train-mode forwards without update_codebook(): call it once per step")
        valid_N = x_NE.sum(-1).isfinite()
        pending.append(CodedVectors(x_NE, codes_N, valid_N if mask_N is None else valid_N & mask_N))


def _linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """In fp32, whatever dtype the model was cast to."""
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
