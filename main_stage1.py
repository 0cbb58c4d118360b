"""Trains stage 1, the RQ-VAE: `python main_stage1.py -m CONFIG.yaml -r RESULTS [key=value ...]`."""

from training.launch import LaunchSettings, launch, training_parser
from training.stages.stage1 import Stage1, Stage1Config

if __name__ == "__main__":
    parser = training_parser("Train the RQ-VAE (stage 1).")
    launch(Stage1Config, Stage1, LaunchSettings.from_flags(parser.parse_args()))
