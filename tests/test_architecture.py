"""The shape of the repository: who may import whom, where collectives live, what a file may be called and how long.

Everything is found in the syntax tree, imports inside functions included; nothing is imported. Every rule is also run
on a small tree that breaks it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 400
FORBIDDEN_FILES = {"utils.py", "helpers.py", "misc.py", "common.py"}

LIBRARY = {"rqstack", "rqvae", "rqtransformer"}
MIDDLE = LIBRARY | {"data", "evaluation"}
BELOW_SCRIPTS = MIDDLE | {"sampling", "scoring", "training", "runtime"}
MAY_IMPORT = {
    "runtime": set(),
    "rqstack": set(),
    "rqvae": {"rqstack"},
    "rqtransformer": {"rqstack"},
    "data": {"runtime"},
    "evaluation": {"runtime", "scoring"},
    "sampling": BELOW_SCRIPTS,
    "scoring": BELOW_SCRIPTS,
    "training": BELOW_SCRIPTS,
    "measure_throughput": BELOW_SCRIPTS,
    "benchmarks": BELOW_SCRIPTS | {"measure_throughput"},
    "demo": BELOW_SCRIPTS,
}
PRODUCT_FOLDERS = tuple(MAY_IMPORT)

LIBRARY_DEPENDENCIES = {"torch", "safetensors", "omegaconf", "einops", "yaml"}  # yaml: omegaconf's own
LOSS_DEPENDENCIES = {"lpips", "torchvision"}
KERNEL_FILE, KERNEL_DEPENDENCIES = "rqstack/quantizers/arithmetic/nearest_triton.py", {"triton"}
HUB_FILES, HUB_DEPENDENCIES = {"rqstack/hub.py"}, {"huggingface_hub"}
# Back to the published format, which is a torch.save file: only `convert --to published` does it.
PUBLISHED_WRITER = "rqtransformer/pretrained/published_file.py"

TORCH_DISTRIBUTED = {
    "runtime/distributed.py": ("torch.distributed",),
    "rqstack/quantizers/arithmetic/sync.py": ("torch.distributed",),
    "training/optimization/parallel.py": (
        "torch.distributed.fsdp",
        "torch.distributed.device_mesh",
        "torch.distributed.tensor",
        "torch.nn.parallel",
    ),
    "training/checkpoints/checkpoint.py": ("torch.distributed.checkpoint",),
    "training/checkpoints/checkpoint_index.py": ("torch.distributed.checkpoint",),
    "training/checkpoints/checkpoint_storage.py": ("torch.distributed.checkpoint",),
}
DISTRIBUTED_NAMES = ("torch.distributed", "torch.nn.parallel", "torch.utils.data.distributed")


@dataclass(frozen=True)
class Source:
    """One Python file of a tree."""

    root: Path
    path: Path

    @cached_property
    def name(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.name)

    @cached_property
    def module(self) -> str:
        """Dotted name; a package's `__init__.py` is the package itself."""
        parts = self.name.removesuffix(".py").split("/")
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def top(self) -> str:
        return self.name.split("/")[0].removesuffix(".py")

    @cached_property
    def imports(self) -> list[str]:
        """Dotted names this file imports, anywhere in it. `from a import b` gives `a.b`."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                found += [f"{base}.{alias.name}" if alias.name != "*" else base for alias in node.names]
            elif isinstance(node, ast.Call) and _dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
                found += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module.split(".") if self.path.name == "__init__.py" else self.module.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])


def _dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, `` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def product_sources(root: Path) -> list[Source]:
    files = list(root.glob("*.py"))
    for folder in PRODUCT_FOLDERS:
        files += (root / folder).rglob("*.py")
    return [Source(root, file) for file in sorted(files)]


def all_sources(root: Path) -> list[Source]:
    return product_sources(root) + [Source(root, file) for file in sorted((root / "tests").rglob("*.py"))]


def imports_that_go_up(root: Path) -> Iterator[str]:
    """Packages import only what lies below them; entry scripts may import everything but each other."""
    ours = {*PRODUCT_FOLDERS, "tests", *entry_scripts(root)}
    for source in product_sources(root):
        allowed = MAY_IMPORT.get(source.top, BELOW_SCRIPTS | {"measure_throughput", "benchmarks", "demo"})
        for name in source.imports:
            top = name.split(".")[0]
            if top in ours and top != source.top and top not in allowed:
                yield f"{source.name} imports {name}"


def entry_scripts(root: Path) -> set[str]:
    return {file.stem for file in root.glob("*.py")}


def imported_entry_scripts(root: Path) -> Iterator[str]:
    scripts = entry_scripts(root)
    for source in all_sources(root):
        for name in source.imports:
            if name.split(".")[0] in scripts:
                yield f"{source.name} imports the entry script {name}"


def distributed_outside_its_files(root: Path) -> Iterator[str]:
    """Collectives, wrapping and sharded checkpoints have a file each; all others ask `runtime.distributed`."""
    for source in product_sources(root):
        allowed = TORCH_DISTRIBUTED.get(source.name, ())
        used = {_dotted(node) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
        for name in sorted({*source.imports, *used}):
            if _under(name, DISTRIBUTED_NAMES) and not _under(name, allowed):
                yield f"{source.name} uses {name}"


def library_dependencies(root: Path) -> Iterator[str]:
    """The wheel needs torch, safetensors, omegaconf, einops; its losses lpips, torchvision; one kernel Triton.

    Methods that speak with the hub import huggingface_hub when they are called.
    """
    for source in product_sources(root):
        if source.top not in LIBRARY:
            continue
        allowed = LIBRARY_DEPENDENCIES | {"rqstack", source.top} | set(sys.stdlib_module_names)
        if source.name.startswith("rqvae/losses/"):
            allowed |= LOSS_DEPENDENCIES
        if source.name == KERNEL_FILE:
            allowed |= KERNEL_DEPENDENCIES
        if source.name in HUB_FILES:
            allowed |= HUB_DEPENDENCIES
        for name in source.imports:
            if name.split(".")[0] not in allowed:
                yield f"{source.name} imports {name}"


def import_cycles(root: Path) -> list[list[str]]:
    sources = {source.module: source for source in product_sources(root)}
    graph = {module: sorted(_targets(source, sources)) for module, source in sources.items()}
    cycles: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            cycles.append(trail[trail.index(module) :] + [module])
            return
        if module in done:
            return
        for target in graph[module]:
            visit(target, [*trail, module])
        done.add(module)

    for module in graph:
        visit(module, [])
    return cycles


def _targets(source: Source, sources: dict[str, Source]) -> set[str]:
    """The modules of ours a file imports: `a.b.name` is the module `a.b.name` if there is one, else `a.b`."""
    targets = set()
    for name in source.imports:
        found = name if name in sources else name.rpartition(".")[0]
        if found in sources and found != source.module:
            targets.add(found)
    return targets


def side_effects_of_imports(root: Path) -> Iterator[str]:
    """A module's top level defines; it calls nothing for effect and changes no other module."""
    for source in product_sources(root):
        for node in source.tree.body:
            call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            targets = node.targets if isinstance(node, ast.Assign) else []
            if call or any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets):
                yield f"{source.name}:{node.lineno} has an effect when imported"


def pickles(root: Path) -> Iterator[str]:
    """Nothing writes a pickle, and foreign checkpoints are read with `weights_only=True`."""
    for source in product_sources(root):
        for name in source.imports:
            # `import pickle` alone may name an exception; calling into it is found below.
            if name.split(".")[0] in ("cPickle", "dill", "joblib", "shelve") or name.startswith("pickle."):
                yield f"{source.name} imports {name}"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call):
                yield from (
                    f"{source.name}:{node.lineno} {what}"
                    for what in _pickling(node)
                    if (source.name, what) != (PUBLISHED_WRITER, "calls torch.save")
                )


def _pickling(call: ast.Call) -> Iterator[str]:
    name = _dotted(call.func)
    given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if name.startswith("pickle."):
        yield f"calls {name}"
    if name == "torch.save":
        yield "calls torch.save"
    if name == "torch.load" and given.get("weights_only") is not True:
        yield "calls torch.load without weights_only=True"
    if given.get("allow_pickle") is True:
        yield "passes allow_pickle=True"


def badly_named_files(root: Path) -> Iterator[str]:
    yield from (source.name for source in all_sources(root) if source.path.name in FORBIDDEN_FILES)


def long_files(root: Path) -> Iterator[str]:
    for source in all_sources(root):
        lines = len(source.text.splitlines())
        if lines > MAX_LINES:
            yield f"{source.name} has {lines} lines"


RULES = {
    rule.__name__: rule
    for rule in (
        imports_that_go_up,
        imported_entry_scripts,
        distributed_outside_its_files,
        library_dependencies,
        import_cycles,
        side_effects_of_imports,
        pickles,
        badly_named_files,
        long_files,
    )
}


@pytest.mark.parametrize("rule", RULES)
def test_the_repository_follows(rule):
    assert list(RULES[rule](ROOT)) == []


def test_the_packages_were_looked_at():
    assert {"rqvae", "rqtransformer", "training", "runtime"} <= {source.top for source in product_sources(ROOT)}


VIOLATIONS = [
    ("imports_that_go_up", {"rqvae/a.py": "import runtime.config"}),
    ("imports_that_go_up", {"rqtransformer/a.py": "def f():\n    from rqvae import model"}),
    ("imports_that_go_up", {"data/a.py": "import evaluation"}),
    ("imports_that_go_up", {"evaluation/a.py": "import importlib\nimportlib.import_module('training.loop.loop')"}),
    ("imports_that_go_up", {"runtime/a.py": "from data import order"}),
    ("imports_that_go_up", {"training/a.py": "import tests.conftest"}),
    ("imported_entry_scripts", {"main_x.py": "", "demo/a.py": "from main_x import main"}),
    ("imported_entry_scripts", {"main_x.py": "", "tests/test_a.py": "import main_x"}),
    ("distributed_outside_its_files", {"training/a.py": "import torch.distributed as dist"}),
    ("distributed_outside_its_files", {"training/a.py": "from torch import distributed"}),
    ("distributed_outside_its_files", {"training/a.py": "import torch\ntorch.distributed.barrier()"}),
    ("distributed_outside_its_files", {"training/a.py": "from torch.nn.parallel import DistributedDataParallel"}),
    ("distributed_outside_its_files", {"training/optimization/parallel.py": "import torch.distributed as dist"}),
    ("library_dependencies", {"rqvae/a.py": "def f():\n    import hydra"}),
    ("library_dependencies", {"rqvae/a.py": "import lpips"}),
    ("library_dependencies", {"rqvae/a.py": "import triton"}),
    ("library_dependencies", {"rqvae/a.py": "import huggingface_hub"}),
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
]
ALLOWED = {
    "main_x.py": "import training.loop.loop\nif __name__ == '__main__':\n    print(1)",
    "training/loop/loop.py": "from rqvae import RQVAE\nfrom runtime import config",
    "rqvae/__init__.py": "from rqvae.model import RQVAE",
    "rqvae/model.py": "import torch\nfrom rqstack.quantizers import sync",
    "rqstack/quantizers/arithmetic/sync.py": "import torch.distributed as dist",
    "rqvae/losses/perceptual.py": "def f():\n    import lpips",
    "training/optimization/parallel.py": "from torch.nn.parallel import DistributedDataParallel",
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
