"""References that are computed once: kept under a key that hashes the images themselves, the network and the protocol.

The key is taken from the pixels at every use, so a changed image, weight file or resize asks for another file, and a
stale one is never read. Hashing costs a pass over the images, without the network.

Axes: B batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_files import Reference, read_reference, save_reference
from evaluation.references.reference_making import measure_reference, reference_digest
from evaluation.statistics import ALONE, Ranks, Reduce, no_reduce
from runtime.errors import one_line


def cached_reference(
    directory: str | Path | None,
    name: str,
    batches: Callable[[], Iterable[Mapping[str, Tensor]]],
    extractor: FeatureExtractor,
    *,
    num_images: int,
    source: str = "",
    keep_features: bool = False,
    spatial: bool = False,
    ranks: Ranks = ALONE,
) -> Reference:
    """`measure_reference`, unless the same was measured before.

    Every rank calls it. The first process writes, under a temporary name that is renamed when complete; all ranks must
    see the file, else all measure. A damaged file is measured again, with a warning, and so is one that cannot be
    written.

    Args:
        directory: where references are kept; None keeps none.
        batches: called once for hashing, and once more when the features have to be taken: this rank's images
            (`image` uint8, `index`, perhaps `label`).
        The others: see `measure_reference`.

    Raises:
        ValueError: see `measure_reference`.
    """
    measure = partial(
        measure_reference,
        name,
        extractor=extractor,
        num_images=num_images,
        source=source,
        keep_features=keep_features,
        spatial=spatial,
        ranks=ranks,
    )
    if directory is None:
        return measure(batches())
    key = cache_key(batches(), extractor, keep_features=keep_features, spatial=spatial, reduce=ranks.reduce)
    path = Path(directory).expanduser() / f"reference-{key[:40]}.npz"
    found = _read(path, extractor, key)
    if _on_every_rank(found is not None, extractor, ranks):
        assert found is not None
        return replace(found, name=name, source=source or found.source, cache_key="")
    reference = measure(batches())
    if ranks.rank == 0:
        _write(replace(reference, cache_key=key), path)
    return reference


def cache_key(
    batches: Iterable[Mapping[str, Tensor]],
    extractor: FeatureExtractor,
    *,
    keep_features: bool = False,
    spatial: bool = False,
    reduce: Reduce = no_reduce,
) -> str:
    """64 hex digits over all ranks' images, the network, the protocol and what is kept.

    Moments are the same in any order, so their key is too; kept features have an order, and labels where there are any.
    """
    digest = ImageDigest(ordered=keep_features, labelled=keep_features)
    for batch in batches:
        digest.update(batch["image"], batch.get("index"), batch.get("label"))
    digest.all_reduce(reduce, extractor.device)
    return reference_digest(digest.hexdigest(), extractor, features=keep_features, spatial=spatial)


def _read(path: Path, extractor: FeatureExtractor, key: str) -> Reference | None:
    if not path.is_file():
        return None
    try:
        reference = read_reference(path, extractor)
        if reference.cache_key != key:
            raise ValueError("it is of other images, or of an earlier version")
        return reference
    except ValueError as error:
        warnings.warn(f"ignoring the cached reference {path}: {one_line(error)}", stacklevel=2)
        return None


def _write(reference: Reference, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_reference(reference, path)
    except (ValueError, OSError) as error:
        warnings.warn(f"the reference is not kept: {one_line(error)}", stacklevel=2)


def _on_every_rank(found: bool, extractor: FeatureExtractor, ranks: Ranks) -> bool:
    """Whether all ranks have found the file: else some would wait in sums that the others never enter."""
    count = torch.tensor([int(found)], device=extractor.device)
    ranks.reduce(count)
    return int(count) == ranks.world_size
