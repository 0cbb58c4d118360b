"""Weights as others save them: names of wrappers, bare state dicts, several safetensors files, a stated config."""

import difflib
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from rqstack.conversion import convert
from rqstack.published_layout import without_wrapper
from rqstack.strict_loading import SHOWN, check_fit
from rqtransformer import RQTransformer
from rqvae import RQVAE
from tests.repository import GOLDEN

KINDS = {"rqvae-shared": RQVAE, "rqtransformer-class": RQTransformer}
PREFIXES = ["module.", "_orig_mod.", "model.", "module.module.", "_orig_mod.module.", "model._orig_mod.module."]


@pytest.fixture(params=KINDS)
def stage(request):
    """(class, folder with the published file, its tensors)."""
    folder = GOLDEN / request.param
    tensors = torch.load(folder / "model.pt", weights_only=True)["state_dict"]
    return KINDS[request.param], folder, without_wrapper(tensors)[0]


def assert_same_model(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), expected.state_dict().values()))


def saved(tensors, folder: Path, config: Path, name: str = "model.pt", wrap: bool = True) -> Path:
    folder.mkdir()
    torch.save({"state_dict": tensors} if wrap else tensors, folder / name)
    (folder / "config.yaml").write_bytes((config / "config.yaml").read_bytes())
    return folder


@pytest.mark.parametrize("wrap", [True, False], ids=["in state_dict", "bare"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_names_of_wrappers_do_not_matter(stage, prefix, wrap, tmp_path):
    kind, folder, tensors = stage
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    assert_same_model(
        kind.from_pretrained(saved(named, tmp_path / "s", folder, wrap=wrap)), kind.from_pretrained(folder)
    )


def test_names_inside_a_compiled_part_do_not_matter_and_convert(stage, tmp_path):
    kind, folder, tensors = stage
    first = next(iter(tensors)).split(".")[0]
    named = {f"module.{name}".replace(f"{first}.", f"{first}._orig_mod."): tensor for name, tensor in tensors.items()}
    source, expected = saved(named, tmp_path / "s", folder), kind.from_pretrained(folder)
    assert_same_model(kind.from_pretrained(source), expected)
    snapshot = convert(source)
    assert_same_model(kind.from_pretrained(snapshot), expected)
    back = torch.load(convert(snapshot, "published") / "model.pt", weights_only=True)["state_dict"]
    assert back.keys() == named.keys()
    assert all(torch.equal(tensor, named[name]) for name, tensor in back.items())


@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_our_own_state_dict_under_any_ending_with_a_stated_config(stage, ending, tmp_path):
    """What `torch.save(model.state_dict(), ...)` or `save_file(...)` leaves, without a config beside it."""
    kind, folder, _ = stage
    model, file = kind.from_pretrained(folder), tmp_path / f"weights{ending}"
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, file) if ending == ".safetensors" else torch.save(state, file)
    with pytest.raises(FileNotFoundError, match="state one with config=FILE"):
        kind.from_pretrained(file)
    for config in (folder / "config.yaml", OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))):
        assert_same_model(kind.from_pretrained(file, config=config), model)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    assert_same_model(kind.from_pretrained(tmp_path), model)
    assert_same_model(kind.from_pretrained(convert(file, out=tmp_path / "converted")), model)


def sharded(tensors, folder: Path) -> Path:
    """The tensors in two files with an index."""
    names = list(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name].contiguous().clone() for name in held}, folder / file)
    index = folder / "model.safetensors.index.json"
    placed = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return index


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "published"])
def test_safetensors_in_several_files(stage, ours, tmp_path):
    kind, folder, tensors = stage
    model = kind.from_pretrained(folder)
    (tmp_path / "config.yaml").write_bytes((folder / "config.yaml").read_bytes())
    index = sharded(model.state_dict() if ours else {f"model.{n}": t for n, t in tensors.items()}, tmp_path)
    for source in (tmp_path, index):
        assert_same_model(kind.from_pretrained(source), model)
    assert_same_model(kind.from_pretrained(convert(tmp_path, out=tmp_path / "converted")), model)


def test_a_snapshot_in_several_files(stage, tmp_path):
    kind, folder, _ = stage
    model = kind.from_pretrained(folder)
    kept = model.save_pretrained(tmp_path / "kept")
    (kept / "model.safetensors").unlink()
    sharded(model.state_dict(), kept)
    assert_same_model(kind.from_pretrained(kept), model)


BROKEN = {
    "no map": ("{}", "no 'weight_map'"),
    "no json": ("{", "is damaged"),
    "elsewhere": ('{"weight_map": {"a": "../x.safetensors"}}', "no name of a safetensors file beside it"),
    "not there": ('{"weight_map": {"a": "x.safetensors"}}', "names x.safetensors, which is not in"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_index(text, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        RQVAE.from_pretrained(tmp_path)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_a_file_that_lacks_what_its_index_names(stage, tmp_path):
    kind, folder, _ = stage
    index = sharded(kind.from_pretrained(folder).state_dict(), tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match="which model.safetensors.index.json says it has"):
        kind.from_pretrained(index, config=folder / "config.yaml")


def test_messages_stay_short(stage, tmp_path):
    kind, folder, tensors = stage
    wrong = {f"some.other.prefix.that.nobody.knows.{name}": tensor for name, tensor in tensors.items()}
    with pytest.raises(ValueError, match="does not fit the config") as error:
        kind.from_pretrained(saved(wrong, tmp_path / "w", folder))
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    with pytest.raises(ValueError, match="holds no named tensors") as error:
        kind.from_pretrained(saved({name: 1 for name in wrong}, tmp_path / "n", folder, wrap=False))
    assert len(str(error.value)) < 400 + len(str(tmp_path))
    with pytest.raises(ValueError, match="no averaged weights: no 'state_dict_ema'"):
        kind.from_pretrained(saved(tensors, tmp_path / "e", folder), ema=True)


def test_of_many_foreign_names_only_those_shown_are_compared_by_letter(monkeypatch):
    compared, nearest = [], difflib.get_close_matches
    monkeypatch.setattr(difflib, "get_close_matches", lambda *a, **k: compared.append(a[0]) or nearest(*a, **k))
    wanted, given = ({f"{part}.{i}.weight": torch.empty(1) for i in range(500)} for part in ("blocks", "block"))
    with pytest.raises(ValueError, match=r"missing blocks\.0\.weight \(is it block\.0\.weight\?\).*and 498 more"):
        check_fit(wanted, given, "a file")
    assert len(compared) == SHOWN


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_dtype(stage, dtype):
    kind, folder, _ = stage
    model = kind.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    if kind is RQVAE:
        assert model.codebook(0).dtype == torch.float32
    assert {p.dtype for p in kind.from_pretrained(folder, dtype="float32").parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["int8", "half", torch.int64, torch.complex64, 16, [], torch.nn.Linear])
def test_wrong_dtypes(dtype):
    with pytest.raises(ValueError, match="is not one of float32, bfloat16, float16, float64"):
        RQVAE.from_pretrained(GOLDEN / "rqvae-shared", dtype=dtype)


@pytest.mark.parametrize("config", ["nowhere.yaml", {"arch": 3}, {}, {"arch": {"type": "rq-transformer"}}])
def test_wrong_configs(config):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        RQVAE.from_pretrained(GOLDEN / "rqvae-shared", config=config)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize("source", [None, 3, "", [], b"x", "a/b/c", "no such folder"])
def test_wrong_sources(source):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        RQVAE.from_pretrained(source)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_two_tensors_of_one_bare_name(tmp_path):
    named = {"encoder._orig_mod.a": torch.ones(1), "encoder.a": torch.zeros(1)}
    with pytest.raises(ValueError, match="two tensors are 'encoder.a'"):
        RQVAE.from_pretrained(saved(named, tmp_path / "s", GOLDEN / "rqvae-shared"))
