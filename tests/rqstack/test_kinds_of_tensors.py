"""Tensors whose numbers are of another kind than a model's: PyTorch copies them in silence, the readers refuse them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from evaluation.networks import extra_networks
from rqstack.published_file import read_published_file
from rqstack.published_layout import without_wrapper
from rqstack.strict_loading import check_fit, check_kinds
from rqtransformer import RQTransformer
from rqvae import RQVAE
from tests.repository import GOLDEN
from training.stages.start_weights import load_into

ODD = {
    "int8": lambda tensor: tensor.to(torch.int8),
    "int64": lambda tensor: tensor.long(),
    "bool": lambda tensor: tensor > 0,
    "complex64": lambda tensor: tensor + 0j,
}
FORMS = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "without numbers": lambda tensor: tensor.to("meta"),
    "a view that repeats its numbers": lambda tensor: torch.ones(1).expand(10**12),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(("model", "folder"), [(RQVAE, "rqvae-shared"), (RQTransformer, "rqtransformer-class")])
def test_models_refuse_them_by_name(kind, model, folder, tmp_path):
    source = GOLDEN / folder
    tensors = without_wrapper(torch.load(source / "model.pt", weights_only=True)["state_dict"])[0]
    name = next(name for name in tensors if name.endswith("weight") and "norm" not in name)
    state = {**tensors, name: ODD[kind](tensors[name])}
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"holds [\w ]+ \({kind}\), floats are wanted") as raised:
        model.from_pretrained(tmp_path / "model.pt", config=source / "config.yaml")
    assert len(str(raised.value)) < 300


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, of such tensors
@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("wrap", [True, False])
def test_forms_that_hold_no_plain_numbers_are_not_read(kind, wrap, tmp_path):
    state = {"a.weight": torch.ones(2, 2), "b.weight": FORMS[kind](torch.ones(2, 2))}
    torch.save({"state_dict": state} if wrap else state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=f"b.weight is {kind}"):
        read_published_file(tmp_path / "model.pt")


def test_floats_of_any_width_fit_and_whole_numbers_do_not_become_them():
    wanted = {"weight": torch.zeros(2), "steps": torch.tensor(0), "mask": torch.tensor(True)}
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        check_fit(wanted, {**wanted, "weight": torch.zeros(2, dtype=dtype)}, "x")
    check_fit(wanted, {**wanted, "steps": torch.tensor(0, dtype=torch.int32)}, "x")
    for name, tensor in {"steps": torch.tensor(0.5), "mask": torch.tensor(7), "weight": torch.tensor([1, 2])}.items():
        with pytest.raises(ValueError, match=f"{name} holds"):
            check_fit(wanted, {**wanted, name: tensor}, "x")


def test_a_part_of_a_run_starts_from_no_other_kind():
    module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"bias holds whole numbers \(int64\), floats are wanted"):
        load_into(module, {**module.state_dict(), "bias": torch.tensor([1, 2])}, "x.pt")


@pytest.mark.parametrize("change", [*ODD.values(), FORMS["sparse"]])
def test_networks_of_scores_refuse_them(change, tmp_path):
    module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="weight"):
        check_kinds(module.state_dict(), {**module.state_dict(), "weight": change(module.weight.detach())})
    state = {name: tensor.long() for name, tensor in module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not hold the weights of Linear: (weight|bias) holds"):
        extra_networks.load_weights(module, tmp_path / "w.safetensors")
