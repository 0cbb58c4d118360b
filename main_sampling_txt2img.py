"""Samples images for texts: one prompt, a file of captions, or the captions of a data set, which are then scored.

    python main_sampling_txt2img.py -v STAGE1 -a STAGE2 --prompt "a red circle on a black background" --num 8
    python main_sampling_txt2img.py -v STAGE1 -a STAGE2 --dataset cc3m|coco_2014val|FILE --save-dir DIR

Sample i has caption i (from the start again when there are fewer captions than samples); its noise depends on the seed
and on i alone, for any batch size and number of processes. FID is taken against the data set's validation images, the
CLIP score against the captions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from data.config import dataset_words
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.errors import UserError
from sampling.flags import add_sampling_flags, pixel_dtype_from, pixel_facts, sampling_settings_from
from scoring.flags import add_clip_flags, add_scoring_flags, clip_settings_from, feature_settings_from
from scoring.metric_set import METRICS, MetricSet
from scoring.settings import CLIP_METRIC

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.networks.clip_features import ClipFeatures
    from rqtransformer import RQTransformer
    from sampling.prompts import Prompts
    from sampling.rejection import RejectionSampler
    from sampling.sampler import Sampler
    from scoring.sample_scores import Comparing
    from scoring.scoring_data import ScoringData

TEXT_METRICS = tuple(name for name in METRICS if name not in ("cas", "class-fid", "accuracy"))


def parse() -> argparse.Namespace:
    parser = build_parser(
        "Sample images for texts from an RQ-Transformer, and score them.",
        'python main_sampling_txt2img.py -v STAGE1 -a STAGE2 --prompt "a large red circle" --num 8',
        dataset_words("dataset."),
    )
    add_sampling_flags(parser)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="a caption; may be given several times")
    parser.add_argument("--num", type=int, default=1, help="images of each --prompt (default: 1)")
    parser.add_argument(
        "--dataset",
        metavar="NAME|FILE",
        help="captions: of a data set such as cc3m or coco_2014val, or of a text file with one a line "
        "(default: the data set of the stage-2 checkpoint)",
    )
    parser.add_argument("-n", "--n-samples", type=int, help="number of samples (default: one for each caption)")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="of the captions (default: the one beside the stage-2 weights, or of its data set)",
    )
    parser.add_argument(
        "--reject-keep",
        type=float,
        metavar="SHARE",
        help="draw 1 / SHARE candidates for each sample and keep those that CLIP finds to fit best",
    )
    add_clip_flags(parser)
    scores = parser.add_argument_group("scores")
    scores.add_argument(
        "--metrics",
        metavar="NAMES",
        help=f"out of {', '.join(TEXT_METRICS)}, or none (default: fid,clip for a data set, clip for a "
        "file, none for prompts)",
    )
    scores.add_argument(
        "--reference", default="val", help="split that scores compare with, or an .npz file of moments (default: val)"
    )
    scores.add_argument("--report", action="store_true", help="also write metrics.html beside the images")
    add_scoring_flags(parser)
    return parser.parse_args()


def wanted_metrics(args: argparse.Namespace, comparing: Comparing) -> MetricSet:
    """The metrics, none where nothing is to be scored; UserError for what cannot work."""
    from sampling.prompts import caption_file

    is_file = args.dataset is not None and caption_file(args.dataset) is not None
    default = "none" if args.prompt else CLIP_METRIC if is_file else f"fid,{CLIP_METRIC}"
    names = [name.strip().lower() for name in (args.metrics or default).split(",") if name.strip()]
    if not args.score or names == ["none"]:
        return MetricSet(())
    unknown = [name for name in names if name not in TEXT_METRICS]
    if unknown:
        raise UserError(f"--metrics {unknown[0]}: choose from {', '.join(TEXT_METRICS)}, or none")
    metrics = MetricSet(tuple(dict.fromkeys(names)))
    if metrics.by_reference:
        metrics.check_name(args.features)
        comparing.check()
        if (args.prompt or is_file) and not comparing.is_file:
            of_images = next(name for name in names if name != CLIP_METRIC)
            raise UserError(
                f"--metrics {of_images} compares with images, and {args.dataset or '--prompt'} has "
                f"none: give --reference FILE.npz, or --metrics {CLIP_METRIC}"
            )
    return metrics


def check_flags(args: argparse.Namespace) -> None:
    """UserError for numbers and combinations that cannot work, before any model is read."""
    from sampling.rejection import RejectionPlan

    for flag, value in (("--num", args.num), ("-n", args.n_samples), ("-bs", args.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value} must be at least 1")
    if args.prompt and args.dataset is not None:
        raise UserError("--prompt and --dataset exclude each other")
    if args.prompt and args.n_samples is not None:
        raise UserError("--prompt takes --num, images of each prompt, not -n")
    if args.reject_keep is not None:
        RejectionPlan.check_keep(args.reject_keep)


def find_prompts(args: argparse.Namespace, data: ScoringData) -> Prompts:
    """The captions that the flags name."""
    from sampling.prompts import Prompts, caption_file, dataset_prompts, read_caption_file

    if args.prompt:
        return Prompts(args.prompt, "--prompt")
    file = None if args.dataset is None else caption_file(args.dataset)
    return dataset_prompts(data.split("val"), f"{data.config.name}:val") if file is None else read_caption_file(file)


def text_model(args: argparse.Namespace, stage2: RQTransformer) -> RQTransformer:
    """UserError when the model takes no text."""
    if stage2.config.block_size_cond < 2:
        raise UserError(f"{args.model_ar_path} is not conditioned on text: sample it with main_sampling_fid.py")
    return stage2


def preview(num_prompts: int, num_each: int, shown: int) -> tuple[list[int], int]:
    """(Sample numbers of the preview row by row, columns): the first samples, or each prompt's in a row of its own."""
    from sampling.picture_grids import GRID_COLUMNS

    if num_prompts == 1 or num_each == 1:
        count = min(shown, num_prompts * num_each)
        return list(range(count)), min(count, GRID_COLUMNS)
    columns = min(num_each, GRID_COLUMNS)
    rows = range(min(num_prompts, max(1, shown // columns)))
    return [place * num_prompts + prompt for prompt in rows for place in range(columns)], columns


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from runtime.precision import Precision
    from runtime.rundir import new_run_dir
    from runtime.runlog import RunLog
    from sampling.image_files import save_images
    from sampling.picture_grids import GRID_IMAGES, keep_images, save_grid
    from sampling.prompts import caption_file, dataset_named, find_tokenizer, tokenize
    from sampling.sampler import Sampler
    from sampling.trained_models import config_beside, directory_beside, load_models, resolve_checkpoint
    from scoring.clip_scoring import load_clip
    from scoring.result_lines import write_result
    from scoring.sample_scores import Comparing, SampleScores, SampleSet
    from scoring.scoring_data import ScoringData
    from training.stages.stage2 import Stage2Config

    check_flags(args)
    features, comparing = feature_settings_from(args), Comparing(args.reference, args.report)
    metrics = wanted_metrics(args, comparing)
    checkpoint = resolve_checkpoint(args.model_ar_path)
    config = config_beside(checkpoint, Stage2Config, args.overrides)
    named = None if args.dataset is None or caption_file(args.dataset) else args.dataset
    env = ProcessSettings.from_flags(args).join()
    data = ScoringData(
        dataset_named(config.dataset, named, args.overrides),
        args.batch_size,
        env,
        config.experiment.num_workers,
        cache=features.cache,
    )
    prompts = find_prompts(args, data)
    with_clip = CLIP_METRIC in metrics or args.reject_keep is not None
    clip = load_clip(clip_settings_from(args), env) if with_clip else None
    extractor = data.features(features) if metrics.by_reference else None
    if extractor is not None:
        metrics.check(extractor)
    stage1, stage2 = load_models(
        args.model_vqvae_path, args.model_ar_path, env.device, stage1_ema=config.vqvae.ema, stage2_ema=args.ema
    )
    tokenizer = find_tokenizer(args.tokenizer, checkpoint, config.dataset, text_model(args, stage2).config)
    num_samples = len(prompts.captions) * args.num if args.prompt else args.n_samples or len(prompts.captions)
    amp_dtype = Precision(args.precision, env.device).amp_dtype
    pixel_dtype = pixel_dtype_from(args, env.device)
    conditions = tokenize(prompts, tokenizer)
    sampler = Sampler(stage1, stage2, conditions, sampling_settings_from(args), amp_dtype, pixel_dtype)
    rejection = find_rejection(args, sampler, prompts, num_samples, clip)
    sampling = {
        **sampler.arguments,
        "ema": args.ema,
        **pixel_facts(pixel_dtype),
        **({} if rejection is None else rejection.facts()),
    }
    directory = new_run_dir(args.save_dir or directory_beside(checkpoint), "samples", f"seed{args.seed}")
    with RunLog(directory, env.is_main, loggers=args.loggers, rank=env.rank) as log:
        if env.is_main and (line_on_cuts := tokenizer.cut_captions(prompts.captions, prompts.source)):
            log.warning(line_on_cuts)
        log.info(f"{num_samples} samples of {len(prompts.captions)} captions to {directory}, settings {sampling}")
        order, columns = preview(
            len(prompts.captions) if args.prompt else 1, args.num if args.prompt else num_samples, GRID_IMAGES
        )
        batches: Iterable[dict[str, Tensor]]
        if rejection is None:
            batches = sampler.images(num_samples, env.rank, env.world_size)
        else:
            batches = rejection.images(env.rank, env.world_size)
        kept: dict[int, Tensor] = {}
        batches = keep_images(batches, kept, set(order))
        batches = save_images(
            batches,
            directory,
            args.format,
            num_samples,
            stage1.config.ddconfig.image_size,
            stage1.config.ddconfig.out_ch,
        )
        started = time.perf_counter()
        samples = SampleSet(num_samples, directory, args.seed, sampling, stage1, stage2)
        scores = SampleScores(metrics, data, comparing, extractor, clip, prompts.captions)
        line = scores.line(batches, samples)
        if env.is_main:
            prompts.write(directory, num_samples, args.format)
            if line is not None:
                seconds = round(time.perf_counter() - started, 3)
                line |= {"captions": prompts.facts(), "seconds": seconds}
                write_result(directory / "result.json", line, args.json)
        captions = prompts.captions
        save_grid(kept, log, directory, columns, order, lambda number: captions[number % len(captions)])
        log.info(f"images, {directory / 'samples.png'} and {directory / 'captions.jsonl'} are written")
    data.report_unreadable()


def find_rejection(
    args: argparse.Namespace, sampler: Sampler, prompts: Prompts, num_samples: int, clip: ClipFeatures | None
) -> RejectionSampler | None:
    """What `--reject-keep` asks for."""
    from evaluation.metrics.clip_score import CaptionJudge
    from sampling.rejection import RejectionPlan, RejectionSampler

    if args.reject_keep is None:
        return None
    assert clip is not None, "CLIP is loaded for --reject-keep"
    plan = RejectionPlan(num_samples, len(prompts.captions), args.reject_keep)
    return RejectionSampler(plan, sampler, CaptionJudge(clip, prompts.captions))


if __name__ == "__main__":
    with exit_in_order(ValueError, OSError):
        main(parse())
