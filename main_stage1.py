"""Trains stage 1, the RQ-VAE: `python main_stage1.py -m CONFIG.yaml -r RESULTS [key=value ...]`."""

from training.launch import LaunchSettings, training_parser
from training.launch.words import announce

if __name__ == "__main__":
    parser = training_parser(
        "Train the RQ-VAE (stage 1).",
        "python main_stage1.py -m configs/digits/stage1/digits-rqvae-4x4x4.yaml -r runs experiment.epochs=20",
    )
    settings = LaunchSettings.from_flags(parser.parse_args())
    announce(f"reading {settings.source}")
    # after the flags are read: `--help` does not wait for torch
    from training.launch import launch
    from training.stages.stage1 import Stage1, Stage1Config

    launch(Stage1Config, Stage1, settings)
