"""Latents and codes of a data set, for stage 2 to train from: `python extract_codes.py -v CHECKPOINT OUT`.

The encoder runs once instead of in every step: `main_stage2.py ... dataset.type=latents dataset.root=OUT` trains from
what is written here, with soft targets and stochastic codes worked out of the latents. `--crops K` keeps the augmented
images of the first K epochs of a run with the same `--seed`. Under torchrun the ranks share the work; an interrupted
command goes on where it stopped, on any number of ranks.
"""

import argparse
from pathlib import Path

from data.config import SPLITS, DatasetConfig, dataset_words
from runtime.cli import ProcessSettings, build_parser, exit_in_order
from runtime.config import load_config
from runtime.errors import UserError, say, warn
from sampling.choices import CONTENTS, DTYPES


def parse() -> argparse.Namespace:
    parser = build_parser(
        "Write the latents and codes of a data set into shards.",
        "python extract_codes.py -v runs/STAGE1/TIME --split train latents",
        dataset_words("dataset."),
    )
    parser.add_argument("-v", "--vqvae", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("-m", "--model-config", help="YAML file whose dataset section is read (default: stage 1's)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights (as vqvae.ema=true does)")
    kept = parser.add_argument_group("what is written")
    kept.add_argument("--split", choices=(*SPLITS, "both"), default="both", help="default: both")
    kept.add_argument("--crops", type=int, default=1, help="augmented crops of every training image (default: 1)")
    kept.add_argument("--keep", choices=CONTENTS, default="both", help="default: both")
    kept.add_argument("--dtype", choices=tuple(DTYPES), default="fp16", help="of the latents (default: fp16)")
    parser.add_argument("-bs", "--batch-size", type=int, default=32, help="per process (default: 32)")
    kept.add_argument("--samples-per-shard", type=int, default=5000, help="default: 5000")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that decode images (default: 4)")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder of the shards")
    args = parser.parse_args()
    for flag, low in (("crops", 1), ("batch_size", 1), ("samples_per_shard", 1), ("num_workers", 0)):
        if getattr(args, flag) < low:
            parser.error(f"--{flag.replace('_', '-')} must be at least {low}, not {getattr(args, flag)}")
    return args


def dataset_section(checkpoint: Path, model_config: str | None, overrides: list[str]) -> DatasetConfig:
    """The `dataset` section of a YAML file of stage 2, or of the config beside the checkpoint, with overrides."""
    from sampling.trained_models import config_beside
    from training.stages.stage1 import Stage1Config
    from training.stages.stage2 import Stage2Config

    if model_config is not None:
        return load_config(Stage2Config, model_config, overrides).dataset
    return config_beside(checkpoint, Stage1Config, overrides).dataset


def main(args: argparse.Namespace) -> None:
    # after the flags are read: `--help` does not wait for torch
    from data.build import build_dataset
    from data.dataset import reading_notes
    from data.shards.shard_manifest import dataset_settings
    from rqstack.snapshots import weights_digest
    from rqvae import load_rqvae
    from runtime.device import use_device
    from sampling.code_extraction import ExtractionSettings, Extractor
    from sampling.trained_models import check_weights, resolve_checkpoint
    from training.launch.data_identity import check_unseen
    from training.stages.data_checks import check_channels, check_images, check_resolution

    checkpoint = resolve_checkpoint(args.vqvae)
    config = dataset_section(checkpoint, args.model_config, args.overrides)
    env = ProcessSettings.from_flags(args).join()
    use_device(env)
    tokenizer = load_rqvae(checkpoint, ema=args.ema)
    check_weights(tokenizer, checkpoint)
    if not tokenizer.quantizer.num_codes:
        raise UserError(f"{checkpoint} has no bottleneck, and so no codes")
    digest = weights_digest(tokenizer)
    settings = ExtractionSettings(
        args.crops, args.keep, args.dtype, args.seed, args.batch_size, args.samples_per_shard, args.num_workers
    )
    for split in SPLITS if args.split == "both" else (args.split,):
        dataset = build_dataset(config, split, args.seed)
        check_images(dataset)
        if split == "val" and (line := check_unseen(checkpoint, dataset, config.accept_seen)) and env.is_main:
            warn(line)
        check_resolution(dataset, tokenizer.config.ddconfig.image_size, "that of the stage-1 checkpoint")
        check_channels(dataset, tokenizer.config.ddconfig.in_channels, "the stage-1 checkpoint")
        shards = Extractor(tokenizer, digest, dataset, dataset_settings(config), settings, env).run(args.output)
        if env.is_main:
            size = sum(shard.size for shard in shards) / 1e6
            say(f"{split}: {len(dataset)} images in {len(shards)} shards, {size:.1f} MB, to {args.output}")
            for line in reading_notes(dataset):
                warn(line)


if __name__ == "__main__":
    with exit_in_order(ValueError, OSError):
        main(parse())
