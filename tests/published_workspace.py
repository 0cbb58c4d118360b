"""A folder that looks like a checkout of the published repository: its scripts, its configs at tiny size, data sets
under `data/`, and checkpoints in the published layout. Commands run there as they are written.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import CharBPETokenizer

from tests.evaluation.random_inception import write_random_weights
from tests.repository import GOLDEN, ROOT

SCRIPTS = (
    "main_stage1.py",
    "main_sampling_fid.py",
    "main_sampling_txt2img.py",
    "compute_rfid.py",
    "compute_metrics.py",
)
SIZE, COUNT = 16, 8
VOCABULARY = 100  # of the golden text-to-image model
WORDS = (
    "a",
    "the",
    "small",
    "large",
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "boat",
    "tree",
    "on",
    "under",
    "near",
    "yellow",
    "mountain",
    "painting",
    "sunglasses",
    "river",
    "window",
    "kitchen",
    "holding",
    "children",
    "frame",
)


def make_workspace(folder: Path) -> Path:
    """Fills an empty folder."""
    for script in SCRIPTS:
        (folder / script).symlink_to(ROOT / script)
    _make_data(folder / "data")
    _make_checkpoints(folder / "checkpoints")
    _make_config(folder, "imagenet256/stage1/in256-rqvae-8x8x4.yaml", {"type": f"imagenet{SIZE}x{SIZE}"})
    _make_config(folder, "lsun-church/stage1/church256-rqvae-8x8x4.yaml", {"type": "LSUN-church"})
    write_random_weights(folder / "inception.pth")
    _save_images(folder / "saved", 10, seed=5)
    return folder


def environment(workspace: Path, port: int, **more: str) -> dict[str, str]:
    """What the commands' variables stand for."""
    checkpoints = workspace / "checkpoints"
    paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return (
        os.environ
        | {
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stand_ins")]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TORCH_HOME": str(workspace / "hub"),
            "FID_INCEPTION_WEIGHTS": str(workspace / "inception.pth"),
            "MASTER_ADDR": "127.0.0.1",
            "PORT": str(port),
            "DATASET_NAME": "imagenet",
            "RQVAE_CKPT": str(checkpoints / "rqvae" / "model.pt"),
            "DIR_SAVED_IMG": str(workspace / "saved"),
        }
        | more
    )


def transformer_checkpoint(workspace: Path, kind: str) -> str:
    """The stage-2 file: `class`, or `text`."""
    return str(workspace / "checkpoints" / kind / "model.pt")


def captions(count: int, seed: int = 0) -> list[str]:
    """Sentences of a few words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 5)) for _ in range(count)]


def _make_data(folder: Path) -> None:
    for number, split in enumerate(("train", "val")):
        for label, wnid in enumerate(("n01440764", "n01443537")):
            _save_images(folder / "imagenet" / split / wnid, COUNT, seed=10 * number + label, suffix="JPEG")
        _save_images(folder / "lsun-church" / split, COUNT, seed=20 + number)
        files = _save_images(folder / "cc3m" / split, COUNT, seed=30 + number, suffix="jpg")
        lines = [f"./{split}/{file.name}\t{text}" for file, text in zip(files, captions(COUNT, number))]
        (folder / "cc3m" / f"{split}_list.txt").write_text("\n".join(lines) + "\n")
    files = _save_images(folder / "coco" / "images" / "val2014", COUNT, seed=40, suffix="jpg")
    content = {
        "images": [{"id": number, "file_name": file.name} for number, file in enumerate(files)],
        "annotations": [
            {"image_id": number, "id": number, "caption": text} for number, text in enumerate(captions(COUNT, 2))
        ],
    }
    (folder / "coco" / "annotations").mkdir()
    (folder / "coco" / "annotations" / "captions_val2014_30K_samples.json").write_text(json.dumps(content))


def _save_images(folder: Path, count: int, seed: int, suffix: str = "png") -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    files = [folder / f"{number:06d}.{suffix}" for number in range(count)]
    for file in files:
        image = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(file)
    return files


def _make_checkpoints(folder: Path) -> None:
    """The golden ones, whose config sections about data are made to fit the data here."""
    data = {
        "rqvae": {"dataset.transforms.type": f"imagenet{SIZE}x{SIZE}"},
        "class": {"dataset.transforms.type": f"imagenet{SIZE}x{SIZE}"},
        "text": {},
    }
    names = {"rqvae": "rqvae-shared", "class": "rqtransformer-class", "text": "rqtransformer-text"}
    for name, changes in data.items():
        shutil.copytree(GOLDEN / names[name], folder / name, ignore=shutil.ignore_patterns("io.*", "README.md"))
        config = OmegaConf.load(folder / name / "config.yaml")
        for key, value in {**changes, "experiment.num_workers": 0}.items():
            OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, folder / name / "config.yaml")
    write_tokenizer(folder / "text", captions(200, seed=3))


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A published pair of vocabulary and merges with the size that the golden model knows, beside its weights."""
    tokenizer = CharBPETokenizer(lowercase=True, unk_token="[UNK]")
    tokenizer.train_from_iterator(
        texts, vocab_size=VOCABULARY, min_frequency=1, special_tokens=["[PAD]", "[UNK]"], show_progress=False
    )
    tokenizer.save_model(str(folder), "bpe-16k")


def _make_config(folder: Path, name: str, transforms: dict[str, str]) -> None:
    """The published file with the sizes of the golden model, few images, and no loss that needs weights."""
    config = OmegaConf.load(ROOT / "configs" / name)
    golden = OmegaConf.load(GOLDEN / "rqvae-shared" / "config.yaml")
    config.arch = golden.arch
    config.dataset.transforms, config.dataset.resolution = transforms, SIZE
    config.experiment = {
        "batch_size": 4,
        "epochs": 1,
        "save_ckpt_freq": 1,
        "test_freq": 1,
        "num_workers": 0,
        "sample": {"num_images": 4},
    }
    config.gan.disc.arch.ndf, config.gan.loss.perceptual_weight = 8, 0.0
    path = folder / "configs" / name
    path.parent.mkdir(parents=True)
    OmegaConf.save(config, path)
