"""A tree of Python files as text and syntax: what each file imports, which modules it starts, what it calls.

Everything is found in the syntax tree, imports inside functions included; nothing is imported.
"""

from __future__ import annotations

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


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
            elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in ("import_module", "__import__"):
                found += [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        return found

    @cached_property
    def processes(self) -> list[str]:
        """Modules this file starts as processes: `"-m", "a.b"` beside each other in a call or a list."""
        found = []
        for node in ast.walk(self.tree):
            words = node.elts if isinstance(node, (ast.List, ast.Tuple)) else getattr(node, "args", None)
            if isinstance(words, list):
                values = [getattr(word, "value", None) for word in words]
                found += [name for flag, name in zip(values, values[1:]) if flag == "-m" and isinstance(name, str)]
        return found

    @cached_property
    def comments(self) -> list[str]:
        """The comments, with the code left out."""
        lines = io.StringIO(self.text).readline
        return [token.string for token in tokenize.generate_tokens(lines) if token.type == tokenize.COMMENT]

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.module.split(".") if self.path.name == "__init__.py" else self.module.split(".")[:-1]
        package = package[: len(package) - node.level + 1]
        return ".".join([*package, *([node.module] if node.module else [])])


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, `` for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
