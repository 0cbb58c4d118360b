"""MS-COCO 2014 with its captions: images `images/train2014` and `images/val2014`, captions in `annotations`.

The published evaluation takes its captions from `annotations/captions_val2014_30K_samples.json`, a file in the format
of COCO's own (30,000 captions drawn at random from val2014, the protocol of DALL-Eval, arXiv 2202.04053).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.captions.captioned_dataset import build_captioned
from data.config import DatasetConfig
from data.dataset import ImageDataset
from data.request import DatasetRequest
from data.roots import find_root, missing

LAYOUT = "annotations/captions_{train,val}2014.json and images/{train,val}2014/*.jpg"
SAMPLES_30K = "captions_val2014_30K_samples.json"


def build_coco(request: DatasetRequest) -> ImageDataset:
    """The images that the split's annotation file names, by their ids, with their captions in the file's order.

    The validation split reads dataset.val_captions; without it the 30K samples if they are there, else all of val2014.
    """
    root, split = find_root(request.config, LAYOUT), request.split
    annotations = annotation_file(request.config, root, split)
    images = read_annotations(annotations)
    folder = root / "images" / f"{split}2014"
    if not folder.is_dir() and (root / f"{split}2014").is_dir():
        folder = root / f"{split}2014"
    return build_captioned(request, folder, images)


def annotation_file(config: DatasetConfig, root: Path, split: str) -> Path:
    """Where the captions of a split are; FileNotFoundError with the layout expected."""
    names = [f"captions_{split}2014.json"]
    if split == "val":
        names = [config.val_captions] if config.val_captions else [SAMPLES_30K, *names]
    for name in names:
        for path in (root / "annotations" / name, root / name):
            if path.is_file():
                return path
    raise missing(config, root / "annotations" / names[-1], LAYOUT)


def read_annotations(path: Path) -> list[tuple[str, list[str]]]:
    """(file name, captions) of every image with a caption, in the order of the ids.

    Raises:
        ValueError: the file is not in the format of COCO's caption annotations.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions = _captions_by_image(content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no COCO caption file ({type(error).__name__}: {error}); expected "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
        ) from error
    found = [(names[number], captions[number]) for number in sorted(names) if number in captions]
    if not found:
        raise ValueError(f"{path} holds no captions of its images")
    return found


def _captions_by_image(content: Mapping[str, Any]) -> dict[Any, list[str]]:
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]).strip())
    return captions
