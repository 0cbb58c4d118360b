"""Results that are kept: one JSON line per run, and the version of the code that decides numbers.

The code version is a hash of the syntax trees, without docstrings and imports, of the files in `DECIDES`: the
quantizers, both models, what trains them, order and noise of the data, the sampler and the scores that are used here. A
change of a comment, of a message elsewhere or of a document throws no result away.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.paper_claims.runs import Run

ROOT = Path(__file__).resolve().parents[2]
STAGE1 = (
    "rqstack/quantizers/base.py",
    "rqstack/quantizers/warmup.py",
    "rqstack/quantizers/methods",
    "rqstack/quantizers/codebooks",
    "rqstack/quantizers/arithmetic",
    "rqstack/quantizers/wrappers",
    "rqvae/model.py",
    "rqvae/encoder_decoder.py",
    "rqvae/blocks.py",
    "rqvae/bottleneck.py",
    "rqvae/losses/reconstruction.py",
    "training/optimization",
    "training/stages/stage1.py",
    "training/stages/validation.py",
    "data/noise.py",
    "data/order.py",
    "data/images/memory_dataset.py",
    "data/images/binary_formats.py",
    "evaluation/metrics/frechet.py",
    "evaluation/networks/classifier.py",
    "evaluation/networks/classifier_training.py",
    "benchmarks/paper_claims/executing.py",
)
STAGE2 = (
    *STAGE1,
    "rqtransformer/attention.py",
    "rqtransformer/embedding.py",
    "rqtransformer/model.py",
    "rqtransformer/stack.py",
    "rqtransformer/targets.py",
    "rqtransformer/decoding/logits.py",
    "rqtransformer/decoding/truncation.py",
    "rqtransformer/decoding/code_sampling.py",
    "training/stages/stage2.py",
    "training/stages/training_codes.py",
    "evaluation/metrics/manifold.py",
    "sampling/rejection.py",
)
DECIDES = {"stage1": STAGE1, "stage2": STAGE2, "samples": STAGE2, "speed": STAGE2}


@cache
def code_version(kind: str, root: Path = ROOT) -> str:
    """Hash of what decides the numbers of runs of a kind.

    Raises:
        FileNotFoundError: a name of it leads nowhere.
    """
    digest = hashlib.sha256()
    for name in DECIDES[kind]:
        path = root / name
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            digest.update(str(file.relative_to(root)).encode())
            digest.update(ast.dump(_without_words(ast.parse(file.read_text(encoding="utf-8")))).encode())
    return digest.hexdigest()[:12]


def _without_words(tree: ast.Module) -> ast.Module:
    """Without docstrings, and without imports: where a name comes from decides nothing."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node, clean=False) is not None
            kept = [part for part in node.body[documented:] if not isinstance(part, (ast.Import, ast.ImportFrom))]
            node.body = kept or [ast.Pass()]
    return tree


class Results:
    """The results of a file of JSON lines, by key.

    Args:
        path: the file; a last line that was cut short by a kill does not count.
        any_code: also take results of other versions of the code, where there is none of this one.
    """

    def __init__(self, path: Path, any_code: bool = False) -> None:
        self.path, self.any_code = path, any_code
        self._lines: dict[str, dict[str, Any]] = {}
        self._by_facts: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Takes in what stands in the file by now."""
        for line in _sound_lines(self.path):
            self._keep(line)

    def find(self, run: Run) -> dict[str, Any] | None:
        """The line of a run; None where it has not run with this code (with `any_code`: with any)."""
        found = self._lines.get(run.key(code_version(run.kind)))
        if found is None and self.any_code:
            found = self._by_facts.get(_digest(run.facts()))
        return found

    def add(self, run: Run, result: dict[str, Any], about: dict[str, Any]) -> None:
        """Appends the line of a run to the file.

        Args:
            result: the numbers.
            about: where and how long it ran.
        """
        line = {
            "key": run.key(code_version(run.kind)),
            "run": str(run),
            "size": run.size.name,
            "code": code_version(run.kind),
            "facts": _digest(run.facts()),
            **about,
            "result": result,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        start = "" if not text or text.endswith("\n") else "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + json.dumps(line, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(line)

    def _keep(self, line: dict[str, Any]) -> None:
        self._lines[line["key"]] = line
        self._by_facts[line["facts"]] = line


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _sound_lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut short by a kill: that run is made again
        yield line
