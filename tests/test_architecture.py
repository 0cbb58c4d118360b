"""The shape of the repository, as `tests.architecture` says it. Every rule is also run on a tree that breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture import MAX_FILES, MAX_LINES, PRODUCT_FOLDERS, RULES, product_sources

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("rule", RULES)
def test_the_repository_follows(rule):
    assert list(RULES[rule](ROOT)) == []


def test_the_packages_were_looked_at():
    assert set(PRODUCT_FOLDERS) <= {source.top for source in product_sources(ROOT)}


VIOLATIONS = [
    ("imports_that_go_up", {"rqvae/a.py": "import runtime.config"}),
    ("imports_that_go_up", {"rqtransformer/a.py": "def f():\n    from rqvae import model"}),
    ("imports_that_go_up", {"rqstack/a.py": "import rqvae"}),
    ("imports_that_go_up", {"data/a.py": "import evaluation"}),
    ("imports_that_go_up", {"evaluation/a.py": "import importlib\nimportlib.import_module('training.loop')"}),
    ("imports_that_go_up", {"evaluation/a.py": "import sys\nwords = [sys.executable, '-m', 'data.prepare', 'x']"}),
    ("imports_that_go_up", {"data/a.py": "def f(run):\n    run('python', '-m', 'scoring.reference')"}),
    ("imports_that_go_up", {"sampling/a.py": "import scoring"}),
    ("imports_that_go_up", {"scoring/a.py": "from training.experiment import ExperimentConfig"}),
    ("imports_that_go_up", {"runtime/a.py": "from data import order"}),
    ("imports_that_go_up", {"rqstack/commands/a.py": "from runtime import config"}),
    ("imports_that_go_up", {"rqvae/a.py": "from rqstack.commands import pictures"}),
    ("imports_that_go_up", {"rqstack/a.py": "import rqstack.commands.models"}),
    ("imports_that_go_up", {"training/a.py": "import tests.conftest"}),
    ("imports_between_rooms", {"data/images/a.py": "from data.shards import shard_index"}),
    ("imports_between_rooms", {"evaluation/networks/a.py": "def f():\n    import evaluation.metrics.kid"}),
    ("imports_between_rooms", {"training/optimization/a.py": "from training.loop.loop import Loop"}),
    (
        "imports_between_rooms",
        {"rqstack/quantizers/arithmetic/a.py": "from rqstack.quantizers.codebooks import kmeans"},
    ),
    ("imports_between_rooms", {"data/new_room/a.py": ""}),
    ("imported_entry_scripts", {"main_x.py": "", "demo/a.py": "from main_x import main"}),
    ("imported_entry_scripts", {"main_x.py": "", "tests/test_a.py": "import main_x"}),
    ("distributed_outside_its_files", {"training/a.py": "import torch.distributed as dist"}),
    ("distributed_outside_its_files", {"training/a.py": "from torch import distributed"}),
    ("distributed_outside_its_files", {"training/a.py": "import torch\ntorch.distributed.barrier()"}),
    ("distributed_outside_its_files", {"training/a.py": "from torch.nn.parallel import DistributedDataParallel"}),
    ("distributed_outside_its_files", {"training/optimization/parallel.py": "import torch.distributed as dist"}),
    ("distributed_outside_its_files", {"training/loop/a.py": "import torch.distributed.checkpoint"}),
    ("library_dependencies", {"rqvae/a.py": "def f():\n    import hydra"}),
    ("library_dependencies", {"rqvae/a.py": "import lpips"}),
    ("library_dependencies", {"rqvae/a.py": "import triton"}),
    ("library_dependencies", {"rqvae/a.py": "import huggingface_hub"}),
    ("image_files_read_elsewhere", {"scoring/a.py": "from PIL import Image\ndef f(x):\n    return Image.open(x)"}),
    ("image_files_read_elsewhere", {"demo/a.py": "from torchvision.io import read_image"}),
    ("raw_output", {"data/a.py": "def f(path):\n    print(f'{path} is read')"}),
    ("raw_output", {"scoring/a.py": "import html\n\ndef f(name):\n    return html.escape(name)"}),
    ("parsers_below_commands", {"sampling/a.py": "from argparse import Namespace"}),
    ("import_cycles", {"rqvae/a.py": "from rqvae import b", "rqvae/b.py": "def f():\n    from .a import x"}),
    ("import_cycles", {"rqvae/__init__.py": "from rqvae.a import x", "rqvae/a.py": "from rqvae import x"}),
    ("side_effects_of_imports", {"data/a.py": "import torch\ntorch.manual_seed(0)"}),
    ("side_effects_of_imports", {"data/a.py": "import torch\ntorch.backends.cudnn.benchmark = True"}),
    ("pickles", {"training/a.py": "from pickle import dumps"}),
    ("pickles", {"training/a.py": "import pickle\ndef f(x):\n    return pickle.loads(x)"}),
    ("pickles", {"rqvae/a.py": "import torch\ndef f(x):\n    return torch.load(x)"}),
    ("pickles", {"rqvae/a.py": "import torch\ndef f(x):\n    torch.save(x, 'x')"}),
    ("badly_named_files", {"rqvae/utils.py": ""}),
    ("long_files", {"tests/rqvae/test_a.py": "x = 1\n" * (MAX_LINES + 1)}),
    ("full_folders", {f"rqvae/losses/a{number}.py": "" for number in range(MAX_FILES + 1)}),
    ("unreasoned_type_ignores", {"rqvae/a.py": "x: int = ''  # type: ignore"}),
    ("unreasoned_type_ignores", {"rqvae/a.py": "x: int = ''  # type: ignore[assignment]"}),
]
ALLOWED = {
    "main_x.py": 'import argparse\nimport training.loop.loop\nif __name__ == "__main__":\n    run(1)',
    "training/loop/loop.py": "from rqvae import RQVAE\nfrom runtime import config",
    "training/optimization/parallel.py": "from torch.nn.parallel import DistributedDataParallel",
    "training/checkpoints/storage.py": "from torch.distributed.checkpoint import StorageWriter",
    "data/prepare.py": "import argparse\nx = ['-m', 'data.prepare']\nif __name__ == \"__main__\":\n    say(x)",
    "data/images/decoding.py": "from PIL import Image\ndef f(x):\n    return Image.open(x)",
    "rqvae/__init__.py": "from rqvae.model import RQVAE",
    "rqvae/model.py": "import torch\nfrom rqstack.quantizers.arithmetic import sync\n",
    "rqstack/quantizers/arithmetic/sync.py": "import torch.distributed as dist",
    "rqvae/losses/perceptual.py": "def f():\n    import lpips  # type: ignore[import]  # it has no types",
    "tests/conftest.py": "import os\nos.environ.setdefault('A', '1')",
}


def _write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("rule", "files"), VIOLATIONS)
def test_a_broken_rule_is_noticed(rule, files, tmp_path):
    assert list(RULES[rule](_write_tree(tmp_path, files)))


@pytest.mark.parametrize("rule", RULES)
def test_a_sound_tree_passes(rule, tmp_path):
    assert list(RULES[rule](_write_tree(tmp_path, ALLOWED))) == []
