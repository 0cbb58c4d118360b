"""Every tensor of the two stage-2 golden folders, within the tolerance its README states."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import load_rqtransformer, sample
from rqtransformer.decoding.logits import sampling_probs
from rqtransformer.draw_settings import DrawSettings, filter_top_k, filter_top_p
from rqtransformer.model import count_parameters
from rqtransformer.targets import (
    DenseTargets,
    SoftTargets,
    Stage2LossConfig,
    condition_loss,
    cross_entropy_per_depth,
    stage2_loss,
)
from rqvae import load_rqvae

CLASS, TEXT = "rqtransformer-class", "rqtransformer-text"
BOTH = pytest.mark.parametrize("name", [CLASS, TEXT])
LOGITS_ATOL = {CLASS: 5e-5, TEXT: 5e-5}
FIRST_ROW_ATOL = {CLASS: 2e-5, TEXT: 5e-5}
GRAD_ATOL = {
    CLASS: {"classifier.layer_norm.weight": 5e-7},
    TEXT: {
        "cond_emb.weight": 1e-6,
        "classifier.layer_norm.weight": 1e-6,
        "body_transformer.blocks.0.ln1.weight": 1e-6,
        "body_transformer.blocks.0.attn.query.bias": 2e-7,
        "cond_classifier.linear.bias": 2e-7,
        "classifier.linear.bias": 1e-7,
    },
}


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=0)


@pytest.fixture
def tokenizer(golden):
    return load_rqvae(golden("rqvae-shared").path / "model.pt")


@pytest.fixture
def load(golden):
    return lambda name, ema=False: load_rqtransformer(golden(name).path / "model.pt", ema=ema)


@BOTH
def test_logits_and_parameter_count(name, golden, load, tokenizer):
    io, model = golden(name).io, load(name)
    output = model(io["codes"], tokenizer, io["cond"])
    assert count_parameters(model) == io["n_params"]
    close(output.logits, io["logits"], LOGITS_ATOL[name])
    if name == TEXT:
        close(output.cond_logits, io["cond_logits"], 2e-5)
    else:
        assert output.cond_logits is None


@BOTH
def test_hidden_states(name, golden, load, tokenizer):
    io, model = golden(name).io, load(name)
    codes_BTD = io["codes"].flatten(1, 2)
    vectors_BTDE = tokenizer.embed_code_with_depth(io["codes"]).flatten(1, 2)
    cond_BL = model.condition_ids(io["cond"], 2, torch.device("cpu"))
    body_in = model.body_input(cond_BL, codes_BTD[:, :-1], vectors_BTDE[:, :-1])
    body_out = model.body_transformer(body_in)
    head_in = model.head_input(body_out[:, cond_BL.shape[1] - 1 :], codes_BTD, vectors_BTDE)
    close(body_in, io["hidden.body_in"], 1e-5)
    close(body_out, io["hidden.body_out"], 1e-5)
    close(head_in[:1], io["hidden.head_in"], 1e-5)
    if name == TEXT:
        close(model.head_transformer(head_in[0]).unsqueeze(0), io["hidden.head_out"], 2e-5)


@BOTH
def test_losses(name, golden, load, tokenizer):
    io, model = golden(name).io, load(name)
    output = model(io["codes"], tokenizer, io["cond"])
    soft_D, hard_D, _ = cross_entropy_per_depth(output.logits, io["codes"], DenseTargets(io["soft_targets"]))
    only_hard_D, _, _ = cross_entropy_per_depth(output.logits, io["codes"])
    close(soft_D, io["loss.codebook_soft"], 1e-5)
    close(soft_D.mean(), io["loss.soft"], 1e-5)
    for values_D in (hard_D, only_hard_D):
        close(values_D, io["loss.codebook_hard"], 1e-5)
        close(values_D.mean(), io["loss.hard"], 1e-5)
    if name == TEXT:
        close(condition_loss(output.cond_logits, io["cond"]), io["loss.cond"], 1e-5)


@BOTH
def test_gradients(name, golden, load, tokenizer):
    io, model = golden(name).io, load(name)
    output = model(io["codes"], tokenizer, io["cond"])
    config = Stage2LossConfig(img_weight=1.0, txt_weight=1.0, chunk=37)
    loss, _ = stage2_loss(output, io["codes"], DenseTargets(io["soft_targets"]), io["cond"], config)
    loss.backward()
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("grad.") for key in io if key.startswith("grad.")]
    assert len(names) == (9 if name == CLASS else 10)
    for key in names:
        close(parameters[key].grad, io[f"grad.{key}"], GRAD_ATOL[name].get(key, 5e-8))


def test_soft_targets_from_residuals_equal_the_stored_probabilities(golden, tokenizer):
    io = golden(CLASS).io
    residual, codes = tokenizer.get_latent_targets(golden("rqvae-shared").io["x"], temp=0.5, stochastic=False)
    targets = SoftTargets(residual, [tokenizer.codebook(d) for d in range(4)], temp=0.5)
    assert torch.equal(codes, io["codes"])
    for depth in range(4):
        close(targets.probabilities(0, 128, depth), io["soft_targets"].flatten(0, 2)[:, depth], 1e-5)


@BOTH
def test_no_condition_means_all_zero_ids(name, golden, load, tokenizer):
    io = golden(name).io
    close(load(name)(io["codes"][:1], tokenizer).logits[:, 0], io["logits_cond_none"], FIRST_ROW_ATOL[name])


@BOTH
def test_greedy_decoding(name, golden, load, tokenizer):
    io = golden(name).io
    codes = sample(load(name), tokenizer, io["greedy.cond"], top_k=1)
    assert torch.equal(codes, io["greedy.codes"])
    close(tokenizer.decode_code(codes[:1]), io["greedy.image0"], 2e-5)


def test_greedy_completion_keeps_the_given_positions(golden, load, tokenizer):
    io = golden(CLASS).io
    row, column = io["greedy.start_loc"].tolist()
    prefix = io["greedy.partial"].flatten(1, 2)[:, : row * 8 + column]
    assert torch.equal(
        sample(load(CLASS), tokenizer, io["greedy.cond"], top_k=1, prefix=prefix), io["greedy.completed"]
    )


def test_averaged_weights(golden, load, tokenizer):
    io = golden(CLASS).io
    close(load(CLASS, ema=True)(io["codes"][:1], tokenizer, io["cond"][:1]).logits, io["ema.logits"], 2e-5)


def test_filters(golden):
    io = golden(CLASS).io
    logits = io["filter.logits"]
    for k in io["filter.ks"].tolist():
        close(filter_top_k(logits, k), io[f"filter.top_k_{k}"], 2e-5)
    close(logits.softmax(-1), io["filter.probs"], 1e-6)
    for p in io["filter.ps"].tolist():
        close(filter_top_p(io["filter.probs"], p), io[f"filter.top_p_{p}"], 1e-6)
    temperature, k, p = io["filter.pipeline"].tolist()
    close(sampling_probs(logits, DrawSettings(temperature, int(k), p)), io["filter.pipeline_probs"], 1e-6)


def test_sampling_defaults_come_from_the_checkpoint(load):
    assert load(CLASS).sampling_defaults == {"temp": 1.0, "top_k": 8, "top_p": 0.9}
