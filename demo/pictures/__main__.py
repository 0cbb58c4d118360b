"""Draws the pictures of README and gallery: `python -m demo.pictures [NAME ...]`.

Every file says in its PNG text which command made it, and whose images it was made from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from demo.pictures.drawing import KINDS, draw
from demo.pictures.families import FAMILIES, Subject
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say

OWN_DRAWINGS = "Made from drawings of this project's own program"
PROMPTS, SWEEP, BADGES = "prompts", "text_to_image", "badges"
MODELLED = {  # name of a picture -> family, kind
    kind if family == "digits" else f"{family}_{kind}": (family, kind) for family in FAMILIES for kind in KINDS
}
NAMES = [*MODELLED, PROMPTS, SWEEP, BADGES]


def draw_prompts(run: Path, path: Path) -> None:
    """Samples of a finished run of `python -m demo.text` under their prompts."""
    from demo.commands import run_of
    from demo.text import pictures
    from demo.text.measure import HEADLINE_SCALE, PROMPT_IMAGES, PROMPTS, TextModel

    model = TextModel(run_of(run / "stage1", "pairs"), run_of(run / "stage2", "pairs"))
    prompts = [prompt for prompt in PROMPTS for _ in range(PROMPT_IMAGES)]
    pictures.draw_prompts(path, PROMPTS, model.draw(prompts, HEADLINE_SCALE, seed=1))


def draw_sweep(path: Path) -> None:
    """What guidance does to the text demo's samples, from its committed result."""
    from demo.text import pictures

    result = json.loads(Path("benchmarks/results/text_to_image.json").read_text(encoding="utf-8"))
    pictures.draw_sweep(path, result["sweep"], result["num_captions"])


def draw_badges(folder: Path) -> None:
    """The README's badges, from what the project claims."""
    from demo.badges import badges

    for file, svg in badges(Path("pyproject.toml").read_text(encoding="utf-8")).items():
        (folder / file).write_text(svg, encoding="utf-8")
        say(str(folder / file))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m demo.pictures",
        description="Draw the pictures of README and gallery from trained models.",
        takes_words=False,
        example="python -m demo.pictures hero samples openmoji_samples",
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"{', '.join(NAMES)} (default: all there are runs for)"
    )
    for name, family in FAMILIES.items():
        flag = "--run" if name == "digits" else f"--{name.replace('_', '-')}-run"
        what = f"of `{family.trains}` (default: {family.run})"
        parser.add_argument(flag, dest=f"{name}_run", metavar="DIR", type=Path, default=family.run, help=what)
    parser.add_argument(
        "--text-run", metavar="DIR", type=Path, default=Path("runs/demo-text"), help="of `python -m demo.text`"
    )
    parser.add_argument(
        "--docs", metavar="DIR", type=Path, default=Path("docs"), help="pictures go below it (default: docs)"
    )
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"{unknown[0]!r} is no picture; choose from {', '.join(NAMES)}")
    return args


def main(args: argparse.Namespace) -> None:
    """Draws what is asked for, or everything whose run is there."""
    from runtime.pages.picture_note import COMMAND, CREDIT, sign_picture

    subjects = {name: Subject(family, getattr(args, f"{name}_run")) for name, family in FAMILIES.items()}
    needs = {name: subjects[family].run for name, (family, _) in MODELLED.items()} | {PROMPTS: args.text_run}
    wanted = args.names or [name for name in NAMES if name not in needs or needs[name].is_dir()]
    for name in wanted:
        if name in needs and not needs[name].is_dir():
            made_by = FAMILIES[MODELLED[name][0]].trains if name in MODELLED else "python -m demo.text"
            raise UserError(f"{needs[name]} is not there: `{made_by}` trains its models first")
    (args.docs / "pictures").mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name == BADGES:
            draw_badges(args.docs / "pictures")
            continue
        path, credit = args.docs / f"pictures/{name}.png", OWN_DRAWINGS
        if name in MODELLED:
            family, kind = MODELLED[name]
            draw(kind, subjects[family], path)
            credit = FAMILIES[family].credit
        elif name == PROMPTS:
            draw_prompts(args.text_run, path)
        else:
            path = args.docs / "text_to_image.png"
            draw_sweep(path)
        sign_picture(path, {COMMAND: f"python -m demo.pictures {name}", CREDIT: credit})
        say(str(path))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
