"""Scores of images that exist: `python compute_metrics.py fake_path=DIR ref_dataset=NAME|PATH metrics=fid,is,kid,prdc`.

`fake_path` is a folder of images, an `.npz` file, `.tar` shards, or what `main_sampling_fid.py` wrote. `ref_dataset` is
a data set of the configs (its training split, or `ref_split=val`; `dataset.root=...` and the other `dataset` keys
apply), images as for `fake_path`, `dataset:NAME:SPLIT`, or a reference `.npz` (ours, or published moments). The result
goes beside the images (`metrics_<features>.json`, and with `--report` `metrics.html`) and to the console.

`clip` is the CLIP score of samples for texts, whose captions lie in `captions.jsonl` (`main_sampling_txt2img.py` writes
it); alone it needs no `ref_dataset`.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from evaluation.metrics.class_scores import classification_accuracy_score
from evaluation.metrics.clip_score import ClipScore
from evaluation.report import ImageSet, write_report
from evaluation.scores import score_images
from runtime import distributed
from runtime.cli import build_parser
from runtime.config import load_config
from runtime.errors import UserError, exit_on_user_error
from scoring.clip_scoring import (
    CLIP_METRIC,
    add_clip_flags,
    add_clip_score,
    line_without_reference,
    load_clip,
    saved_captions,
    with_captions,
)
from scoring.comparison import Comparison, ComparisonConfig
from scoring.image_source import ImageSource, open_source
from scoring.metric_set import DEFAULT_METRICS, METRICS, MetricSet
from scoring.scoring_data import add_scoring_flags, file_part, reference_facts, write_result

PLAIN_WORDS = ("fake_path", "ref_dataset", "metrics", "ref_split")
RUN_FACTS = ("seed", "sampling", "checkpoint", "tokenizer", "dataset")


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


def open_samples(config: MetricsConfig) -> ImageSource:
    """The images of `fake_path`; pickled samples are refused, because reading a pickle runs what is in it."""
    path = Path(config.fake_path).expanduser()
    pickles = [path] if path.suffix in (".pkl", ".pickle") else sorted(path.glob("*.pkl")) if path.is_dir() else []
    if pickles:
        raise UserError(
            f"{pickles[0]} is a pickle, which is not read: save the samples as .png files or as an .npz "
            "file with arr_0 (uint8, N x H x W x 3), as main_sampling_fid.py does"
        )
    return open_source(str(path), skip_unreadable=config.skip_unreadable)


def add_accuracy_score(line: dict[str, Any], samples: ImageSource, comparison: Comparison, bs: int) -> None:
    """Trains the classifier on the samples and tests it on the reference images."""
    if comparison.num_classes is None or comparison.images is None:
        raise UserError("metrics=cas needs ref_dataset to be a data set or images with classes")
    line["metrics"] |= distributed.run_on_main(
        lambda: classification_accuracy_score(
            samples.batches(bs),
            comparison.images(shared=False),
            comparison.num_classes,
            reference=comparison.name,
            cache_dir=comparison.args.features_cache,
        )
    )


def run_facts(path: Path) -> dict[str, Any]:
    """Seed, settings and hashes that a sampling run wrote beside its images; nothing for other images."""
    for folder in (path, path.parent):
        file = folder / "result.json"
        if file.is_file():
            written = json.loads(file.read_text(encoding="utf-8"))
            return {name: written[name] for name in RUN_FACTS if name in written}
    return {}


def result_file(args: argparse.Namespace, path: Path, metrics: MetricSet) -> Path:
    """Beside the images: inside a folder, next to a file."""
    if args.out:
        return Path(args.out)
    network = CLIP_METRIC if metrics.names == (CLIP_METRIC,) else file_part(args.features)
    name = f"metrics_{network}.json"
    return path / name if path.is_dir() else path.parent / f"{path.name.split('.')[0]}_{name}"


def main(args: argparse.Namespace) -> None:
    config = read_words(args.overrides)
    metrics = MetricSet.parse(config.metrics)
    samples = open_samples(config)
    path = Path(config.fake_path).expanduser()
    first = next(iter(samples.batches(1)))
    env = distributed.initialize(
        args.timeout,
        args.dist_backend,
        local_rank=args.local_rank,
        world_size=args.world_size,
        node_rank=args.node_rank,
    )
    batches = samples.batches(config.batch_size, env.rank, env.world_size)
    clip_score = None
    if metrics.names == (CLIP_METRIC,) and args.report:
        raise UserError(f"--report shows reference images, and metrics={CLIP_METRIC} compares with none")
    if CLIP_METRIC in metrics:
        captions = saved_captions(path, len(samples))
        clip_score = ClipScore(load_clip(args, env))
        batches = clip_score.watch(with_captions(batches), captions)
    if metrics.names == (CLIP_METRIC,):
        started, comparison = time.perf_counter(), None
        for _ in batches:  # the score watches them
            pass
        line = line_without_reference(clip_score.network, len(samples), fake_path=config.fake_path, **run_facts(path))
        line["seconds"] = round(time.perf_counter() - started, 3)
    else:
        comparison = Comparison(config, args, env, first["image"].shape[-1])
        line = compare(args, config, metrics, samples, batches, comparison, "label" in first)
    if clip_score is not None:
        add_clip_score(line, clip_score, len(samples))
    if env.is_main:
        write_result(result_file(args, path, metrics), line)
    if comparison is not None and comparison.data is not None:
        comparison.data.report_unreadable()


def compare(
    args: argparse.Namespace,
    config: MetricsConfig,
    metrics: MetricSet,
    samples: ImageSource,
    batches: Iterable[dict[str, Tensor]],
    comparison: Comparison,
    labelled: bool,
) -> dict[str, Any]:
    """The result line of everything that needs a reference; with `--report` also the page."""
    env, path = comparison.env, Path(config.fake_path).expanduser()
    if args.report and comparison.images is None:
        raise UserError(f"--report shows reference images, and {config.ref_dataset} holds none")
    metrics.check_name(args.features)
    for name in ("accuracy", "cas", "class-fid"):
        if name in metrics and not labelled:
            raise UserError(
                f"metrics={name} needs the classes of the samples: files such as 000012_class7.png, or an "
                "array `labels`"
            )
    extractor = comparison.features()
    metrics.check(extractor)
    reference = comparison.reference(extractor, metrics.needs_features or args.report, metrics.needs_spatial)
    banks: list[Any] = []
    line = score_images(
        batches,
        extractor,
        num_images=len(samples),
        reduce=distributed.all_reduce_sum_,
        rank=env.rank,
        world_size=env.world_size,
        keep_bank=banks.append if args.report else None,
        **metrics.arguments(reference),
    )
    line |= run_facts(path) | {
        "fake_path": config.fake_path,
        "ref_dataset": config.ref_dataset,
        "reference": reference_facts(reference),
        "unreadable": len(samples.skipped),
    }
    if "cas" in metrics:
        add_accuracy_score(line, samples, comparison, config.batch_size)
    if args.report and env.is_main:
        line["neighbours"] = write_report(
            result_file(args, path, metrics).with_name("metrics.html"),
            line,
            ImageSet(config.fake_path, banks[0].features_NF, partial(samples.batches, config.batch_size)),
            ImageSet(reference.source, reference.features_NF, partial(comparison.images, shared=False)),
            env.device,
        )
    return line


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
        distributed.shutdown()
