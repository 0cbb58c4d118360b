"""Samples N images and scores them: `python main_sampling_fid.py -v STAGE1 -a STAGE2 -n 50000 --save-dir DIR`.

Sample i depends on the seed and on i alone: its class is i modulo the number of classes, and its noise is the same for
any batch size and number of processes. FID is taken against the training split.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.accumulators import SampleLedger
from evaluation.class_judge import OWN_CLASSIFIER, build_judge
from evaluation.image_source import open_source
from evaluation.protocol import balanced_conditions, shard_indices, to_uint8
from evaluation.reference_files import Reference
from evaluation.reference_making import load_reference
from evaluation.report import ImageSet, write_report
from evaluation.scores import score_images
from evaluation.statistics import Gaussian
from rqtransformer import RQTransformer, decode_in_batches, load_rqtransformer, sample
from rqtransformer.packing import WEIGHT_FORMATS
from rqtransformer.pretrained import sampling_settings
from rqvae import RQVAE, load_rqvae
from runtime import distributed
from runtime.cli import build_parser
from runtime.distributed import DistEnv
from runtime.errors import UserError, exit_on_user_error
from runtime.rundir import new_run_dir
from runtime.runlog import RunLog
from training.metric_set import DEFAULT_METRICS, METRICS, MetricSet
from training.precision import PRECISIONS, Precision
from training.rejection import RejectionPlan, RejectionSampler
from training.sample_files import FORMATS, save_images
from training.scoring import (
    ScoringData,
    add_scoring_flags,
    config_beside,
    reference_facts,
    split_name,
    write_result,
)
from training.snapshot import METADATA_FILE, SNAPSHOTS, read_metadata, resolve_checkpoint, weights_digest
from training.stage2 import Stage2Config, check_stages_fit
from training.visuals import save_image_file, uint8_grid

SAMPLE_METRICS = tuple(name for name in METRICS if name != "cas")
GRID_IMAGES = 100
GRID_COLUMNS = 10


def parse() -> argparse.Namespace:
    parser = build_parser("Sample from an RQ-Transformer and compute FID and IS.")
    parser.add_argument("-a", "--model-ar-path", required=True, help="stage-2 run, snapshot or published checkpoint")
    parser.add_argument("-v", "--model-vqvae-path", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("-n", "--n-samples", type=int, default=50000, help="number of samples (default: 50000)")
    parser.add_argument("-t", "--temp", type=float, nargs="+", help="temperature, one or one per depth")
    parser.add_argument("--top-k", type=int, nargs="+", help="one or one per depth; default: as the checkpoint says")
    parser.add_argument("--top-p", type=float, nargs="+", help="one or one per depth; default: as the checkpoint says")
    parser.add_argument("--cfg-scale", type=guidance, metavar="SCALE",
                        help="classifier-free guidance: a number (1 is the plain model), or linear:SCALE, cosine:SCALE "
                             "(from 1 at the first position to SCALE at the last)")
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, default="dense",
                        help="of stage 2 while sampling; int8: rounded, one scale per output feature")
    parser.add_argument("-bs", "--batch-size", type=int, default=100, help="per process (default: 100)")
    parser.add_argument("--reject-keep", type=float, metavar="SHARE",
                        help="draw n / SHARE candidates per class and keep the best (the paper's 5 %%: 0.05)")
    parser.add_argument("--reject-model", metavar="MODEL",
                        help="who judges candidates: a torchvision classifier as NAME or NAME:FILE, or "
                             f"{OWN_CLASSIFIER!r}, trained on the data set itself (default)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of stage 2")
    parser.add_argument("--save-dir", help="where the samples go (default: beside the stage-2 checkpoint)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the saved images (default: png)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of stage 2 (default: bf16 on a GPU)")
    parser.add_argument("--reference", default="train",
                        help="split that scores compare with, or an .npz file of moments (default: train)")
    parser.add_argument("--metrics", default=DEFAULT_METRICS,
                        help=f"out of {', '.join(SAMPLE_METRICS)} (default: {DEFAULT_METRICS})")
    parser.add_argument("--report", action="store_true", help="also write metrics.html beside the images")
    parser.add_argument("--no-tensorboard", action="store_false", dest="tensorboard", help="no TensorBoard events")
    parser.add_argument("--no-stats-saving", action="store_false", dest="score",
                        help="save the images only: no features, no statistics, no scores")
    add_scoring_flags(parser)
    return parser.parse_args()


def guidance(text: str) -> float | str:
    """A number as a number; a schedule's name and scale as they are, for `sample` to judge."""
    try:
        return float(text)
    except ValueError:
        return text


class Sampler:
    """The two models and the settings; gives batches of finished images.

    reject: takes the place of the plain order of samples, if set.
    """

    reject: RejectionSampler | None = None

    def __init__(self, args: argparse.Namespace, stage1: RQVAE, stage2: RQTransformer, env: DistEnv):
        self.stage1, self.stage2, self.env = stage1, stage2, env
        self.num_samples, self.batch_size, self.seed = args.n_samples, args.batch_size, args.seed
        self.settings = sampling_settings(
            stage2, temperature=args.temp, top_k=args.top_k, top_p=args.top_p, cfg_scale=args.cfg_scale,
            weights=args.weights,
        )
        self.amp_dtype = Precision(args.precision, env.device).amp_dtype
        # settings that cannot work are refused here, before anything is written
        complete_1TD = torch.zeros(1, stage2.num_positions, stage2.depth, dtype=torch.long)
        sample(stage2, stage1, prefix=complete_1TD, **self.settings)

    @property
    def num_classes(self) -> int:
        """Classes of the model; 1 without."""
        return self.stage2.config.vocab_size_cond

    def draw(self, index_B: Tensor, label_B: Tensor) -> Tensor:
        """Codes (B, H, W, D) of the samples with these numbers."""
        return sample(
            self.stage2, self.stage1, label_B.to(self.env.device) if self.num_classes > 1 else None,
            indices=index_B, seed=self.seed, amp_dtype=self.amp_dtype, **self.settings,
        )

    def decode(self, codes_BHWD: Tensor) -> Tensor:
        """Images in [-1, 1], decoded in as many parts as memory asks for."""
        return torch.cat(list(decode_in_batches(self.stage1, codes_BHWD)))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of this rank: `image` uint8 (B, 3, H, W), `label` and `index` (B,)."""
        if self.reject is not None:
            yield from self.reject.batches(self.env.rank, self.env.world_size)
            return
        label_N = balanced_conditions(self.num_samples, self.num_classes)
        mine = torch.tensor(shard_indices(self.num_samples, self.env.rank, self.env.world_size), dtype=torch.long)
        for index_B in mine.split(self.batch_size):
            label_B = label_N[index_B]
            image_BCHW = to_uint8(self.decode(self.draw(index_B, label_B)))
            yield {"image": image_BCHW, "label": label_B, "index": index_B}


def add_rejection(args: argparse.Namespace, sampler: Sampler, data: ScoringData) -> dict[str, Any]:
    """Sets the sampler up for `--reject-keep`; returns what the result line says about it."""
    if args.reject_keep is None:
        return {}
    plan = RejectionPlan(args.n_samples, sampler.num_classes, args.reject_keep)
    own = partial(data.features, argparse.Namespace(**{**vars(args), "features": OWN_CLASSIFIER}))
    judge = build_judge(args.reject_model or OWN_CLASSIFIER, num_classes=sampler.num_classes, own_classifier=own,
                        device=sampler.env.device)
    sampler.reject = RejectionSampler(plan, sampler.draw, sampler.decode, judge, args.batch_size)
    return {"reject_keep": args.reject_keep, "reject_model": judge.label, "candidates": len(plan.candidates())}


def load_models(args: argparse.Namespace, config: Stage2Config, env: DistEnv) -> tuple[RQVAE, RQTransformer]:
    stage1 = load_rqvae(resolve_checkpoint(args.model_vqvae_path), ema=config.vqvae.ema, device=env.device)
    checkpoint = resolve_checkpoint(args.model_ar_path)
    stage2 = load_rqtransformer(checkpoint, ema=args.ema, device=env.device)
    if stage2.config.block_size_cond > 1:
        raise UserError(f"{args.model_ar_path} is conditioned on text; this script samples classes or unconditionally")
    check_stages_fit(stage2.config, stage1)
    if (checkpoint / METADATA_FILE).is_file():
        trained_on = read_metadata(checkpoint).get("tokenizer")
        if trained_on not in (None, weights_digest(stage1)):
            raise UserError(
                f"{args.model_ar_path} was trained on the codes of other stage-1 weights than {args.model_vqvae_path}"
            )
    return stage1, stage2


def keep_first_images(batches: Iterator[dict[str, Tensor]], kept: dict[int, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Passes batches through and remembers the images of the preview grid."""
    for batch in batches:
        for index, image_CHW in zip(batch["index"].tolist(), batch["image"], strict=True):
            if index < GRID_IMAGES:
                kept[index] = image_CHW.cpu()
        yield batch


def save_grid(kept: dict[int, Tensor], log: RunLog, directory: Path) -> None:
    """Collects the preview images of all ranks and writes `samples.png`."""
    order = torch.tensor(sorted(kept), dtype=torch.long)
    images = torch.stack([kept[index] for index in sorted(kept)]) if kept else None
    indices = torch.cat(distributed.gather_rows(order))
    shape = distributed.broadcast_object(None if images is None else list(images.shape[1:]))
    rows = torch.cat(distributed.gather_rows(torch.empty(0, *shape, dtype=torch.uint8) if images is None else images))
    if distributed.is_main():
        grid = uint8_grid(rows[indices.argsort()], GRID_COLUMNS)
        save_image_file(grid, directory / "samples.png")
        log.log_images("samples", grid, 0)


def save_moments(directory: Path, moments: Gaussian) -> None:
    """The features' moments under the names that other FID tools read."""
    if distributed.is_main():
        mu, sigma = moments.mean_F.cpu().numpy(), moments.covariance_FF.cpu().numpy()
        np.savez(directory / "stats.npz", mu=mu, sigma=sigma, num_images=moments.num)


def directory_beside(checkpoint: Path) -> Path:
    """The folder of a published file; the run of a snapshot, because snapshots come and go."""
    if not checkpoint.is_dir():
        return checkpoint.parent
    return checkpoint.parent.parent if checkpoint.parent.name == SNAPSHOTS else checkpoint


def main(args: argparse.Namespace) -> None:
    if args.n_samples < 1 or args.batch_size < 1:
        raise UserError(f"-n {args.n_samples} and -bs {args.batch_size} must be at least 1")
    check_scores(args)
    check_rejection(args)
    checkpoint = resolve_checkpoint(args.model_ar_path)
    config = config_beside(checkpoint, Stage2Config, args.overrides)
    env = distributed.initialize(args.timeout, args.dist_backend, local_rank=args.local_rank,
                                 world_size=args.world_size, node_rank=args.node_rank)
    stage1, stage2 = load_models(args, config, env)
    sampler = Sampler(args, stage1, stage2, env)
    data = ScoringData(config.dataset, args.batch_size, env, config.experiment.num_workers, cache=args.features_cache)
    rejection = add_rejection(args, sampler, data)
    extractor = data.features(args) if args.score else None
    if extractor is not None:
        MetricSet.parse(args.metrics).check(extractor)
    base = Path(args.save_dir) if args.save_dir else directory_beside(checkpoint)
    directory = new_run_dir(base, "samples", f"seed{args.seed}")
    with RunLog(directory, env.is_main, tensorboard=args.tensorboard, rank=env.rank) as log:
        log.info(f"{args.n_samples} samples to {directory}, settings {sampler.settings | rejection}")
        kept: dict[int, Tensor] = {}
        resolution = (stage1.config.ddconfig.resolution,) * 2
        batches = keep_first_images(iter(sampler), kept)
        batches = save_images(batches, directory, args.format, args.n_samples, resolution)
        if extractor is None:
            ledger = SampleLedger(args.n_samples, env.device)
            for batch in batches:
                ledger.update(batch["index"])
            ledger.close(distributed.all_reduce_sum_)
        else:
            score(args, batches, data, extractor, sampler, directory, config, rejection)
        save_grid(kept, log, directory)
    data.report_unreadable()


def score(args: argparse.Namespace, batches: Iterator[dict[str, Tensor]], data: ScoringData, extractor: Any,
          sampler: Sampler, directory: Path, config: Stage2Config, rejection: dict[str, Any]) -> None:
    """The metrics asked for against the reference, and with the classifier the recognised share; one result line."""
    metrics = MetricSet.parse(args.metrics)
    reference = find_reference(args, data, extractor, metrics)
    wanted = metrics.arguments(reference)
    wanted["accuracy"] |= extractor.recognises_labels and sampler.num_classes == data.split("train").num_classes
    banks: list[Any] = []
    line = score_images(
        batches, extractor, num_images=args.n_samples, reduce=distributed.all_reduce_sum_, rank=sampler.env.rank,
        world_size=sampler.env.world_size, seed=args.seed,
        sampling={**sampler.settings, "ema": args.ema, **rejection}, checkpoint=weights_digest(sampler.stage2),
        keep_moments=partial(save_moments, directory), keep_bank=banks.append if args.report else None, **wanted,
    )
    if distributed.is_main():
        line |= {"dataset": config.dataset.name, "tokenizer": weights_digest(sampler.stage1),
                 "reference": reference_facts(reference)}
        if args.report:
            samples, originals = open_source(str(directory)), partial(data.uint8_batches, reference.name, shared=False)
            line["neighbours"] = write_report(
                directory / "metrics.html", line,
                ImageSet(str(directory), banks[0].features_NF, partial(samples.batches, args.batch_size)),
                ImageSet(reference.source, reference.features_NF, originals), sampler.env.device,
            )
        write_result(directory / "result.json", line)


def find_reference(args: argparse.Namespace, data: ScoringData, extractor: Any, metrics: MetricSet) -> Reference:
    """A split of the data set, or a file of moments."""
    if args.reference.endswith(".npz"):
        return load_reference(args.reference, extractor)
    return data.reference(split_name(args.reference), extractor, metrics.needs_features or args.report,
                          metrics.needs_spatial)


def check_scores(args: argparse.Namespace) -> None:
    """UserError for metrics and references that cannot work, before any model is read."""
    metrics = MetricSet.parse(args.metrics)
    if "cas" in metrics:
        raise UserError("metrics=cas is for saved samples: compute_metrics.py fake_path=DIR metrics=cas")
    metrics.check_name(args.features)
    if args.report and not args.score:
        raise UserError("--report shows scores, and --no-stats-saving asks for none")
    if not args.reference.endswith(".npz"):
        split_name(args.reference)
    elif args.report:
        raise UserError("--report shows reference images: --reference must be a split of the data set")


def check_rejection(args: argparse.Namespace) -> None:
    """UserError for rejection settings that cannot work, before any model is read."""
    if args.reject_keep is not None:
        RejectionPlan.check_keep(args.reject_keep)
    elif args.reject_model is not None:
        raise UserError(f"--reject-model {args.reject_model} needs --reject-keep SHARE")


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
        distributed.shutdown()
