"""Scores of images that exist: `python compute_metrics.py fake_path=DIR ref_dataset=NAME|PATH metrics=fid,is,kid,prdc`.

`fake_path` is a folder of images, an `.npz` file, `.tar` shards, or what `main_sampling_fid.py` wrote. `ref_dataset` is
a data set of the configs (its training split, or `ref_split=val`; `dataset.root=...` and the other `dataset` keys
apply), images as for `fake_path`, `dataset:NAME:SPLIT`, or a reference `.npz` (ours, or published moments). The result
goes to the console and, as a line of JSON, beside the images: `<name of the folder or file>_metrics_<features>.json`,
and with `--report` `<name>_metrics.html`; into the folder of a run of samples as `metrics_<features>.json`. No other
folder of images is written into.

`clip` is the CLIP score of samples for texts, whose captions lie in `captions.jsonl` (`main_sampling_txt2img.py` writes
it); alone it needs no `ref_dataset`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from data.config import dataset_words
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.config import load_config
from runtime.errors import UserError
from scoring.flags import add_clip_flags, add_scoring_flags, clip_settings_from, feature_settings_from
from scoring.metric_set import DEFAULT_METRICS, METRICS, MetricSet
from scoring.settings import CLIP_METRIC, ComparisonConfig

if TYPE_CHECKING:
    from scoring.image_source import ImageSource

PLAIN_WORDS = ("fake_path", "ref_dataset", "metrics", "ref_split")


@dataclass
class MetricsConfig(ComparisonConfig):
    """The `key=value` words."""

    fake_path: Optional[str] = None
    metrics: str = DEFAULT_METRICS


WORDS = {
    "fake_path=IMAGES": "a folder of images, an .npz or .npy file, .tar shards, dataset:NAME:SPLIT, or a run of "
    "samples",
    "ref_dataset=WHAT": "compared with: a data set of the configs, images as above, or an .npz file of moments",
    "ref_split=SPLIT": "of a data set: train (default) or val",
    "metrics=NAMES": f"out of {', '.join(METRICS)} (default: {DEFAULT_METRICS})",
    "batch_size=N": "per process (default: 100)",
    "num_workers=N": "processes that decode images (default: 4)",
    "skip_unreadable=true": "leave out images that cannot be read, and count them",
    "mixed_sizes=true": "image files may have any sizes; the feature network resizes each",
    **dataset_words("dataset."),
}


def parse() -> argparse.Namespace:
    parser = build_parser(
        "Scores of saved images.",
        "python compute_metrics.py fake_path=samples ref_dataset=cifar10 metrics=fid,is,kid",
        WORDS,
    )
    parser.usage = "compute_metrics.py fake_path=IMAGES ref_dataset=WHAT [metrics=NAMES] [key=value ...] [flags]"
    parser.add_argument("--out", help="result file (default: beside the images, as docs/evaluation.md says)")
    parser.add_argument("--report", action="store_true", help="also write a page, metrics.html, beside the result file")
    add_scoring_flags(parser)
    add_clip_flags(parser)
    return parser.parse_args()


def read_words(words: list[str]) -> MetricsConfig:
    """The words as a config; paths and lists are taken as they are typed."""
    plain = {key: value for key, _, value in (word.partition("=") for word in words) if key in PLAIN_WORDS}
    config = load_config(MetricsConfig, None, [word for word in words if word.partition("=")[0] not in PLAIN_WORDS])
    for key, value in plain.items():
        setattr(config, key, value)
    needed = {"fake_path": "the images to score", "ref_dataset": "what to compare with"}
    if config.metrics.strip("[] ") == CLIP_METRIC:
        del needed["ref_dataset"]
    for key, what in needed.items():
        if not getattr(config, key):
            raise UserError(f"{key}= is missing: {what}")
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size} must be at least 1")
    return config


def open_samples(path: Path, skip_unreadable: bool, mixed_sizes: bool) -> "ImageSource":
    """The images of `fake_path`; pickled samples are refused, because reading a pickle runs what is in it."""
    from scoring.image_source import open_source

    pickles = [path] if path.suffix in (".pkl", ".pickle") else sorted(path.glob("*.pkl")) if path.is_dir() else []
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, which is not read: save the samples as .png files or as an .npz "
            "file with arr_0 (uint8, N x H x W x 3), as main_sampling_fid.py does"
        )
    return open_source(str(path), skip_unreadable=skip_unreadable, mixed_sizes=mixed_sizes)


def result_name(network: str) -> str:
    """The name of a result by these features, in a run of samples."""
    from scoring.result_lines import file_part

    return f"metrics_{file_part(network)}.json"


def result_file(args: argparse.Namespace, path: Path, metrics: MetricSet) -> Path:
    """Where the result line goes: into a run of samples, else next to the folder or file of the images."""
    from scoring.image_source import is_run_of_samples
    from scoring.result_lines import file_part

    if args.out:
        return Path(args.out)
    name, path = result_name(args.features if metrics.by_reference else CLIP_METRIC), path.resolve()
    for folder in (path, path.parent):
        if is_run_of_samples(folder):
            return folder / name
    stem = path.name if path.is_dir() else path.name.split(".")[0]
    return path.parent / f"{file_part(stem)}_{name}"


def page_file(args: argparse.Namespace, target: Path) -> Path:
    """Where the page goes: beside the result, under its name without the features."""
    return target.with_name(f"{'' if args.out else target.name.removesuffix(result_name(args.features))}metrics.html")


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from scoring.clip_scoring import load_clip, saved_captions
    from scoring.comparison import Comparison
    from scoring.result_lines import check_target, write_result
    from scoring.saved_scores import SavedScores

    config = read_words(args.overrides)
    metrics = MetricSet.parse(config.metrics)
    assert config.fake_path is not None, "read_words asks for it"
    path = Path(config.fake_path).expanduser()
    samples = open_samples(path, config.skip_unreadable, config.mixed_sizes)
    target = check_target(result_file(args, path, metrics))
    first = next(iter(samples.batches(1)))
    env = ProcessSettings.from_flags(args).join()
    if not metrics.by_reference and args.report:
        raise UserError(f"--report shows reference images, and metrics={CLIP_METRIC} compares with none")
    if config.mixed_sizes and args.report:
        raise UserError("--report shows images of one size beside each other; leave it out with mixed_sizes=true")
    clip, captions = None, []
    if CLIP_METRIC in metrics:
        captions = saved_captions(path, len(samples))
        clip = load_clip(clip_settings_from(args), env)
    scores = SavedScores(config.fake_path, samples, "label" in first, metrics, env, config.batch_size, clip, captions)
    comparison = None
    if metrics.by_reference:
        height, width = first["image"].shape[-2:]
        comparison = Comparison(config, feature_settings_from(args), env, (height, width))
        line = scores.against(comparison, page_file(args, target) if args.report else None)
    else:
        line = scores.against_captions()
    if env.is_main:
        write_result(target, line, args.json)
    if comparison is not None and comparison.data is not None:
        comparison.data.report_unreadable()


if __name__ == "__main__":
    with exit_in_order(ValueError, OSError):
        main(parse())
