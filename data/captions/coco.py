"""MS-COCO with its captions: the splits of 2014 and 2017, and Karpathy's of the images of 2014.

| type            | captions                                   | images                                    |
|-----------------|--------------------------------------------|-------------------------------------------|
| `coco`          | `annotations/captions_{train,val}2014.json` | `{train,val}2014/`, also below `images/` |
| `coco-2017`     | `annotations/captions_{train,val}2017.json` | `{train,val}2017/`, also below `images/` |
| `coco-karpathy` | `dataset_coco.json`                        | as for `coco`                             |

The published evaluation takes its captions from `annotations/captions_val2014_30K_samples.json`, a file in the format
of COCO's own (30,000 captions drawn at random from val2014, the protocol of DALL-Eval, arXiv 2202.04053). Karpathy's
file (Karpathy and Fei-Fei 2015, arXiv 1412.2306) trains on `train` and `restval`, 113,287 images, and has 5,000 each
for `val` and `test`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from data.captions.captioned_dataset import build_captioned
from data.config import DatasetConfig
from data.dataset import ImageDataset
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.text_files import read_json

SAMPLES_30K = "captions_val2014_30K_samples.json"
KARPATHY_FILE = "dataset_coco.json"
KARPATHY_LAYOUT = f"{KARPATHY_FILE} and images/{{train,val}}2014/*.jpg"
_KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}
Pairs = list[tuple[str, list[str]]]
_log = logging.getLogger(__name__)


def layout_of(year: int) -> str:
    """What lies where."""
    return f"annotations/captions_{{train,val}}{year}.json and images/{{train,val}}{year}/*.jpg"


def build_coco(request: DatasetRequest, *, year: int = 2014) -> ImageDataset:
    """The images that the split's annotation file names, by their ids, with their captions in the file's order.

    The validation split reads dataset.val_captions; without it the 30K samples of 2014 if they are there, else all.
    """
    root = find_root(request.config, layout_of(year))
    annotations = annotation_file(request.config, root, request.split, year)
    return build_captioned(request, _image_folder(root, f"{request.split}{year}"), read_annotations(annotations))


def build_karpathy(request: DatasetRequest) -> ImageDataset:
    """The images of Karpathy's split; dataset.val_captions=test makes his test split the validation split."""
    config = request.config
    root = find_root(config, KARPATHY_LAYOUT)
    path = next((path for path in (root / "annotations" / KARPATHY_FILE, root / KARPATHY_FILE) if path.is_file()), None)
    if path is None:
        raise missing(config, root / KARPATHY_FILE, KARPATHY_LAYOUT)
    name = request.split
    if name == "val" and config.val_captions is not None:
        name = config.val_captions
        if name not in ("val", "test"):
            raise ValueError(f"dataset.val_captions of {config.name} must be val or test, not {name!r}")
    # a file's folder stands in its path: val2014 holds images of all four splits
    return build_captioned(request, _image_folder(root, "val2014").parent, read_karpathy(path, _KARPATHY_SPLITS[name]))


def _image_folder(root: Path, name: str) -> Path:
    return root / name if not (root / "images" / name).is_dir() and (root / name).is_dir() else root / "images" / name


def annotation_file(config: DatasetConfig, root: Path, split: str, year: int = 2014) -> Path:
    """Where the captions of a split are; FileNotFoundError with the layout expected."""
    names = [f"captions_{split}{year}.json"]
    if split == "val":
        names = [config.val_captions] if config.val_captions else [*([SAMPLES_30K] if year == 2014 else []), *names]
    for name in names:
        for path in (root / "annotations" / name, root / name):
            if path.is_file():
                return path
    raise missing(config, root / "annotations" / names[-1], layout_of(year))


def read_annotations(path: Path) -> Pairs:
    """(file name, captions) of every image with a caption, in the order of the ids.

    A caption that is null or blank is left out and counted; the ids of one file may be numbers or their digits.

    Raises:
        ValueError: the file is not in the format of COCO's caption annotations.
    """
    expected = 'expected {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}'
    content = read_json(path)
    names: dict[int | str, str] = {}
    captions: dict[int | str, list[str]] = {}
    try:
        for image in content["images"]:
            number, name = _id(image["id"]), _string(image["file_name"], "file_name")
            if names.setdefault(number, name) != name:
                raise ValueError(f"id {number} is that of {names[number]} and of {name}")
        given = [(_id(entry["image_id"]), entry["caption"]) for entry in content["annotations"]]
        for number, caption in given:
            if caption is not None and (text := _string(caption, "caption").strip()):
                captions.setdefault(number, []).append(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO caption file ({_reason(error)}); {expected}") from error
    _warn_of_blank(path, len(given) - sum(map(len, captions.values())), len(given))
    numbers = sorted(names, key=lambda number: (isinstance(number, str), number))
    return _found(path, [(names[number], captions[number]) for number in numbers if number in captions])


def read_karpathy(path: Path, splits: tuple[str, ...]) -> Pairs:
    """(path below the folder of images, captions) of the images of these splits, in the file's order.

    Raises:
        ValueError: the file is not in the format of Karpathy's splits.
    """
    expected = 'expected {"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}'
    pairs, total = [], 0
    content = read_json(path)
    try:
        for image in (image for image in content["images"] if image["split"] in splits):
            given = [sentence["raw"] for sentence in image["sentences"]]
            texts = [_string(text, "raw").strip() for text in given if text is not None]
            total += len(given)
            if texts := [text for text in texts if text]:
                name = _string(image["filename"], "filename")
                pairs.append((f"{_string(image['filepath'], 'filepath')}/{name}", texts))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of Karpathy's splits ({_reason(error)}); {expected}") from error
    _warn_of_blank(path, total - sum(len(texts) for _, texts in pairs), total)
    return _found(path, pairs)


def _id(value: Any) -> int | str:
    """An id as it is compared: digits are the number that they write."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f"an id must be a whole number or a string, not {value!r:.40}")
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 19 else value


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a string, not {value!r:.40}")
    return value


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {str(error)[:80]}"


def _warn_of_blank(path: Path, blank: int, total: int) -> None:
    if blank:
        _log.warning("%s: %d of %d captions are null or blank and are left out", path, blank, total)


def _found(path: Path, pairs: Pairs) -> Pairs:
    if not pairs:
        raise ValueError(f"{path} holds no captions of its images")
    return pairs
