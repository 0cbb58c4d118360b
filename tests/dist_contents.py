"""What `make dist` has built is whole, and no more: `python tests/dist_contents.py dist`.

The wheel holds every file of the three libraries and nothing else; the source archive holds the same and what names,
licenses, cites and describes them. Needs nothing but Python.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("rqstack", "rqvae", "rqtransformer")
ENDINGS = (".py", ".typed", ".cpp", ".h")
BESIDE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml")


def files_of_the_libraries() -> set[str]:
    """Their paths in the checkout."""
    found = (path for library in LIBRARIES for path in (ROOT / library).rglob("*") if path.suffix in ENDINGS)
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file()}


def check(folder: Path) -> None:
    """Raises SystemExit naming what is missing or too much."""
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    wanted = files_of_the_libraries()
    with zipfile.ZipFile(wheel) as opened:
        inside = {name for name in opened.namelist() if ".dist-info/" not in name}
    with tarfile.open(archive) as opened:
        names = (member.name.partition("/")[2] for member in opened.getmembers() if member.isfile())
        sources = {name for name in names if ".egg-info/" not in name}
    problems = {
        "not in the wheel": wanted - inside,
        "too much in the wheel": inside - wanted,
        "not in the source archive": (wanted | set(BESIDE)) - sources,
        "too much in the source archive": {name for name in sources if name.startswith(("tests/", "runs/", "docs/"))},
    }
    for problem, found in problems.items():
        if found:
            raise SystemExit(f"{problem}: {', '.join(sorted(found)[:5])}{' ...' if len(found) > 5 else ''}")
    print(f"{wheel.name}: {len(inside)} files; {archive.name}: {len(sources)} files")


if __name__ == "__main__":
    check(Path(sys.argv[1]))
