"""Scores of images that exist: `python compute_metrics.py fake_path=DIR ref_dataset=NAME|PATH metrics=fid,is,kid,prdc`.

`fake_path` is a folder of images, an `.npz` file, `.tar` shards, or what `main_sampling_fid.py` wrote. `ref_dataset` is
a data set of the configs (its training split, or `ref_split=val`; `dataset.root=...` and the other `dataset` keys
apply), images as for `fake_path`, `dataset:NAME:SPLIT`, or a reference `.npz` (ours, or published moments). The result
goes beside the images (`metrics_<features>.json`, and with `--report` `metrics.html`) and to the console.

`clip` is the CLIP score of samples for texts, whose captions lie in `captions.jsonl` (`main_sampling_txt2img.py` writes
it); alone it needs no `ref_dataset`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from runtime import distributed
from runtime.cli import ProcessSettings, build_parser
from runtime.config import load_config
from runtime.errors import UserError, exit_on_user_error
from scoring.clip_scoring import CLIP_METRIC, load_clip, saved_captions
from scoring.comparison import Comparison, ComparisonConfig
from scoring.flags import add_clip_flags, add_scoring_flags, clip_settings_from, feature_settings_from
from scoring.image_source import ImageSource, open_source
from scoring.metric_set import DEFAULT_METRICS, METRICS, MetricSet
from scoring.result_lines import file_part, write_result
from scoring.saved_scores import SavedScores

PLAIN_WORDS = ("fake_path", "ref_dataset", "metrics", "ref_split")


@dataclass
class MetricsConfig(ComparisonConfig):
    """The `key=value` words."""

    fake_path: Optional[str] = None
    metrics: str = DEFAULT_METRICS


def parse() -> argparse.Namespace:
    parser = build_parser(f"Scores of saved images. Metrics: {', '.join(METRICS)} (default: {DEFAULT_METRICS}).")
    parser.add_argument("--out", help="result file (default: metrics_<features>.json beside the images)")
    parser.add_argument("--report", action="store_true", help="also write metrics.html beside the result file")
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


def open_samples(path: Path, skip_unreadable: bool) -> ImageSource:
    """The images of `fake_path`; pickled samples are refused, because reading a pickle runs what is in it."""
    pickles = [path] if path.suffix in (".pkl", ".pickle") else sorted(path.glob("*.pkl")) if path.is_dir() else []
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, which is not read: save the samples as .png files or as an .npz "
            "file with arr_0 (uint8, N x H x W x 3), as main_sampling_fid.py does"
        )
    return open_source(str(path), skip_unreadable=skip_unreadable)


def result_file(args: argparse.Namespace, path: Path, metrics: MetricSet) -> Path:
    """Beside the images: inside a folder, next to a file."""
    if args.out:
        return Path(args.out)
    network = file_part(args.features) if metrics.by_reference else CLIP_METRIC
    name = f"metrics_{network}.json"
    return path / name if path.is_dir() else path.parent / f"{path.name.split('.')[0]}_{name}"


def main(args: argparse.Namespace) -> None:
    config = read_words(args.overrides)
    metrics = MetricSet.parse(config.metrics)
    assert config.fake_path is not None, "read_words asks for it"
    path = Path(config.fake_path).expanduser()
    samples = open_samples(path, config.skip_unreadable)
    first = next(iter(samples.batches(1)))
    env = ProcessSettings.from_flags(args).join()
    if not metrics.by_reference and args.report:
        raise UserError(f"--report shows reference images, and metrics={CLIP_METRIC} compares with none")
    clip, captions = None, []
    if CLIP_METRIC in metrics:
        captions = saved_captions(path, len(samples))
        clip = load_clip(clip_settings_from(args), env)
    scores = SavedScores(config.fake_path, samples, "label" in first, metrics, env, config.batch_size, clip, captions)
    target, comparison = result_file(args, path, metrics), None
    if metrics.by_reference:
        comparison = Comparison(config, feature_settings_from(args), env, first["image"].shape[-1])
        line = scores.against(comparison, target.with_name("metrics.html") if args.report else None)
    else:
        line = scores.against_captions()
    if env.is_main:
        write_result(target, line)
    if comparison is not None and comparison.data is not None:
        comparison.data.report_unreadable()


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
        distributed.shutdown()
