"""The vector quantization layer of vqtorch, its groups, and what residual levels share with it.

Legend: N vectors, C features, G groups or levels, E code-vector size, K entries of one codebook.

Huh et al., Straightening Out the Straight-Through Estimator, ICML 2023 (arXiv 2305.08842).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.gradient import straight_through, synchronised
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.codebooks.affine import LearnedAffine
from rqstack.quantizers.codebooks.alternating import alternating_step
from rqstack.quantizers.codebooks.kmeans import kmeans
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqstack.quantizers.compat.vqtorch.dists import COSINE, EUCLIDEAN
from rqstack.quantizers.compat.vqtorch.nn.replace import replace_least_recent
from rqstack.quantizers.compat.vqtorch.nn.vq_base import VQBaseLayer
from rqstack.quantizers.compat.vqtorch.norms import normalize_codebook
from rqstack.quantizers.usage import entropy

KMEANS_ITERATIONS = 10


class BookSearch(NamedTuple):
    """Code vectors (N, E), their distances (N,), their codes within the codebook, and what has searched it."""

    vectors_NE: Tensor
    distance_N: Tensor
    searched: CodedVectors


@checks_arguments
class VectorQuant(VQBaseLayer):
    """Nearest of `num_codes` code vectors for every vector along `dim`, trained by the loss it returns.

    beta: share of the codebook's half of the loss, the input's half has 1 - beta. sync_nu: share of the gradient of the
    output that the codebook gets. affine_lr, affine_groups: learned re-parametrisation of the codebook. replace_freq:
    training forwards after which an unused code vector is replaced; 0, never. inplace_optimizer: makes the optimizer
    that moves the codebook in the forward, `inplace_optimizer(parameters)`; needs beta 1. dist: 'euclidean' or 'cosine'
    (code vectors of length 1; vector_normalize: with the length of the input). groups: cuts a vector into so many, with
    one codebook (share) or `num_codes / groups` entries for each. kmeans_init: from the first training forward. Other
    keywords: `VQBaseLayer`.
    """

    splits_features = True
    affine_transform: LearnedAffine  # these three only with the settings that need them
    inplace_codebook_optimizer: Optimizer
    _counts: Tensor

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        beta: float = 0.95,
        sync_nu: float = 0.0,
        affine_lr: float = 0.0,
        affine_groups: int = 1,
        replace_freq: int = 0,
        inplace_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        dist: str = "euclidean",
        vector_normalize: bool = False,
        groups: int = 1,
        share: bool = True,
        **kwargs: Any,
    ):
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1], got {beta}")
        if dist not in EUCLIDEAN + COSINE:
            raise ValueError(f"dist {dist!r} is not one of {', '.join(EUCLIDEAN + COSINE)}")
        if inplace_optimizer is not None and beta != 1:
            raise ValueError(f"inplace_optimizer needs beta 1, got {beta}")
        size = _code_vector_size(feature_size, groups) if self.splits_features else feature_size
        super().__init__(feature_size, num_codes, **{"code_vector_size": size, **kwargs})
        self.beta, self.nu, self.affine_lr, self.replace_freq = beta, sync_nu, affine_lr, replace_freq or 0
        self.cosine, self.vector_normalize = dist in COSINE, vector_normalize
        self.groups, self.share, self.num_codebooks = groups, share, 1 if share else groups
        self.input_groups = groups if self.splits_features else 1
        self.group_size = num_codes // self.num_codebooks
        if self.group_size < 1:
            raise ValueError(f"num_codes {num_codes} does not give {groups} groups a code each")
        self.codebook = nn.Embedding(self.group_size * self.num_codebooks, self.code_vector_size)
        if affine_lr > 0:
            self.affine_transform = LearnedAffine(self.group_size, self.code_vector_size, affine_groups, affine_lr)
        if inplace_optimizer is not None:
            self.inplace_codebook_optimizer = inplace_optimizer(self.codebook.parameters())
        if self.replace_freq > 0:
            self.register_buffer("_counts", torch.full((self.codebook.num_embeddings,), float(self.replace_freq)))

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(z_q like z, results). Disabled: (normalised z, {}).

        Results: z and z_q in groups (..., G, E), the distances d and codes q (..., G), counted through all codebooks,
        `loss` (scalar) and `perplexity` (scalar, of the codes of this call).
        """
        normalize_codebook(self.codebook.weight.data, self.codebook_norm)
        with full_precision(z.device):
            x = self.prepare_inputs(z, self.input_groups)
            if not self.enabled:
                return self.to_original_format(x).to(z.dtype), {}
            if self.training and self.kmeans_init and not self.data_initialized.item():
                self.initialize_codebook(x.detach().reshape(-1, self.feature_size), "kmeans")
            results, found = self._quantize_all(x)
            counted = self._end_of_forward(found)
            results |= {
                "loss": self.compute_loss(x, results["z_q"]),
                "perplexity": entropy(counted.double()).exp().float(),
            }
            z_q = self.straight_through_approximation(x, results["z_q"])
        return self.to_original_format(z_q).to(z.dtype), {"z": x, **results}

    def straight_through_approximation(self, z: Tensor, z_q: Tensor) -> Tensor:
        """z_q with the gradient of the identity in z, and `sync_nu` times it for z_q."""
        out = straight_through(z, z_q)
        return synchronised(out, z_q, self.nu) if self.nu > 0 else out

    def compute_loss(self, z_e: Tensor, z_q: Tensor) -> Tensor:
        """(1 - beta) |z_e - sg z_q|^2 + beta |sg z_e - z_q|^2, means over finite vectors; cosine: of unit vectors."""
        z_NE, q_NE = z_e.flatten(0, -2), z_q.flatten(0, -2)
        if self.cosine:
            z_NE, q_NE = F.normalize(z_NE, dim=-1), F.normalize(q_NE, dim=-1)
        valid_N = z_NE.detach().sum(-1).isfinite()
        to_codes = mean_square(z_NE, q_NE.detach(), valid_N)
        return (1 - self.beta) * to_codes + self.beta * mean_square(q_NE, z_NE.detach(), valid_N)

    def get_codebook_by_group(self, group: int) -> tuple[Tensor, int]:
        """The raw code vectors (K, E) that group or level `group` searches, and the number of the first of them."""
        offset = 0 if self.share else group * self.group_size
        return self.codebook.weight[offset : offset + self.group_size], offset

    @torch.no_grad()
    def get_codebook(self) -> Tensor:
        """All code vectors as they are searched."""
        return torch.cat([self._code_vectors(book) for book in range(self.num_codebooks)])

    def get_codebook_affine_params(self) -> tuple[Tensor, Tensor] | None:
        """Scale and bias (affine_groups, 1, E) of the code vectors; None without re-parametrisation."""
        if not hasattr(self, "affine_transform"):
            return None
        affine = self.affine_transform
        return 1 + affine.lr_scale * affine.scale[:, None], affine.lr_scale * affine.bias[:, None]

    @property
    def requires_grad(self) -> bool:
        """Whether the codebook learns."""
        return self.codebook.weight.requires_grad

    def set_requires_grad(self, requires_grad: bool) -> None:
        """Freeze or release the codebook."""
        self.codebook.weight.requires_grad = requires_grad

    def warmup_rows(self, z: Tensor) -> Tensor:
        """The vectors (N, C) that an input brings to the layer, for `initialize_codebook`."""
        return self.prepare_inputs(z, self.input_groups).reshape(-1, self.feature_size)

    @torch.no_grad()
    def initialize_codebook(self, x_NC: Tensor, method: str = "kmeans", seed: int = 0) -> None:
        """Set the code vectors from the vectors of all processes: their k-means, or ('data') some of them."""
        if hasattr(self, "affine_transform"):
            self.affine_transform.reset()
        self._fit(x_NC, method, seed)
        if self.kmeans_init:
            self.data_initialized.fill_(1)

    def _fit(self, x_NC: Tensor, method: str, seed: int) -> None:
        x_NGE = x_NC.view(len(x_NC), self.groups, self.code_vector_size)
        for book in range(self.num_codebooks):
            self._fit_book(book, x_NGE.flatten(0, 1) if self.share else x_NGE[:, book], method, seed + book)

    def _fit_book(self, book: int, x_NE: Tensor, method: str, seed: int) -> None:
        iterations = KMEANS_ITERATIONS if method == "kmeans" else 0
        weight_KE, offset = self.get_codebook_by_group(book)
        means_KE, _ = kmeans(x_NE, len(weight_KE), iterations=iterations, cosine=self.cosine, seed=seed)
        self.codebook.weight.data[offset : offset + len(weight_KE)] = means_KE

    def _quantize_all(self, x: Tensor) -> tuple[dict[str, Tensor], list[list[BookSearch]]]:
        """Results without loss for x (..., G, E), and the searches of every codebook."""
        if self.share:
            parts = [self._search(x.reshape(-1, x.shape[-1]), 0)]
            shape = tuple(x.shape)
        else:
            parts = [self._search(x[..., group, :].reshape(-1, x.shape[-1]), group) for group in range(self.groups)]
            shape = (*x.shape[:-2], 1, x.shape[-1])
        z_q = torch.cat([part.vectors_NE.view(shape) for part in parts], -2)
        d = torch.cat([part.distance_N.view(shape[:-1]) for part in parts], -1)
        codes = [part.searched.codes_N + book * self.group_size for book, part in enumerate(parts)]
        q = torch.cat([code_N.view(shape[:-1]) for code_N in codes], -1)
        return {"z_q": z_q, "d": d, "q": q}, [[part] for part in parts]

    def _search(self, x_NE: Tensor, book: int) -> BookSearch:
        target_NE = F.normalize(x_NE, dim=-1) if self.cosine else x_NE
        target_NE = target_NE.detach()
        weight_KE = self._code_vectors(book)
        codes_N = nearest_codes(target_NE, weight_KE.detach())
        searched = CodedVectors(target_NE, codes_N, target_NE.sum(-1).isfinite())
        if self.training and hasattr(self, "inplace_codebook_optimizer"):
            alternating_step(self.inplace_codebook_optimizer, lambda: [self._code_vectors(book)], [[searched]])
            weight_KE = self._code_vectors(book)
        vectors_NE = F.embedding(codes_N, weight_KE)
        squared_N = (target_NE - vectors_NE.detach()).square().sum(-1)
        if self.cosine and self.vector_normalize:
            vectors_NE = vectors_NE * x_NE.detach().norm(dim=-1, keepdim=True)
        return BookSearch(vectors_NE, 0.5 * squared_N if self.cosine else squared_N.sqrt(), searched)

    def _code_vectors(self, book: int) -> Tensor:
        """The (K, E) code vectors as they are searched, differentiable."""
        weight_KE = self.get_codebook_by_group(book)[0].float()
        if hasattr(self, "inplace_codebook_optimizer"):
            weight_KE = weight_KE.clone()  # the parameter changes before the backward pass
        if hasattr(self, "affine_transform"):
            weight_KE = self.affine_transform(weight_KE)
        return F.normalize(weight_KE, dim=-1) if self.cosine else weight_KE

    @torch.no_grad()
    def _end_of_forward(self, found: list[list[BookSearch]]) -> Tensor:
        """Replaces what has not been used for long; returns how often each entry was chosen, all codebooks joined."""
        counts, seed = [], None
        for book, searches in enumerate(found):
            entries = slice(book * self.group_size, (book + 1) * self.group_size)
            codes_N = torch.cat([search.searched.codes_N for search in searches])
            counts.append(torch.bincount(codes_N, minlength=self.group_size))
            if self.training and self.replace_freq > 0:
                seed = _draw_seed(codes_N.device) if seed is None else seed
                rows = [search.searched for search in searches]
                weight_KE, remaining_K = self.codebook.weight.data[entries], self._counts[entries]
                replace_least_recent(weight_KE, remaining_K, rows, self.replace_freq, seed=seed + book)
        return torch.cat(counts)


def _draw_seed(device: torch.device) -> int:
    """From the global generator of the first process, the same on all; drawn on the CPU."""
    return sync.from_first_rank(int(torch.randint(2**31, ())), device)


def _code_vector_size(feature_size: int, groups: int) -> int:
    if groups < 1 or feature_size % groups:
        raise ValueError(f"feature_size {feature_size} must be divisible by groups {groups}")
    return feature_size // groups


VectorQuantize = VectorQuant
