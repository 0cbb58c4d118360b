"""The CLIP network of the scripts, and the captions of saved samples.

Legend: N images.
"""

from __future__ import annotations

import json
from pathlib import Path

from data.text_files import read_lines
from evaluation.networks.clip_features import ClipFeatures
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError, one_line
from sampling.prompts import CAPTIONS_FILE
from scoring.settings import CLIP_METRIC, ClipSettings


def load_clip(settings: ClipSettings, env: DistEnv) -> ClipFeatures:
    """CLIP by file, or by open_clip's tag, which one process of all fetches first.

    Raises:
        UserError: it cannot be had.
    """
    try:
        if settings.weights is not None:
            return ClipFeatures(settings.model.partition("/")[0], settings.weights, env.device)
        if env.is_distributed:
            distributed.run_on_main(lambda: ClipFeatures(settings.model).fingerprint)
        return ClipFeatures(settings.model, device=env.device)
    except (ValueError, OSError, RuntimeError) as error:  # open_clip raises the last for what it cannot fetch
        raise UserError(
            f"{one_line(error)}; CLIP is needed for the metric {CLIP_METRIC} (--metrics chooses) and for "
            "rejection by captions; --clip-weights FILE gives it weights"
        ) from error


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
    lines = [text for text in read_lines(file) if text.strip()]
    try:
        entries = [json.loads(text) for text in lines]
        found = {int(entry["index"]): str(entry["text"]) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{file} is damaged: every line must be {{"index": ..., "text": ...}}') from error
    if sorted(found) != list(range(num_images)):
        raise UserError(f"{file} has captions for {len(found)} images, there are {num_images}")
    return [found[index] for index in range(num_images)]
