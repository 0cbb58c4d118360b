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

from collections.abc import Sequence

from data.config import DatasetConfig, dataset_words
from evaluation.networks.feature_networks import FEATURES
from evaluation.resizes import RESIZES
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import exit_on_user_error
from scoring.settings import CLASSIFIER_CACHE, SOURCES, ReferenceSettings

ACTIONS = {"make": ("source",), "show": ("file",), "check": ("file", "source")}


def parse(words: Sequence[str] | None = None) -> ReferenceSettings:
    """The settings that a command line stands for."""
    parser = ArgumentParser(
        prog="python -m scoring.reference",
        description="Make, show or check a reference.",
        example="python -m scoring.reference make dataset:cifar10:train --output cifar10-train.npz",
        words=dataset_words(),
    )
    parser.add_argument("action", choices=tuple(ACTIONS), help="what to do")
    parser.add_argument(
        "places",
        nargs="+",
        metavar="FILE|SOURCE",
        help=f"make SOURCE | show FILE | check FILE SOURCE; SOURCE is {SOURCES}",
    )
    parser.add_argument("--output", help="make: where the reference goes (default: <name>_<features>_<resize>.npz)")
    parser.add_argument("--name", help="make: its part of metric names (default: from the source)")
    network = parser.add_argument_group("feature network")
    network.add_argument("--features", choices=FEATURES, default="inception", help="network (default: inception)")
    network.add_argument("--features-weights", help="weight file of the feature network")
    network.add_argument(
        "--features-resize",
        choices=tuple(RESIZES),
        default="bilinear",
        help="how images reach Inception's 299 pixels (default: bilinear)",
    )
    network.add_argument(
        "--features-cache",
        default=CLASSIFIER_CACHE,
        help=f"where trained classifiers are kept (default: {CLASSIFIER_CACHE})",
    )
    network.add_argument(
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
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
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


def main(settings: ReferenceSettings) -> None:
    # after the flags are read: `--help` does not wait for torch
    from evaluation.references.reference_files import read_reference
    from scoring.reference_actions import check, make, show_reference

    if settings.action == "make":
        make(settings)
    elif settings.action == "check":
        check(settings)
    else:
        show_reference(read_reference(settings.file))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
