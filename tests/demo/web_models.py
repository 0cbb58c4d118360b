"""Models for the tests of the web demo: the golden ones, with a data set that is at hand and a tokenizer."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from data.tokenizers.caption_tokenizer import WordTokenizer
from tests.golden_files import copies_of

DATASET = {"type": "synthetic", "resolution": 16, "num_samples": 40}
WORDS = ("", "a", "small", "large", "red", "blue", "circle", "square", "on", "black", "background")
STAGE1, CLASSES, TEXT = "rqvae-shared", "rqtransformer-class", "rqtransformer-text"


def make_checkpoints(folder: Path) -> Path:
    """Copies of the three sets, fit to be shown."""
    copies_of(folder, STAGE1, CLASSES, TEXT)
    for name in (STAGE1, CLASSES, TEXT):
        config = OmegaConf.load(folder / name / "config.yaml")
        config.dataset = DATASET
        config.experiment.num_workers = 0
        OmegaConf.save(config, folder / name / "config.yaml")
    WordTokenizer(WORDS, 8).save(folder / TEXT)
    return folder


def paths_of(folder: Path, stage2: str = CLASSES) -> tuple[str, str]:
    """Stage 1 and stage 2 as a user names them."""
    return str(folder / STAGE1 / "model.pt"), str(folder / stage2 / "model.pt")
