"""The CLIP network of the scripts, and the captions of saved samples.

Legend: N images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.metrics.clip_score import ClipScore
from evaluation.networks.clip_features import ClipFeatures
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError, one_line
from sampling.prompts import CAPTIONS_FILE

CLIP_METRIC = "clip"
PUBLISHED_CLIP = "ViT-B-32-quickgelu/openai"


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose the network."""
    parser.add_argument(
        "--clip-model",
        default=PUBLISHED_CLIP,
        metavar="NAME[/TAG]",
        help=f"of open_clip, for whatever needs CLIP (default: {PUBLISHED_CLIP})",
    )
    parser.add_argument("--clip-weights", metavar="FILE", help="its weights, instead of those of the tag")


def load_clip(args: argparse.Namespace, env: DistEnv) -> ClipFeatures:
    """CLIP by file, or by open_clip's tag, which one process of all fetches first.

    Raises:
        UserError: it cannot be had.
    """
    try:
        if args.clip_weights is not None:
            return ClipFeatures(args.clip_model.partition("/")[0], args.clip_weights, env.device)
        if env.is_distributed:
            distributed.run_on_main(lambda: ClipFeatures(args.clip_model).fingerprint)
        return ClipFeatures(args.clip_model, device=env.device)
    except (ValueError, OSError, RuntimeError) as error:  # open_clip raises the last for what it cannot fetch
        raise UserError(
            f"{one_line(error)}; CLIP is needed for the metric {CLIP_METRIC} (--metrics chooses) and for "
            "rejection by captions; --clip-weights FILE gives it weights"
        ) from error


def add_clip_score(line: dict[str, Any], score: ClipScore, num_images: int) -> None:
    """Sums the score over ranks and puts it into the result line; every rank must call it."""
    clip = score.network
    line["metrics"] = {**line["metrics"], **score.metrics(num_images, distributed.all_reduce_sum_)}
    line["clip"] = {"name": clip.name, "resize": clip.resize, "fingerprint": clip.fingerprint}


def line_without_reference(clip: ClipFeatures, num_images: int, **facts: Any) -> dict[str, Any]:
    """The beginning of the result line of images that are compared with nothing but their captions."""
    features = {
        "name": clip.name,
        "dim": clip.dim,
        "num_classes": 0,
        "resize": clip.resize,
        "fingerprint": clip.fingerprint,
    }
    return {"metrics": {}, "num_images": num_images, "references": {}, "features": features, "warnings": [], **facts}


def saved_captions(path: Path, num_images: int) -> list[str]:
    """The captions of saved samples, by number, from `captions.jsonl` in their folder or the one above.

    Raises:
        UserError: no such file, a damaged one, or one for another number of images.
    """
    folder = path if path.is_dir() else path.parent
    file = next((place / CAPTIONS_FILE for place in (folder, folder.parent) if (place / CAPTIONS_FILE).is_file()), None)
    if file is None:
        raise UserError(
            f"metrics={CLIP_METRIC} needs the captions of the images: {folder / CAPTIONS_FILE} with a line "
            '{"index": 0, "text": "..."} for each, as main_sampling_txt2img.py writes it'
        )
    try:
        entries = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text.strip()]
        found = {int(entry["index"]): str(entry["text"]) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{file} is damaged: every line must be {{"index": ..., "text": ...}}') from error
    if sorted(found) != list(range(num_images)):
        raise UserError(f"{file} has captions for {len(found)} images, there are {num_images}")
    return [found[index] for index in range(num_images)]


def with_captions(batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Batches of saved samples; the caption's number is that of the image."""
    for batch in batches:
        yield {**batch, "caption": batch["index"]}
