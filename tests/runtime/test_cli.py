"""Flags and overrides in any order, and the errors that suggest the nearest flag."""

from __future__ import annotations

import json
import re

import pytest

from runtime.cli import build_parser
from tests.architecture import product_sources
from tests.commands import succeed
from tests.repository import ROOT


@pytest.fixture
def parser():
    parser = build_parser("A script.")
    parser.add_argument("-m", "--model-config")
    parser.add_argument("-n", "--n-samples", type=int)
    parser.add_argument("--top-k", nargs="+", type=int)
    parser.add_argument("--eval", action="store_true")
    return parser


def test_overrides_stand_anywhere(parser):
    args = parser.parse_args(["a.b=1", "-m", "x=y.yaml", "+c=2", "--eval", "d=[1,2]", "--top-k", "3", "4", "e=5"])
    assert args.overrides == ["a.b=1", "+c=2", "d=[1,2]", "e=5"]
    assert (args.model_config, args.eval, args.top_k) == ("x=y.yaml", True, [3, 4])


@pytest.mark.parametrize("words", [["-m=a.yaml"], ["-m", "a.yaml"], ["--model-config=a.yaml"], ["-ma.yaml"]])
def test_every_way_to_write_a_value(parser, words):
    args = parser.parse_args(words)
    assert args.model_config == "a.yaml"
    assert args.overrides == []


def test_defaults(parser):
    args = parser.parse_args([])
    assert (args.seed, args.local_rank, args.world_size, args.node_rank) == (0, None, None, None)
    assert (args.dist_backend, args.timeout, args.overrides) == ("auto", 86400, [])


@pytest.mark.parametrize("flag", ["--local-rank=1", "--local_rank=1"])
def test_the_flag_of_torch_distributed_launch(parser, flag):
    assert parser.parse_args([flag]).local_rank == 1


def test_published_process_flags(parser):
    args = parser.parse_args("--world_size 2 --node_rank 0 --dist-backend gloo --timeout 60".split())
    assert (args.world_size, args.node_rank, args.dist_backend, args.timeout) == (2, 0, "gloo", 60)


ERRORS = {
    "--model-confg x": "unknown flag --model-confg; did you mean --model-config?",
    "--topk 3": "unknown flag --topk; did you mean --top-k?",
    "--model x": "unknown flag --model; did you mean --model-config?",
    "--zzzzzz": "unknown flag --zzzzzz; -h lists the flags",
    "stray": "unexpected argument 'stray'; overrides are written key=value",
    "--n-samples many": "argument -n/--n-samples: invalid int value: 'many'",
    "--dist-backend mpi": "invalid choice: 'mpi'",
    "-m": "expected one argument",
}


@pytest.mark.parametrize("line", ERRORS)
def test_a_wrong_flag_gives_one_line_and_exit_code_2(parser, line, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args(line.split())
    output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output.err.startswith("error: ")
    assert ERRORS[line] in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_arguments_default_to_those_of_the_process(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["script", "--eval", "a=1"])
    args = parser.parse_args()
    assert args.eval
    assert args.overrides == ["a=1"]


HEAVY = ("torch", "torchvision", "tensorboard", "scipy", "sklearn", "matplotlib", "lpips")
# Scripts that measure one thing, for hours: what they measure with is imported first.
MEASUREMENTS = "benchmarks"
HELP = """
import contextlib, io, json, runpy, sys
for words in json.loads(sys.argv[1]):
    sys.argv = [*words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__")
    print(json.dumps([words, shown.getvalue(), [heavy for heavy in {heavy} if heavy in sys.modules]]))
"""
SUBCOMMANDS = {
    "data.tokenizers": ("train", "show"),
    "rqtransformer.pretrained": ("inspect", "convert"),
    "rqstack.commands": ("inspect", "sample", "inpaint", "reconstruct"),
}
CONSOLE = {"rqstack.commands": "rqstack"}  # modules that the wheel gives a name of its own
MOST_FLAGS = 10  # of one group of a command's help


def commands():
    """Every file that may be started and takes flags, as `python` takes it."""
    for source in product_sources(ROOT):
        if "\nif __name__ ==" in source.text and "parse_args(" in source.text:
            in_package = "/" in source.name
            yield source.module.removesuffix(".__main__") if in_package else source.name


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What `--help` of every command and subcommand says; none of them waits for what takes seconds to import."""
    read_from_the_top = (f"{MEASUREMENTS}.", "examples.")
    names = [name for name in commands() if not name.startswith(read_from_the_top) or name == "benchmarks.gpu"]
    assert set(SUBCOMMANDS) | {"main_sampling_fid.py", "data.prepare", "benchmarks.gpu"} < set(names)
    lines = [words for name in names for words in ([name], *([name, part] for part in SUBCOMMANDS.get(name, ())))]
    printed = [json.loads(line) for line in succeed("-c", HELP.format(heavy=HEAVY), json.dumps(lines)).out.splitlines()]
    assert [words for words, _, _ in printed] == lines
    assert [(words, heavy) for words, _, heavy in printed if heavy] == []
    return {" ".join(words): text for words, text, _ in printed}


def test_help_of_every_command_is_there_without_torch(helps):
    assert [name for name, text in helps.items() if not text.startswith("usage: ")] == []


def sections(text: str) -> dict[str, list[str]]:
    """The lines of a help below each of its titles."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"[a-zA-Z].*:", line):
            found[line.removesuffix(":")] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_help_of_every_command_ends_with_an_example(helps):
    for name, text in helps.items():
        *_, last = sections(text)
        assert last == "example", name
        lines = [line.strip() for line in sections(text)["example"] if line.strip()]
        module, *part = name.split()
        start = CONSOLE.get(module) or (f"python {module}" if module.endswith(".py") else f"python -m {module}")
        assert lines and all(line.startswith(" ".join([start, *part])) for line in lines), (name, lines)


def test_help_of_every_command_is_in_groups_and_says_what_every_flag_is(helps):
    for name, text in helps.items():
        for title, lines in sections(text).items():
            flags = [number for number, line in enumerate(lines) if re.match(r"  -", line)]
            assert len(flags) <= MOST_FLAGS, f"{name}, {title}: {len(flags)} flags"
            for number in flags:
                following = lines[number + 1] if number + 1 < len(lines) else ""
                is_told = re.search(r"\S {2,}\S", lines[number].strip()) or following.startswith(" " * 10)
                assert is_told, f"{name}: {lines[number]}"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("main_stage1.py", "experiment.batch_size=N"),
        ("main_stage2.py", "SECTION.KEY=VALUE"),
        ("main_sampling_fid.py", "dataset.root=DIR"),
        ("main_sampling_txt2img.py", "dataset.root=DIR"),
        ("compute_rfid.py", "dataset.KEY=VALUE"),
        ("compute_metrics.py", "fake_path=IMAGES"),
        ("extract_codes.py", "dataset.resolution=N"),
        ("data.export", "root=DIR"),
        ("data.prepare", "background=COLOUR"),
        ("scoring.reference", "KEY=VALUE"),
        ("measure_throughput", "model=huge"),
    ],
)
def test_a_command_that_takes_words_lists_them(name, word, helps):
    listed = sections(helps[name])["key=value words, anywhere between the flags"]
    assert any(line.startswith(f"  {word} ") for line in listed)


def test_a_command_without_words_lists_none(helps):
    listing = {name for name, text in helps.items() if "key=value words" in sections(text)}
    assert not listing & {"demo", "sampling.inpaint", "training.report", "rqtransformer.pretrained"}


def test_every_parser_of_the_repository_has_an_example():
    """Of those too that import what they measure before they read their flags."""
    for source in product_sources(ROOT):
        if "\nif __name__ ==" in source.text and "parse_args(" in source.text:
            assert re.search(r"example[:=]|EXAMPLE|training_parser\(|build_parser\(", source.text), source.name
