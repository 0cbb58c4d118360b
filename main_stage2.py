"""Trains stage 2, the RQ-Transformer: `python main_stage2.py -m CONFIG.yaml -v STAGE1 -r RESULTS [key=value ...]`."""

import argparse

from training.launch.session import launch, training_parser
from training.stages.stage2 import Stage2, Stage2Config


def use_vqvae(config: Stage2Config, args: argparse.Namespace) -> None:
    """Lets the flag win over the file."""
    if args.vqvae:
        config.vqvae.ckpt = args.vqvae


if __name__ == "__main__":
    parser = training_parser("Train the RQ-Transformer (stage 2) on the codes of a trained RQ-VAE.")
    parser.add_argument("-v", "--vqvae", default="", help="stage-1 run, snapshot or published checkpoint")
    launch(Stage2Config, Stage2, parser.parse_args(), prepare=use_vqvae)
