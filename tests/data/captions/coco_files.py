"""Small images and annotation files as COCO has them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def write_annotations(path, images, annotations, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in images],
        "annotations": [{"image_id": number, "caption": caption} for number, caption in annotations],
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    return path


def save_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 20, 3), value, dtype=np.uint8)).save(path, "png")
