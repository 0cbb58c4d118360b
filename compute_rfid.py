"""rFID: how far reconstructions are from the originals, `python compute_rfid.py --split val --vqvae CHECKPOINT`.

The reference is the same split, unreconstructed; the split is part of the metric's name. The result goes beside the
checkpoint (`rfid_<split>_<features>.json`) and to the console.
"""

import argparse

from evaluation.scores import score_images
from rqvae import load_rqvae
from runtime import distributed
from runtime.cli import build_parser
from runtime.errors import exit_on_user_error
from training.scoring import (
    ScoringData,
    add_scoring_flags,
    config_beside,
    reconstructed,
    split_name,
    write_result,
)
from training.snapshot import resolve_checkpoint, weights_digest
from training.stage1 import Stage1Config


def parse() -> argparse.Namespace:
    parser = build_parser("Reconstruction FID of an RQ-VAE on the data set of its configuration.")
    parser.add_argument("--vqvae", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("--split", default="val", help="train or val (default: val)")
    parser.add_argument("-bs", "--batch-size", type=int, default=100, help="per process (default: 100)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights")
    parser.add_argument("--depth", type=int, default=None, help="reconstruct from the first DEPTH codes only")
    add_scoring_flags(parser)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    path, split = resolve_checkpoint(args.vqvae), split_name(args.split)
    config = config_beside(path, Stage1Config, args.overrides)
    env = distributed.initialize(args.timeout, args.dist_backend, local_rank=args.local_rank,
                                 world_size=args.world_size, node_rank=args.node_rank)
    model = load_rqvae(path, ema=args.ema, device=env.device)
    depth = len(model.quantizer.num_codes) if args.depth is None else args.depth
    if not 1 <= depth <= len(model.quantizer.num_codes):
        raise ValueError(f"--depth {args.depth} is not in 1..{len(model.quantizer.num_codes)}")
    data = ScoringData(config.dataset, args.batch_size, env, config.experiment.num_workers)
    extractor = data.features(args)
    images = reconstructed(
        data.float_batches(split), lambda image_BCHW: model.decode_code(model.get_codes(image_BCHW)[..., :depth])
    )
    line = score_images(
        images, extractor, num_images=len(data.split(split)), references={split: data.moments(split, extractor)},
        kind="rfid", splits=None, reduce=distributed.all_reduce_sum_, rank=env.rank, world_size=env.world_size,
        seed=args.seed, sampling={"codes": depth, "ema": args.ema}, checkpoint=weights_digest(model),
    )
    data.report_unreadable()
    if env.is_main:
        directory = path if path.is_dir() else path.parent
        write_result(directory / f"rfid_{split}_{args.features}.json", {**line, "dataset": config.dataset.name})


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
        distributed.shutdown()
