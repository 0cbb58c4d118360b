"""Result lines: what they say beside the metrics, and where they go."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.references.reference_files import Reference
from runtime.atomic import write_text_atomically

WITHOUT_REFERENCE = ("metrics", "num_images", "references", "features", "warnings")


def file_part(features: str) -> str:
    """The name of a feature network as a part of a file name."""
    return re.sub(r"[^\w.-]+", "-", features)


def reference_facts(reference: Reference) -> dict[str, Any]:
    """What a result line says about the reference beside its name: source, number of images, hash."""
    return {"source": reference.source, "num_images": reference.moments.num or None, "digest": reference.digest}


def line_of_captions(line: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The result line of images that were compared with nothing but their captions."""
    return {**{name: line[name] for name in WITHOUT_REFERENCE}, **facts, "clip": line["clip"]}


def write_result(path: Path, line: Mapping[str, Any]) -> None:
    """Writes the result line as JSON, and prints its warnings, a readable table and the line itself, last."""
    text = json.dumps(line)
    write_text_atomically(path, text + "\n")
    for warning in line.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    width = max((len(name) for name in line["metrics"]), default=0)
    print(f"{line['num_images']} images, features {line['features']['name']}, {line['seconds']:.1f} s")
    for name, value in line["metrics"].items():
        print(f"  {name:<{width}}  {value:.4f}")
    print(text, flush=True)
