"""Making, showing and checking references: what `python -m scoring.reference` does after its flags are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from evaluation.metrics.frechet import frechet_between, frechet_warnings
from evaluation.networks.feature_networks import FeatureExtractor, build_features
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_files import Reference, read_reference, save_reference
from evaluation.references.reference_making import digested, measure_reference
from runtime.errors import UserError, first_few, say, warn
from scoring.image_source import ImageSource, default_name, open_source
from scoring.settings import DATASET_PREFIX, ReferenceSettings

SAME_MOMENTS = 1e-3
"""`check` of published moments: the largest Frechet distance to the source, as a share of the covariance's trace."""


def device_of(settings: ReferenceSettings) -> str:
    """The device that was asked for, else a GPU where there is one."""
    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")


def open_images(settings: ReferenceSettings, spec: str) -> ImageSource:
    """The source, with a line on stderr about what was left out."""
    source = open_source(
        spec,
        dataset=settings.dataset,
        skip_unreadable=settings.skip_unreadable,
        mixed_sizes=settings.mixed_sizes,
    )
    if source.skipped:
        left_out = f"{len(source.skipped)} unreadable images of {spec} left out: {first_few(source.skipped)}"
        warn(left_out)
    return source


def build_extractor(settings: ReferenceSettings) -> FeatureExtractor:
    """The feature network of the flags."""
    if settings.features != "classifier":
        return build_features(
            settings.features,
            device=device_of(settings),
            weights=settings.features_weights,
            resize=settings.features_resize,
        )
    spec = settings.classifier_data
    if spec is None and settings.source.startswith(DATASET_PREFIX):
        spec = ":".join([*settings.source.split(":")[:2], "train"])
    if spec is None:
        raise UserError("--features classifier needs --classifier-data: the labelled images it is trained on")
    images = open_images(settings, spec)
    num_classes = 0
    for batch in images.batches(settings.batch_size):
        if "label" not in batch:
            raise UserError(f"{spec} has no labels to train a classifier on")
        num_classes = max(num_classes, 1 + int(batch["label"].max()))
    return build_features(
        "classifier",
        device=device_of(settings),
        train=lambda: images.batches(settings.batch_size),
        num_classes=num_classes,
        cache_dir=settings.features_cache,
    )


def make(settings: ReferenceSettings) -> None:
    """Measures SOURCE and writes the reference."""
    name = settings.name or default_name(settings.source)
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--name {name!r} goes into metric names: letters, digits, '.', '+', '-' and '_' only")
    if settings.output and Path(settings.output).suffix != ".npz":
        raise UserError(f"--output {settings.output!r} must end in .npz")
    source = open_images(settings, settings.source)
    if len(source) < 2:
        raise UserError(f"{settings.source}: a covariance needs at least 2 images, there is {len(source)}")
    extractor = build_extractor(settings)
    reference = measure_reference(
        name,
        source.batches(settings.batch_size),
        extractor,
        num_images=len(source),
        source=settings.source,
        keep_features=settings.keep_features,
        spatial=settings.spatial,
    )
    output = Path(settings.output or f"{name}_{_file_name(extractor.label)}_{_file_name(extractor.resize)}.npz")
    save_reference(reference, output)
    for line in frechet_warnings(reference.moments, name):
        warn(line)
    say(f"{len(source)} images of {settings.source} to {output}")
    show_reference(reference)


def show_reference(reference: Reference) -> None:
    """A table for people and a line of JSON for programs."""
    moments = reference.moments
    rows = {
        "name": reference.name,
        "source": reference.source,
        "num_images": moments.num or "not recorded",
        "dim": len(moments.mean_F),
        "network": f"{reference.network['label']}_{reference.network['resize']}"
        if reference.network
        else "not recorded",
        "weights": reference.network.get("fingerprint", "not recorded"),
        "features": reference.features_NF is not None,
        "classes": len(reference.classes or {}),
        "spatial_dim": 0 if reference.spatial is None else len(reference.spatial.mean_F),
        "mean_norm": round(float(moments.mean_F.norm()), 6),
        "trace": round(float(moments.covariance_FF.trace()), 6),
        "images": reference.images or "not recorded",
        "digest": reference.digest,
    }
    for key, value in rows.items():
        say(f"  {key:<11} {value}")
    say(json.dumps(rows))


def check(settings: ReferenceSettings) -> None:
    """Whether FILE is a reference of SOURCE: by digest where FILE records one, else by its moments."""
    reference = read_reference(settings.file)
    source = open_images(settings, settings.source)
    if reference.images:
        digest = ImageDigest()
        for _ in digested(source.batches(settings.batch_size), digest):
            pass
        if digest.hexdigest() != reference.images:
            raise UserError(
                f"{settings.file} was made from other images than {settings.source}: {reference.moments.num} with "
                f"digest {reference.images[:12]}, not {len(source)} with {digest.hexdigest()[:12]}"
            )
        say(f"ok: {settings.file} was made from exactly the {len(source)} images of {settings.source}")
        return
    extractor = build_extractor(settings)
    reference.check_fits(extractor)
    measured = measure_reference(reference.name, source.batches(settings.batch_size), extractor, num_images=len(source))
    distance = frechet_between(reference.moments, measured.moments)
    share = distance / max(float(reference.moments.covariance_FF.trace()), 1e-300)
    text = f"Frechet distance {distance:.6g} to the {len(source)} images of {settings.source} ({extractor.label})"
    if share > SAME_MOMENTS:
        raise UserError(
            f"{settings.file} has other moments: {text}, {share:.2g} of its trace; expected {SAME_MOMENTS:g}"
        )
    say(f"ok: {settings.file} records no images; {text}")


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
