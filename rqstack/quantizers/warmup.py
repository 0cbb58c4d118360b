"""Start codebooks from data before training.

Legend: N vectors, E code-vector size, D code depth.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rqstack.arguments import check_count, shown
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.codebooks.kmeans import kmeans
from rqstack.quantizers.codebooks.moving_average import EMACodebook
from rqstack.quantizers.methods.residual_published import ResidualQuantizer
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer
from rqstack.quantizers.methods.vector import INIT_METHODS, VectorQuantizer

KMEANS_ITERATIONS = 10
# Quantizers and levels draw with different seeds: the same rows again would be those that have no residual any more.
SEEDS_APART = 1000


@runtime_checkable
class StartsFromRows(Protocol):
    """A module whose codebook can start from vectors."""

    def initialize_codebook(self, x_NE: Tensor, method: str = ..., seed: int = ...) -> None:
        """Set the codebook from the vectors (N, E) of all processes."""


@runtime_checkable
class BringsRows(StartsFromRows, Protocol):
    """A module of another layout, which says itself what it quantizes."""

    def warmup_rows(self, z: Tensor, /, **which: Tensor) -> Tensor:
        """The vectors (N, E) of an input that are quantized; which: `mask` or `lens`, where it knows them."""


@checks_arguments
def codebook_warmup(
    model: nn.Module,
    loader: Iterable[Any],
    method: str = "data",
    num_batches: int = 128,
    *,
    max_vectors: int = 2**18,
    seed: int = 0,
) -> list[str]:
    """Set the codebooks of all quantizers in `model` from the vectors that reach them. Returns their names.

    loader: batches for `model(batch)`; of a tuple or list the first entry is used. It is iterated once per quantizer:
    quantizers are warmed in the order in which they are called, each on what it sees after those before it have been
    warmed, and residual levels likewise. method: 'data' (vectors drawn from all batches) or 'kmeans' (their k-means).
    max_vectors: kept per process and quantizer, an equal share drawn from every batch.

    The model runs in eval mode without gradients; modes, the global random state, weights and gathered updates are
    afterwards as before, moving averages are those of the new code vectors. All processes call it together and get the
    same codebooks. ValueError: unknown method, a model without such a quantizer, an empty loader.
    """
    if method not in INIT_METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(INIT_METHODS)}")
    check_count("num_batches", num_batches)
    check_count("max_vectors", max_vectors)
    modes = {module: module.training for module in model.modules()}
    devices = [tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())]
    cuda = sorted({device.index or 0 for device in devices if device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(cuda), torch.no_grad():
            batches = _Batches(loader, num_batches, max_vectors // max(1, num_batches) + 1, devices[:1], seed)
            order = _call_order(model, batches)
            for index, (_, quantizer) in enumerate(order):
                _fit(quantizer, batches.seen_by(quantizer, model), method, seed + SEEDS_APART * index)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [name for name, _ in order]


class _Batches:
    """Runs the model over the first batches of the loader and keeps a share of what reaches a quantizer."""

    def __init__(self, loader: Iterable[Any], number: int, share: int, device: list[torch.device], seed: int):
        self.loader, self.number, self.share, self.device, self.seed = loader, number, share, device, seed

    def run(self, model: nn.Module, number: int) -> None:
        batch = None
        for batch in itertools.islice(self.loader, number):
            inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
            if self.device and not hasattr(inputs, "to"):
                raise TypeError(f"a batch must be a tensor, or start with one, got {shown(inputs)}")
            model(inputs.to(self.device[0]) if self.device else inputs)
        if batch is None:
            raise ValueError("codebook_warmup: the loader is empty (it is iterated once per quantizer)")

    def seen_by(self, quantizer: nn.Module, model: nn.Module) -> Tensor:
        """(N, E) vectors on the code grid of one quantizer, without masked and non-finite ones."""
        generator, kept = torch.Generator().manual_seed(self.seed), []

        def keep(z: Tensor, **which: Tensor) -> None:
            mask = which.get("mask")
            if isinstance(quantizer, ResidualQuantizer):
                z = quantizer.targets(z)[0][..., 0, :]
            elif isinstance(quantizer, BringsRows):
                taken = inspect.signature(quantizer.warmup_rows).parameters
                z, mask = quantizer.warmup_rows(z, **{n: v for n, v in which.items() if n in taken}), None
            rows = z.detach().float().reshape(-1, z.shape[-1])
            valid = rows.sum(-1).isfinite()
            rows = rows[valid if mask is None else valid & mask.reshape(-1)]
            kept.append(rows[torch.randperm(len(rows), generator=generator)[: self.share].to(rows.device)])

        with _listening(quantizer, keep):
            self.run(model, self.number)
        return torch.cat(kept)


class _listening:
    """Calls `keep(z, mask=, lens=)` before every forward of a quantizer, with those of the two that it was given."""

    def __init__(self, quantizer: nn.Module, keep: Callable[..., None]):
        signature = inspect.signature(quantizer.forward)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = signature.bind(*args, **kwargs).arguments
            which = {name: given[name] for name in ("mask", "lens") if given.get(name) is not None}
            keep(next(iter(given.values())), **which)

        self.handle = quantizer.register_forward_pre_hook(hook, with_kwargs=True)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


def _call_order(model: nn.Module, batches: _Batches) -> list[tuple[str, nn.Module]]:
    """The quantizers with codebooks to warm, by first call on one batch."""
    names = {module: name for name, module in model.named_modules() if _can_warm(module)}
    inside = {inner for outer in names for inner in outer.modules() if inner is not outer}
    names = {module: name for module, name in names.items() if module not in inside}  # a stack warms its levels
    if not names:
        raise ValueError("codebook_warmup: the model has no quantizer with a codebook to warm")
    called: dict[nn.Module, None] = {}
    handles = [_listening(module, lambda z, module=module, **which: called.setdefault(module)) for module in names]
    try:
        batches.run(model, 1)
    finally:
        for handle in handles:
            handle.__exit__()
    return [(names[module], module) for module in called]


def _can_warm(module: nn.Module) -> bool:
    if isinstance(module, (VectorQuantizer, ResidualVectorQuantizer)):
        return not module.frozen
    return isinstance(module, (ResidualQuantizer, BringsRows))


def _fit(quantizer: nn.Module, x_NE: Tensor, method: str, seed: int) -> None:
    if isinstance(quantizer, ResidualQuantizer):
        with full_precision(x_NE.device):
            _fit_residual(quantizer, x_NE, method, seed)
    else:
        assert isinstance(quantizer, StartsFromRows)
        quantizer.initialize_codebook(x_NE, method=method, seed=seed)


def _fit_residual(quantizer: ResidualQuantizer, x_NE: Tensor, method: str, seed: int) -> None:
    """Every level on what the levels before it leave over; a shared codebook on what it sees at all depths once it has
    been fitted to those of the first."""
    residual_NE, seen = x_NE, []
    for depth in range(len(quantizer.num_codes)):
        book = quantizer.codebook_at(depth)
        if depth == 0 or not quantizer.shared:
            _assign(book, residual_NE, method, seed + depth)
        seen.append(residual_NE)
        residual_NE = residual_NE - book.embed(book.nearest(residual_NE))
    if quantizer.shared and len(seen) > 1:
        _assign(quantizer.codebook_at(0), torch.cat(seen), method, seed + len(seen))


def _assign(book: EMACodebook, x_NE: Tensor, method: str, seed: int) -> None:
    iterations = KMEANS_ITERATIONS if method == "kmeans" else 0
    book.assign(*kmeans(x_NE, len(book.weight), iterations=iterations, cosine=book.normalize, seed=seed))
