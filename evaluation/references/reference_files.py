"""References on disk: moments, and what else was kept, of the images that a score compares with.

Three kinds of `.npz` file are read: ours; published statistics (`mu`, `sigma`); the reference batches of the ADM
evaluator (`mu`, `sigma`, `mu_s`, `sigma_s`, or images `arr_0`). Nothing is unpickled. Axes: F features, S spatial
features, N images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.networks.weight_files import file_sha256
from evaluation.statistics import Gaussian
from runtime.errors import UserError
from runtime.npz import Header, read_arrays, read_headers, write_npz

FORMAT = "rq-reference-1"
_ARRAYS = ("mu", "sigma", "num_images", "mu_s", "sigma_s", "features", "labels", "meta")
_ASYMMETRY = 1e-3  # relative; published covariances in float32 are symmetric to about 1e-6


@dataclass(frozen=True)
class Reference:
    """What a score compares with.

    Attributes:
        name: its part of a metric's name (`..._vs_<name>`).
        moments: mean and covariance of the features; `num` is 0 where a published file does not say it.
        features_NF: float32 features of all images, in their order, if they were kept (KID, precision and recall).
        label_N: int64 classes of these images, if they have any.
        spatial: moments of the spatial features (sFID), if known.
        digest: hash of everything that decides the numbers: images, network, protocol; of a published file: its own.
        source: where the images came from, as the user wrote it.
        network: `features`, `label`, `resize`, `dim`, `fingerprint` of the feature network; empty where not recorded.
        images: digest of the images alone (`evaluation.references.image_digest`); empty where not recorded.
        cache_key: what a cache keeps it under; empty outside of one.
    """

    name: str
    moments: Gaussian
    features_NF: Tensor | None = None
    spatial: Gaussian | None = None
    label_N: Tensor | None = None
    digest: str = ""
    source: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    images: str = ""
    cache_key: str = ""

    @property
    def classes(self) -> dict[int, Tensor] | None:
        """Features of every class, None without features or labels."""
        if self.features_NF is None or self.label_N is None:
            return None
        return {label: self.features_NF[self.label_N == label] for label in self.label_N.unique().tolist()}

    def check_fits(self, extractor: FeatureExtractor) -> None:
        """UserError when these are not numbers of that feature network."""
        dim = len(self.moments.mean_F)
        if dim != extractor.dim:
            raise UserError(f"reference {self.name} has {dim} features, {extractor.label} has {extractor.dim}")
        mine = (extractor.fingerprint, extractor.label, extractor.resize)
        theirs = tuple(self.network.get(key, "") for key in ("fingerprint", "label", "resize"))
        if self.network and theirs != mine:
            raise UserError(
                f"reference {self.name} was made with {theirs[1]}_{theirs[2]} (weights {theirs[0][:8]}), "
                f"not with {mine[1]}_{mine[2]} (weights {mine[0][:8]})"
            )
        spatial_dim = getattr(extractor, "spatial_dim", None)
        if self.spatial is not None and spatial_dim not in (None, len(self.spatial.mean_F)):
            raise UserError(
                f"reference {self.name} has {len(self.spatial.mean_F)} spatial features, "
                f"{extractor.label} has {spatial_dim}"
            )


def network_of(extractor: FeatureExtractor) -> dict[str, Any]:
    """What a reference records of a feature network."""
    return {
        "features": extractor.name,
        "label": extractor.label,
        "resize": extractor.resize,
        "dim": extractor.dim,
        "fingerprint": extractor.fingerprint,
    }


def save_reference(reference: Reference, path: str | os.PathLike[str]) -> None:
    """Writes our `.npz` format, which other FID tools read too (`mu`, `sigma`); complete or not at all.

    Raises:
        UserError: the file cannot be written, or its name does not end in `.npz`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"a reference is an .npz file, not {path.name}")
    moments = reference.moments
    arrays = {
        "mu": moments.mean_F,
        "sigma": moments.covariance_FF,
        "features": reference.features_NF,
        "labels": reference.label_N,
    }
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean_F, "sigma_s": reference.spatial.covariance_FF}
    meta = {
        "format": FORMAT,
        "name": reference.name,
        "source": reference.source,
        "digest": reference.digest,
        "images": reference.images,
        "cache_key": reference.cache_key,
        "network": dict(reference.network),
    }
    found = {name: tensor.cpu().numpy() for name, tensor in arrays.items() if tensor is not None}
    write_npz(path, {**found, "num_images": np.asarray(moments.num), "meta": np.asarray(json.dumps(meta))})


def read_reference(path: str | os.PathLike[str], extractor: FeatureExtractor | None = None) -> Reference:
    """The reference in a file that holds moments.

    Args:
        extractor: the feature network that it has to fit; None takes any.

    Raises:
        UserError: no such file, a damaged one, one without moments, moments that cannot be, or another network's.
    """
    path = Path(path).expanduser()
    headers = read_headers(path)
    if not {"mu", "sigma"} <= set(headers):
        raise UserError(f"{path} is no reference: it has {', '.join(headers) or 'nothing'}, not mu and sigma")
    _check_shapes(path, headers)
    arrays = read_arrays(path, _ARRAYS)
    meta = _meta(path, arrays)
    num = _count(path, arrays["num_images"]) if "num_images" in arrays else 0
    features_NF, label_N = _features(path, arrays)
    reference = Reference(
        name=str(meta.get("name") or path.stem),
        moments=_gaussian(path, arrays["mu"], arrays["sigma"], num),
        features_NF=features_NF,
        spatial=_gaussian(path, arrays["mu_s"], arrays["sigma_s"], num) if "mu_s" in arrays else None,
        label_N=label_N,
        digest=str(meta.get("digest") or file_sha256(path)),
        source=str(meta.get("source") or path),
        network=meta.get("network") or {},
        images=str(meta.get("images") or ""),
        cache_key=str(meta.get("cache_key") or ""),
    )
    if extractor is not None:
        reference.check_fits(extractor)
    return reference


def _check_shapes(path: Path, headers: Mapping[str, Header]) -> None:
    """Before anything is read: the sizes belong together."""
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        if mean not in headers and covariance not in headers:
            continue
        shapes = [headers[name].shape if name in headers else None for name in (mean, covariance)]
        dim = shapes[0][-1] if shapes[0] else None
        if shapes[0] not in ((dim,), (1, dim)) or not dim or shapes[1] != (dim, dim):
            raise UserError(f"{path}: {mean} has shape {shapes[0]} and {covariance} {shapes[1]}; expected (F,), (F, F)")
    rows = headers["features"].shape if "features" in headers else None
    if rows is not None and (len(rows) != 2 or rows[1] != headers["sigma"].shape[0]):
        raise UserError(f"{path}: features have shape {rows}; expected (N, {headers['sigma'].shape[0]})")
    for name, kinds, axes in (("num_images", "iuf", None), ("features", "f", 2), ("labels", "iu", 1)):
        if name in headers and (headers[name].dtype.kind not in kinds or len(headers[name].shape) != (axes or 0)):
            raise UserError(f"{path}: {name} has shape {headers[name].shape} and type {headers[name].dtype}")
    if "labels" in headers and rows and headers["labels"].shape != rows[:1]:
        raise UserError(f"{path}: labels have shape {headers['labels'].shape}, for {rows[0]} features")


def _count(path: Path, array: np.ndarray) -> int:
    if not np.isfinite(array) or array < 0 or array != int(array):
        raise UserError(f"{path}: num_images is {array}, which is no number of images")
    return int(array)


def _features(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    """Features and labels of the images, where they were kept."""
    features, labels = arrays.get("features"), arrays.get("labels")
    features_NF = None if features is None else torch.from_numpy(features.astype(np.float32))
    if features_NF is not None and not features_NF.isfinite().all():
        raise UserError(f"{path}: the features hold values that are not finite")
    return features_NF, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def _gaussian(path: Path, mean: np.ndarray, covariance: np.ndarray, num: int) -> Gaussian:
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(f"{path}: moments must be floating point, got {mean.dtype} and {covariance.dtype}")
    covariance_FF = torch.from_numpy(covariance.astype(np.float64))
    mean_F = torch.from_numpy(mean.astype(np.float64)).reshape(-1)
    if not (mean_F.isfinite().all() and covariance_FF.isfinite().all()):
        raise UserError(f"{path}: the moments hold values that are not finite")
    if (covariance_FF.diagonal() < 0).any():
        raise UserError(f"{path}: the covariance has negative variances")
    if (covariance_FF - covariance_FF.T).abs().max() > _ASYMMETRY * covariance_FF.abs().max():
        raise UserError(f"{path}: the covariance is not symmetric")
    return Gaussian(mean_F, (covariance_FF + covariance_FF.T) / 2, num)


def _meta(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What our own files say about themselves; empty for others'."""
    if "meta" not in arrays:
        return {}
    try:
        meta = json.loads(str(arrays["meta"]))
    except (ValueError, RecursionError):
        meta = None
    known = isinstance(meta, dict) and meta.get("format") == FORMAT and _is_network(meta.get("network") or {})
    if not known:
        raise UserError(f"{path}: its description is not one of {FORMAT}; make the reference again")
    return meta


def _is_network(described: object) -> bool:
    """Whether this is what `network_of` gives, or nothing."""
    if not isinstance(described, dict):
        return False
    words = ("features", "label", "resize", "fingerprint")
    return all(isinstance(described.get(word, ""), str) for word in words)
