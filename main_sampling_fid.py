"""Samples N images and scores them: `python main_sampling_fid.py -v STAGE1 -a STAGE2 -n 50000 --save-dir DIR`.

Sample i depends on the seed and on i alone: its class is i modulo the number of classes (of those that were trained,
where the checkpoint knows), or with `--classes frequencies` each class comes as often as among the training images,
which the names of the metrics then say. Its noise is the same for any batch size and number of processes. FID is taken
against the training split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.config import dataset_words
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.errors import UserError
from sampling.choices import CLASSES
from sampling.flags import add_sampling_flags, pixel_dtype_from, pixel_facts, sampling_settings_from
from scoring.flags import add_scoring_flags, feature_settings_from
from scoring.metric_set import DEFAULT_METRICS, METRICS, MetricSet

if TYPE_CHECKING:
    from torch import Tensor

    from sampling.conditions import ClassConditions
    from sampling.rejection import RejectionSampler
    from sampling.sampler import Sampler
    from scoring.sample_scores import Comparing
    from scoring.scoring_data import ScoringData

SAMPLE_METRICS = tuple(name for name in METRICS if name not in ("cas", "clip"))


def parse() -> argparse.Namespace:
    parser = build_parser(
        "Sample from an RQ-Transformer and compute FID and IS.",
        "python main_sampling_fid.py -v runs/STAGE1/TIME -a runs/STAGE2/TIME -n 1000 --features classifier",
        dataset_words("dataset."),
    )
    add_sampling_flags(parser)
    parser.add_argument("-n", "--n-samples", type=int, default=50000, help="number of samples (default: 50000)")
    parser.add_argument(
        "--classes",
        choices=CLASSES,
        default="seen",
        help="seen: those with training images, each in turn (all where the checkpoint does not know); all: every "
        "class of the model, in turn; frequencies: as often as among the training images (default: seen)",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="draw this class alone, by name or number; its images are not scored (--no-stats-saving)",
    )
    parser.add_argument(
        "--reject-keep",
        type=float,
        metavar="SHARE",
        help="draw n / SHARE candidates per class and keep the best (the paper's 5 %%: 0.05)",
    )
    parser.add_argument(
        "--reject-model",
        metavar="MODEL",
        help="who judges candidates: a torchvision classifier as NAME or NAME:FILE, or "
        "'classifier', trained on the data set itself (default)",
    )
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--reference",
        default="train",
        help="split that scores compare with, or an .npz file of moments (default: train)",
    )
    scores.add_argument(
        "--metrics", default=DEFAULT_METRICS, help=f"out of {', '.join(SAMPLE_METRICS)} (default: {DEFAULT_METRICS})"
    )
    scores.add_argument("--report", action="store_true", help="also write metrics.html beside the images")
    add_scoring_flags(parser)
    return parser.parse_args()


def find_rejection(
    args: argparse.Namespace, sampler: Sampler, conditions: ClassConditions, data: ScoringData
) -> RejectionSampler | None:
    """What `--reject-keep` asks for."""
    from evaluation.networks.class_judge import OWN_CLASSIFIER, build_judge
    from sampling.rejection import RejectionPlan, RejectionSampler

    if args.reject_keep is None:
        return None
    if conditions.num_classes < 2:
        raise UserError("rejection sampling needs a class-conditional model: this one has no classes")
    plan = RejectionPlan(args.n_samples, conditions.num, args.reject_keep)
    num_classes = conditions.num_classes if conditions.classes is None else data.split("train").num_classes
    own = partial(data.features, replace(feature_settings_from(args), name=OWN_CLASSIFIER))
    judge = build_judge(
        args.reject_model or OWN_CLASSIFIER, num_classes=num_classes, own_classifier=own, device=data.env.device
    )
    return RejectionSampler(plan, sampler, judge)


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from evaluation.protocol import balanced_conditions
    from runtime.precision import Precision
    from runtime.rundir import new_run_dir
    from runtime.runlog import RunLog
    from sampling.conditions import condition_texts
    from sampling.image_files import save_images
    from sampling.picture_grids import GRID_IMAGES, keep_images, save_grid
    from sampling.sampler import Sampler
    from sampling.trained_models import (
        class_names_of,
        config_beside,
        directory_beside,
        load_models,
        resolve_checkpoint,
    )
    from scoring.result_lines import write_result
    from scoring.sample_scores import Comparing, SampleScores, SampleSet
    from scoring.sampled_classes import class_facts, find_conditions, one_class, unequal_classes
    from scoring.scoring_data import ScoringData
    from training.stages.stage2 import Stage2Config

    if args.n_samples < 1 or args.batch_size < 1:
        raise UserError(f"-n {args.n_samples} and -bs {args.batch_size} must be at least 1")
    if args.class_name is not None and (args.score or args.classes != "seen" or args.reject_keep is not None):
        raise UserError(
            f"--class {args.class_name} draws images of one class, without scores: add --no-stats-saving and leave out "
            "--classes and --reject-keep"
        )
    features, comparing = feature_settings_from(args), Comparing(args.reference, args.report)
    metrics = wanted_metrics(args, comparing)
    check_rejection(args)
    checkpoint = resolve_checkpoint(args.model_ar_path)
    config = config_beside(checkpoint, Stage2Config, args.overrides)
    env = ProcessSettings.from_flags(args).join()
    stage1, stage2 = load_models(
        args.model_vqvae_path, args.model_ar_path, env.device, stage1_ema=config.vqvae.ema, stage2_ema=args.ema
    )
    if stage2.config.block_size_cond > 1:
        raise UserError(f"{args.model_ar_path} is conditioned on text: sample it with main_sampling_txt2img.py")
    amp_dtype = Precision(args.precision, env.device).amp_dtype
    data = ScoringData(config.dataset, args.batch_size, env, config.experiment.num_workers, cache=features.cache)
    conditions = (
        find_conditions(args.classes, checkpoint, stage2.config.vocab_size_cond, data)
        if args.class_name is None
        else one_class(args.class_name, checkpoint, stage2.config.vocab_size_cond)
    )
    pixel_dtype = pixel_dtype_from(args, env.device)
    sampler = Sampler(stage1, stage2, conditions, sampling_settings_from(args), amp_dtype, pixel_dtype)
    rejection = find_rejection(args, sampler, conditions, data)
    sampling = {
        **sampler.arguments,
        "ema": args.ema,
        **pixel_facts(pixel_dtype),
        **class_facts(conditions),
        **({} if rejection is None else rejection.facts()),
    }
    extractor = data.features(features) if metrics.names else None
    labelled = False
    if extractor is not None:
        metrics.check(extractor)
        labelled = extractor.recognises_labels and conditions.fits(data.split("train").num_classes)
    base = Path(args.save_dir) if args.save_dir else directory_beside(checkpoint)
    directory = new_run_dir(base, "samples", f"seed{args.seed}")
    with RunLog(directory, env.is_main, loggers=args.loggers, rank=env.rank) as log:
        log.info(f"{args.n_samples} samples to {directory}, settings {sampling}")
        batches: Iterable[dict[str, Tensor]]
        if rejection is None:
            batches = sampler.images(args.n_samples, env.rank, env.world_size)
        else:
            batches = rejection.images(env.rank, env.world_size)
        kept: dict[int, Tensor] = {}
        batches = save_images(
            keep_images(batches, kept),
            directory,
            args.format,
            args.n_samples,
            stage1.config.ddconfig.image_size,
            stage1.config.ddconfig.out_ch,
        )
        samples = SampleSet(args.n_samples, directory, args.seed, sampling, stage1, stage2)
        line = SampleScores(metrics, data, comparing, extractor, labelled=labelled).line(batches, samples)
        if line is not None and env.is_main:
            line["warnings"] = [*line["warnings"], *([] if comparing.is_file else unequal_classes(conditions, data))]
            write_result(directory / "result.json", line, args.json)
        # rejection keeps samples of its conditions in turn
        in_turn = balanced_conditions(args.n_samples, conditions.num)
        condition_N = in_turn if rejection is not None else conditions.of_samples(args.n_samples)
        texts = condition_texts(conditions, condition_N[:GRID_IMAGES], class_names_of(checkpoint))
        save_grid(kept, log, directory, label_of=texts.__getitem__ if texts else None)
    data.report_unreadable()


def wanted_metrics(args: argparse.Namespace, comparing: Comparing) -> MetricSet:
    """The metrics; UserError for metrics and references that cannot work, before any model is read."""
    metrics = MetricSet.parse(args.metrics)
    if "cas" in metrics:
        raise UserError("metrics=cas is for saved samples: compute_metrics.py fake_path=DIR metrics=cas")
    if "clip" in metrics:
        raise UserError("metrics=clip needs captions: main_sampling_txt2img.py samples for texts")
    metrics.check_name(args.features)
    comparing.check(args.score)
    return metrics if args.score else MetricSet(())


def check_rejection(args: argparse.Namespace) -> None:
    """UserError for rejection settings that cannot work, before any model is read."""
    from sampling.rejection import RejectionPlan

    if args.reject_keep is not None:
        RejectionPlan.check_keep(args.reject_keep)
        if args.classes == "frequencies":
            raise UserError(
                "--classes frequencies and --reject-keep exclude each other: candidates are drawn per class"
            )
    elif args.reject_model is not None:
        raise UserError(f"--reject-model {args.reject_model} needs --reject-keep SHARE")


if __name__ == "__main__":
    with exit_in_order(ValueError, OSError):
        main(parse())
