"""The rules of the repository's shape: who may import whom, what stands in one place only, how long a file may be.

Each takes the root of a tree and yields a line for everything that breaks it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tests.source_tree import Source, dotted, under

MAX_LINES = 400
MAX_FILES = 18
FORBIDDEN_FILES = {"utils.py", "helpers.py", "misc.py", "common.py"}

# What both halves of the ground need; it imports nothing of ours.
SHARED_GROUND = ("rqstack.printable", "rqstack.config_limits")
LIBRARY = {"rqstack", "rqvae", "rqtransformer"}
MODELS_AND_DATA = LIBRARY | {"data", "evaluation", "runtime"}
BELOW_SCRIPTS = MODELS_AND_DATA | {"sampling", "scoring", "training"}
MAY_IMPORT = {
    "rqstack": set(),
    "runtime": set(),
    "rqvae": {"rqstack"},
    "rqtransformer": {"rqstack"},
    "data": {"rqstack", "runtime"},
    "evaluation": {"rqstack", "runtime"},
    "sampling": MODELS_AND_DATA,
    "scoring": MODELS_AND_DATA | {"sampling"},
    "training": MODELS_AND_DATA | {"sampling", "scoring"},
    "measure_throughput": BELOW_SCRIPTS,
    "benchmarks": BELOW_SCRIPTS | {"measure_throughput"},
    "demo": BELOW_SCRIPTS,
    "examples": LIBRARY,
}
CONSOLE_SCRIPT = ("rqstack.commands",)  # a program on top of the libraries, though it lies in one of them
SCRIPTS_MAY_IMPORT = BELOW_SCRIPTS | {"measure_throughput", "benchmarks", "demo"}
PRODUCT_FOLDERS = tuple(MAY_IMPORT)

# The rooms of a package, each with those of the same package that it may import. Modules at a package's root are free.
ROOMS: dict[str, dict[str, set[str]]] = {
    "rqstack": {"quantizers": set(), "commands": set()},
    "rqstack.quantizers": {
        "arithmetic": set(),
        "codebooks": {"arithmetic"},
        "wrappers": {"arithmetic"},
        "methods": {"arithmetic", "codebooks", "wrappers"},
        "compat": {"arithmetic", "codebooks", "wrappers", "methods"},
    },
    "rqvae": {"losses": set()},
    "rqtransformer": {"native": set(), "fast": {"native"}, "decoding": {"native", "fast"}, "pretrained": set()},
    "data": {
        "tokenizers": set(),
        "images": set(),
        "captions": {"tokenizers", "images"},
        "shards": {"tokenizers", "images", "captions"},
    },
    "evaluation": {"networks": set(), "metrics": {"networks"}, "references": {"networks", "metrics"}},
    "training": {
        "optimization": set(),
        "checkpoints": set(),
        "stages": {"optimization"},
        "loop": {"checkpoints"},
        "report": {"stages"},
        "launch": {"checkpoints", "loop", "report"},
    },
    "demo": {"text": set(), "web": set(), "pictures": {"text"}},
    "runtime": {"network": set(), "pages": set(), "processes": set(), "records": set()},
}
# What other libraries call their things stands in these rooms as it does there.
OTHERS_LAYOUT = ("rqstack.quantizers.compat",)

LIBRARY_DEPENDENCIES = {"torch", "safetensors", "omegaconf", "einops", "yaml"}  # yaml: omegaconf's own
LIBRARY_EXTRAS = {
    "rqvae/losses/": {"lpips", "torchvision"},
    "rqstack/quantizers/arithmetic/nearest_triton.py": {"triton"},
    "rqtransformer/fast/kernels/": {"triton"},
    "rqtransformer/soft_target_triton.py": {"triton"},
    "rqvae/group_norm_triton.py": {"triton"},
    "rqstack/hub.py": {"huggingface_hub"},
    "rqstack/commands/": {"PIL"},
}
# Back to the published format, which is a torch.save file: only `convert --to published` does it.
PUBLISHED_WRITER = "rqstack/published_file.py"

TORCH_DISTRIBUTED = {
    "runtime/distributed.py": ("torch.distributed",),
    "rqstack/quantizers/arithmetic/sync.py": ("torch.distributed",),
    "training/optimization/parallel.py": (
        "torch.distributed.fsdp",
        "torch.distributed.device_mesh",
        "torch.distributed.tensor",
        "torch.nn.parallel",
    ),
    "training/checkpoints/": ("torch.distributed.checkpoint",),
}
DISTRIBUTED_NAMES = ("torch.distributed", "torch.nn.parallel", "torch.utils.data.distributed")
OUTPUT_CALLS = ("print", "tqdm.write", "sys.stdout.write", "sys.stderr.write", "html.escape")
OUTPUT_FILES = (
    "runtime/errors.py",
    "runtime/progress.py",
    "rqstack/printable.py",
    "data/tokenizers/library_trial.py",  # to the process that started it
)
IMAGE_READERS = ("PIL.Image.open", "Image.open", "torchvision.io.read_image", "torchvision.io.decode_image")
FLAG_FILES = re.compile(r"runtime/cli\.py|.*/(__main__|[a-z_]*flags)\.py")
TYPE_IGNORE = re.compile(r"# type: ignore")
REASONED_IGNORE = re.compile(r"# type: ignore\[[a-z, -]+\]\s*#? ?\S.{5,}")


@lru_cache(maxsize=64)
def product_sources(root: Path) -> tuple[Source, ...]:
    files = list(root.glob("*.py"))
    for folder in PRODUCT_FOLDERS:
        files += (root / folder).rglob("*.py")
    return tuple(Source(root, file) for file in sorted(files))


def all_sources(root: Path) -> list[Source]:
    return [*product_sources(root), *(Source(root, file) for file in sorted((root / "tests").rglob("*.py")))]


def imports_that_go_up(root: Path) -> Iterator[str]:
    """Packages import, and start as processes, only what lies below them; scripts may everything but each other.

    The wheel's console script may import the three libraries, and nobody imports it.
    """
    ours = {*PRODUCT_FOLDERS, "tests", *entry_scripts(root)}
    for source in product_sources(root):
        is_console = under(source.module, CONSOLE_SCRIPT)
        allowed = LIBRARY if is_console else MAY_IMPORT.get(source.top, SCRIPTS_MAY_IMPORT) | {source.top}
        for name in [*source.imports, *source.processes]:
            top = name.split(".")[0]
            if under(name, CONSOLE_SCRIPT) and not is_console:
                yield f"{source.name} uses {name}"
            elif top in ours - allowed and not (source.top == "runtime" and under(name, SHARED_GROUND)):
                yield f"{source.name} uses {name}"


def imports_between_rooms(root: Path) -> Iterator[str]:
    """The same between the sub-packages of a package; every sub-package has its place in `ROOMS`."""
    for source in product_sources(root):
        for package, rooms in ROOMS.items():
            room = room_of(source.module, package)
            is_room = room is not None and (root / package.replace(".", "/") / room).is_dir()
            if not is_room:
                continue
            if room not in rooms:
                yield f"{package}.{room} has no place in ROOMS"
                continue
            for name in [*source.imports, *source.processes]:
                other = room_of(name, package)
                if other in rooms and other != room and other not in rooms[room]:
                    yield f"{source.name} uses {name}"


def room_of(module: str, package: str) -> str | None:
    """`arithmetic` of `rqstack.quantizers.arithmetic.sync` in `rqstack.quantizers`."""
    return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None


def entry_scripts(root: Path) -> set[str]:
    return {file.stem for file in root.glob("*.py")}


def imported_entry_scripts(root: Path) -> Iterator[str]:
    scripts = entry_scripts(root)
    for source in all_sources(root):
        for name in source.imports:
            if name.split(".")[0] in scripts:
                yield f"{source.name} imports the entry script {name}"


def distributed_outside_its_files(root: Path) -> Iterator[str]:
    """Collectives, wrapping and sharded checkpoints have a place each; all others ask `runtime.distributed`."""
    for source in product_sources(root):
        allowed = _of_place(TORCH_DISTRIBUTED, source)
        used = {dotted(node) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
        for name in sorted({*source.imports, *used}):
            if under(name, DISTRIBUTED_NAMES) and not under(name, tuple(allowed)):
                yield f"{source.name} uses {name}"


def _of_place(table: dict, source: Source) -> set[str]:
    """The entries of a table for this file or a folder around it."""
    return {name for place, names in table.items() if source.name.startswith(place) for name in names}


def library_dependencies(root: Path) -> Iterator[str]:
    """The wheel needs torch, safetensors, omegaconf, einops; few places of it more, when they are called."""
    for source in product_sources(root):
        if source.top not in LIBRARY:
            continue
        allowed = LIBRARY | LIBRARY_DEPENDENCIES | _of_place(LIBRARY_EXTRAS, source) | set(sys.stdlib_module_names)
        for name in source.imports:
            if name.split(".")[0] not in allowed:
                yield f"{source.name} imports {name}"


def image_files_read_elsewhere(root: Path) -> Iterator[str]:
    """Files of images are read by `data` alone, and by the wheel's console script, which has no `data`; benchmarks
    compare readers.
    """
    for source in product_sources(root):
        if source.top in ("data", "benchmarks") or under(source.module, CONSOLE_SCRIPT):
            continue
        calls = {dotted(node.func) for node in ast.walk(source.tree) if isinstance(node, ast.Call)}
        for name in sorted({*source.imports, *calls} & set(IMAGE_READERS)):
            yield f"{source.name} uses {name}"


def raw_output(root: Path) -> Iterator[str]:
    """What is said goes through `runtime.errors.say` or `rqstack.printable`: no text from elsewhere acts."""
    for source in product_sources(root):
        if source.top in ("demo", "benchmarks") or source.name in OUTPUT_FILES:
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call) or dotted(node.func) not in OUTPUT_CALLS:
                continue
            if not all(isinstance(word, ast.Call) and dotted(word.func) == "printable" for word in node.args):
                yield f"{source.name}:{node.lineno} calls {dotted(node.func)}"


def parsers_below_commands(root: Path) -> Iterator[str]:
    """Flags become typed settings where a command stands; nothing below takes an `argparse.Namespace`."""
    for source in product_sources(root):
        is_command = 'if __name__ == "__main__":' in source.text or FLAG_FILES.fullmatch(source.name)
        if any(under(name, ("argparse",)) for name in source.imports) and not is_command:
            yield f"{source.name} imports argparse"


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
            for what in _pickling(node) if isinstance(node, ast.Call) else ():
                if (source.name, what) != (PUBLISHED_WRITER, "calls torch.save"):
                    yield f"{source.name}:{node.lineno} {what}"


def _pickling(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
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


def full_folders(root: Path) -> Iterator[str]:
    """At most 18 files of code in a folder."""
    ours = (source for source in product_sources(root) if not under(source.module, OTHERS_LAYOUT))
    for folder, count in Counter(str(source.path.parent.relative_to(root)) for source in ours).items():
        if count > MAX_FILES:
            yield f"{folder} has {count} files"


def unreasoned_type_ignores(root: Path) -> Iterator[str]:
    """A `type: ignore` names its code and, in words on the same line, its reason."""
    for source in product_sources(root):
        for comment in source.comments:
            if TYPE_IGNORE.search(comment) and not REASONED_IGNORE.search(comment):
                yield f"{source.name}: {comment}"


RULES = {
    rule.__name__: rule
    for rule in (
        imports_that_go_up,
        imports_between_rooms,
        imported_entry_scripts,
        distributed_outside_its_files,
        library_dependencies,
        image_files_read_elsewhere,
        raw_output,
        parsers_below_commands,
        import_cycles,
        side_effects_of_imports,
        pickles,
        badly_named_files,
        long_files,
        full_folders,
        unreasoned_type_ignores,
    )
}
