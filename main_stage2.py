"""Trains stage 2, the RQ-Transformer: `python main_stage2.py -m CONFIG.yaml -v STAGE1 -r RESULTS [key=value ...]`."""

from training.launch import LaunchSettings, training_parser
from training.launch.words import announce

if __name__ == "__main__":
    parser = training_parser(
        "Train the RQ-Transformer (stage 2) on the codes of a trained RQ-VAE.",
        "python main_stage2.py -m configs/digits/stage2/digits-rqtransformer-4x4x4.yaml -v runs/STAGE1/TIME -r runs",
    )
    parser.add_argument(
        "-v", "--vqvae", metavar="PATH", default="", help="stage-1 run, snapshot or published checkpoint"
    )
    args = parser.parse_args()
    settings = LaunchSettings.from_flags(args, {"vqvae.ckpt": args.vqvae} if args.vqvae else None)
    announce(f"reading {settings.source}")
    # after the flags are read: `--help` does not wait for torch
    from training.launch import launch
    from training.stages.stage2 import Stage2, Stage2Config

    launch(Stage2Config, Stage2, settings)
