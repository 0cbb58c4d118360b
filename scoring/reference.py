"""References: what a score compares with, made once from any images and read from any of the usual files.

    python -m scoring.reference make SOURCE --output cifar10-train.npz
    python -m scoring.reference show FILE
    python -m scoring.reference check FILE SOURCE

SOURCE is a folder of images, an `.npz` or `.npy` file, `.tar` shards, or `dataset:NAME:SPLIT` (`key=value` words are
those of a config's `dataset` section, such as `resolution=256`). FILE is an `.npz` file: ours, published statistics
(`mu`, `sigma`), or a reference batch of the ADM evaluator. Exit code 2 and one line for whatever is wrong; `check` ends
the same way when FILE is not a reference of SOURCE.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data import DatasetConfig
from evaluation.metrics.frechet import frechet_between, frechet_warnings
from evaluation.networks.feature_networks import FEATURES, FeatureExtractor, build_features
from evaluation.protocol import RESIZES
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_files import Reference, read_reference, save_reference
from evaluation.references.reference_making import digested, measure_reference
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import UserError, exit_on_user_error, first_few, say, warn
from scoring.image_source import DATASET_PREFIX, SOURCES, ImageSource, default_name, open_source

ACTIONS = {"make": ("source",), "show": ("file",), "check": ("file", "source")}
CLASSIFIER_CACHE = str(Path("runs") / "classifiers")  # where the scoring scripts keep theirs
SAME_MOMENTS = 1e-3
"""`check` of published moments: the largest Frechet distance to the source, as a share of the covariance's trace."""


@dataclass(frozen=True)
class ReferenceSettings:
    """What the command line says.

    Attributes:
        action: one of ACTIONS.
        file: the reference that is shown or checked.
        source: the images, as the user named them.
        output: where a made reference goes; None: by its name and its features.
        name: its part of metric names; None: from the source.
        classifier_data: labelled images for the classifier features; None: the training split of the source.
        dataset: settings of a source `dataset:NAME:SPLIT`.
    """

    action: str
    file: str = ""
    source: str = ""
    output: str | None = None
    name: str | None = None
    features: str = "inception"
    features_weights: str | None = None
    features_resize: str = "bilinear"
    features_cache: str = CLASSIFIER_CACHE
    classifier_data: str | None = None
    keep_features: bool = False
    spatial: bool = False
    skip_unreadable: bool = False
    mixed_sizes: bool = False
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    batch_size: int = 64
    device: str = "cpu"


def parse(words: Sequence[str] | None = None) -> ReferenceSettings:
    """The settings that a command line stands for."""
    parser = ArgumentParser(description="Make, show or check a reference.")
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument(
        "places",
        nargs="+",
        metavar="FILE|SOURCE",
        help=f"make SOURCE | show FILE | check FILE SOURCE; SOURCE is {SOURCES}",
    )
    parser.add_argument("--output", help="make: where the reference goes (default: <name>_<features>_<resize>.npz)")
    parser.add_argument("--name", help="make: its part of metric names (default: from the source)")
    parser.add_argument("--features", choices=FEATURES, default="inception", help="network (default: inception)")
    parser.add_argument("--features-weights", help="weight file of the feature network")
    parser.add_argument(
        "--features-resize",
        choices=tuple(RESIZES),
        default="bilinear",
        help="how images reach Inception's 299 pixels (default: bilinear)",
    )
    parser.add_argument(
        "--features-cache",
        default=CLASSIFIER_CACHE,
        help=f"where trained classifiers are kept (default: {CLASSIFIER_CACHE})",
    )
    parser.add_argument(
        "--classifier-data",
        metavar="SOURCE",
        help="labelled images that the classifier features are trained on "
        "(default: the train split of dataset:NAME:SPLIT)",
    )
    parser.add_argument("--keep-features", action="store_true", help="make: also what KID, precision and recall need")
    parser.add_argument("--spatial", action="store_true", help="make: also what sFID needs")
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out and count images that do not decode")
    parser.add_argument("--mixed-sizes", action="store_true", help="image files of any sizes; the network resizes each")
    parser.add_argument("--data-root", help="where the files of dataset:NAME:SPLIT lie")
    parser.add_argument("-bs", "--batch-size", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    args = parser.parse_args(words)
    expected = ACTIONS[args.action]
    if len(args.places) != len(expected):
        parser.error(
            f"{args.action} takes {' and '.join(name.upper() for name in expected)}, got {' '.join(args.places)}"
        )
    if args.batch_size < 1:
        parser.error(f"--batch-size {args.batch_size} must be at least 1")
    flags = vars(args)
    dataset = load_config(DatasetConfig, None, flags.pop("overrides"))
    dataset.root = flags.pop("data_root") or dataset.root
    return ReferenceSettings(**dict(zip(expected, flags.pop("places"))), **flags, dataset=dataset)


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
            device=settings.device,
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
        device=settings.device,
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


def main(settings: ReferenceSettings) -> None:
    if settings.action == "make":
        make(settings)
    elif settings.action == "check":
        check(settings)
    else:
        show_reference(read_reference(settings.file))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
