"""A reference from whatever file holds one: moments are read, images are measured."""

from __future__ import annotations

from pathlib import Path

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.reference_files import Reference, read_reference
from evaluation.references.reference_making import measure_reference
from runtime.errors import UserError
from runtime.npz import read_headers
from scoring.image_source import ArrayImages


def load_reference(path: str | Path, extractor: FeatureExtractor | None = None, *, batch_size: int = 64) -> Reference:
    """The reference in an `.npz` file: ours, published moments, or a batch of images, whose features are then taken.

    Args:
        extractor: what it has to fit; needed for a file of images.

    Raises:
        UserError: no such file, a damaged one, one of another feature network, or images without `extractor`.
    """
    path = Path(path).expanduser()
    headers = read_headers(path)
    if "mu" in headers or "sigma" in headers:
        return read_reference(path, extractor)
    images = ArrayImages(path)
    if extractor is None:
        raise UserError(f"{path} holds images, not moments: make a reference of it with a feature network first")
    return measure_reference(path.stem, images.batches(batch_size), extractor, num_images=len(images), source=str(path))
