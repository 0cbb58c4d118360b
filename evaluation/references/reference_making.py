"""From images to a reference: one pass through the feature network, and the digests that say what it is a reference of.

Axes: B batch, N images, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.metric import Metric
from evaluation.metrics.spatial_frechet import SpatialFrechetDistance
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_files import FORMAT, Reference, network_of
from evaluation.scores import accumulate
from evaluation.statistics import ALONE, Gaussian, Ranks
from runtime.errors import UserError


def measure_reference(
    name: str,
    batches: Iterable[Mapping[str, Tensor]],
    extractor: FeatureExtractor,
    *,
    num_images: int,
    source: str = "",
    keep_features: bool = False,
    spatial: bool = False,
    ranks: Ranks = ALONE,
) -> Reference:
    """The reference of exactly `num_images` images; moments, and their digest, are those of any order and batch size.

    Args:
        name: the reference's part of metric names.
        batches: this rank's images: `image` uint8, `index`, and `label` if the classes are to be kept.
        num_images: over all ranks.
        source: written into the reference.
        keep_features: keep the features (4 F bytes an image) and, when all images have one, the labels.
        spatial: also the moments of the spatial features.
        ranks: the processes that share the images.

    Raises:
        ValueError: fewer than 2 images, not exactly `num_images`, or a network without spatial features.
    """
    if num_images < 2:
        raise UserError(f"{source or name}: a covariance needs at least 2 images, there are {num_images}")
    moments = FrechetDistance(extractor, {})
    metrics: list[Metric] = [moments]
    spatial_moments = SpatialFrechetDistance(extractor, {}) if spatial else None
    if spatial_moments is not None:
        metrics.append(spatial_moments)
    bank = FeatureBank(extractor.dim, num_images, extractor.device) if keep_features else None
    if bank is not None:
        metrics.append(bank)
    digest = ImageDigest()
    accumulate(
        digested(batches, digest),
        extractor,
        metrics,
        num_images,
        ranks,
    )
    digest.all_reduce(ranks.reduce, extractor.device)
    label_N = bank.label_N if bank is not None and bool((bank.label_N >= 0).all()) else None
    return Reference(
        name=name,
        moments=_on_cpu(moments.statistics.gaussian()),
        features_NF=None if bank is None else bank.features_NF,
        spatial=None if spatial_moments is None else _on_cpu(spatial_moments.statistics.gaussian()),
        label_N=label_N,
        digest=reference_digest(digest.hexdigest(), extractor),
        source=source,
        network=network_of(extractor),
        images=digest.hexdigest(),
    )


def reference_digest(images: str, extractor: FeatureExtractor, **parts: object) -> str:
    """Hash of the images' digest, the network's weights, the protocol and `parts`."""
    described = [FORMAT, images, network_of(extractor), parts]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def digested(batches: Iterable[Mapping[str, Tensor]], digest: ImageDigest) -> Iterator[Mapping[str, Tensor]]:
    """Passes batches through and adds them to a digest on the way."""
    for batch in batches:
        digest.update(batch["image"], batch.get("index"), batch.get("label"))
        yield batch


def _on_cpu(gaussian: Gaussian) -> Gaussian:
    return Gaussian(gaussian.mean_F.cpu(), gaussian.covariance_FF.cpu(), gaussian.num)
