"""What a first user gets: defaults keep codebooks in use, a forgotten update is told, wrappers pass the contract on."""

import copy
import inspect
import pickle
import re
import warnings

import pytest
import torch
from torch import nn

from rqstack.quantizers import (
    CodeUsage,
    Grouped,
    InLayout,
    InPatches,
    LatentOptions,
    LatentQuantizer,
    MultiScaleOptions,
    MultiScaleQuantizer,
    NeuralResidualQuantizer,
    Quantizer,
    ResidualQuantizer,
    ResidualStack,
    ResidualVectorQuantizer,
    VectorOptions,
    VectorQuantizer,
)
from tests.repository import ROOT

DIM = 16
BY_DEFAULT = {
    "vq": lambda: VectorQuantizer(DIM, 64),
    "vq, cosine": lambda: VectorQuantizer(DIM, 64, VectorOptions(distance="cosine")),
    "vq, heads": lambda: VectorQuantizer(DIM, 64, heads=2),
    "vq, averaged and learned": lambda: VectorQuantizer(DIM, 64, VectorOptions(codebook="both")),
    "residual vq": lambda: ResidualVectorQuantizer(DIM, [32] * 3),
    "residual vq, shared": lambda: ResidualVectorQuantizer(DIM, 64, 3, shared=True),
    "rq": lambda: ResidualQuantizer(DIM, [32] * 3),
    "rq, shared": lambda: ResidualQuantizer(DIM, [32] * 3, shared=True),
    "multi-scale": lambda: MultiScaleQuantizer(DIM, 64, MultiScaleOptions([4, 16]), grid_dims=1),
    "grouped": lambda: Grouped(DIM, [VectorQuantizer(DIM // 2, 64) for _ in range(2)]),
    "in layout": lambda: InLayout(VectorQuantizer(DIM, 64), DIM, "channels_last"),
}


def trained_usage(quantizer, steps: int = 80) -> torch.Tensor:
    """Share of each codebook that the last ten steps of a small autoencoder's training use."""
    basis = torch.randn(8, 24)
    encoder = nn.Sequential(nn.Linear(24, 32), nn.SiLU(), nn.Linear(32, DIM))
    decoder = nn.Sequential(nn.Linear(DIM, 32), nn.SiLU(), nn.Linear(32, 24))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()], 2e-3)
    usage = CodeUsage(len(quantizer.num_codes), quantizer.num_codes)
    for step in range(steps):
        x = torch.tanh(torch.randn(16, 16, 8) @ basis / 3)
        out = quantizer(encoder(x))
        optimizer.zero_grad()
        ((decoder(out.quantized) - x).square().mean() + out.loss).backward()
        optimizer.step()
        quantizer.update_codebook()
        if step >= steps - 10:
            usage.update(out.codes)
    heads_share = isinstance(quantizer, VectorQuantizer) and len(quantizer.codebooks) == 1
    if isinstance(quantizer, MultiScaleQuantizer) or heads_share:  # positions and heads have rows, the codebook is one
        return (usage.counts_DK.sum(0) > 0).float().mean()[None]
    return usage.summary()["used_fraction"]


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_defaults_keep_the_codebook_in_use(name):
    torch.manual_seed(0)
    quantizer = BY_DEFAULT[name]()
    used = trained_usage(quantizer)
    assert used.min() > 0.4, f"share of the codes in use: {used.tolist()}"


def document_quantizers():
    """(line, quantizer) of every constructor call in the documentation that has sizes of its own."""
    text = (ROOT / "docs" / "quantizers.md").read_text()
    block = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    return re.findall(r"^quantizer = (.+)$", block, re.MULTILINE)


@pytest.mark.parametrize("call", document_quantizers())
def test_every_example_of_the_documentation_uses_its_codes(call):
    """With the sizes of this test's autoencoder: the vectors have DIM channels, at most 64 codes."""
    names = {name: value for name, value in vars(__import__("rqstack.quantizers", fromlist=["*"])).items()}
    torch.manual_seed(0)
    quantizer = eval(re.sub(r"\b1024\b", "64", re.sub(r"\b(256|32)\b", str(DIM), call)), names)
    assert trained_usage(quantizer).min() > 0.4


GATHERING = {
    "vq": (lambda: VectorQuantizer(DIM, 8), ()),
    "vq, learned": (lambda: VectorQuantizer(DIM, 8, VectorOptions(codebook="learned", inplace_lr=0.1)), ()),
    "rq": (lambda: ResidualQuantizer(DIM, [8, 8]), ()),
    "residual vq": (lambda: ResidualVectorQuantizer(DIM, [8, 8]), ()),
    "residual vq, shared": (lambda: ResidualVectorQuantizer(DIM, 8, 6, shared=True), ()),
    "latent in turns": (lambda: LatentQuantizer(DIM, LatentOptions([4, 4], inplace_lr=0.1)), ()),
    "multi-scale": (lambda: MultiScaleQuantizer(DIM, 8, MultiScaleOptions([1, 2, 4]), grid_dims=1), (4,)),
    "stack": (lambda: ResidualStack(DIM, [VectorQuantizer(DIM, 8), VectorQuantizer(DIM, 8)]), ()),
    "grouped": (lambda: Grouped(DIM, [VectorQuantizer(DIM // 2, 8) for _ in range(2)]), ()),
    "in patches": (lambda: InPatches(VectorQuantizer(4 * DIM, 8), (2, 2)), (4, 4)),
    "in layout": (lambda: InLayout(VectorQuantizer(DIM, 8), DIM), ()),
}


def gathered(quantizer) -> int:
    """How many batches wait."""
    waiting = 0
    for module in quantizer.modules():
        waiting += sum(map(len, getattr(module, "_pending", []))) + len(getattr(module, "_gathered", []))
    return waiting


@pytest.mark.parametrize("name", GATHERING)
def test_a_forgotten_update_warns_at_once_and_memory_does_not_grow(name):
    make, grid = GATHERING[name]
    quantizer, encoder = make(), nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    sizes = []
    with pytest.warns(UserWarning, match=r"update_codebook\(\) of this \w+ was not called since 1 train-mode") as found:
        for _ in range(6):
            out = quantizer(encoder(torch.randn(3, *grid, DIM)))
            optimizer.zero_grad()
            (out.quantized.square().mean() + out.loss).backward()
            optimizer.step()
            sizes.append(gathered(quantizer))
    assert len(found) == 1 and len(set(sizes)) == 1 and sizes[0] > 0
    quantizer.update_codebook()
    assert gathered(quantizer) == 0


@pytest.mark.parametrize("name", GATHERING)
def test_micro_batches_and_updates_do_not_warn(name):
    make, grid = GATHERING[name]
    quantizer, encoder = make(), nn.Linear(DIM, DIM)
    optimizer = torch.optim.SGD(encoder.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            for _ in range(12):
                quantizer(encoder(torch.randn(3, *grid, DIM))).loss.mean()
            one = gathered(quantizer)
            optimizer.step()
            quantizer.update_codebook()
    assert one >= 12


@pytest.mark.parametrize("name", GATHERING)
def test_without_gradients_memory_is_bounded_and_the_warning_comes(name):
    make, grid = GATHERING[name]
    quantizer = make()
    with pytest.warns(UserWarning, match="was not called since 4 train-mode"):
        quantizer(torch.randn(2, *grid, DIM))
        one = gathered(quantizer)
        for _ in range(150):
            quantizer(torch.randn(2, *grid, DIM))
            assert gathered(quantizer) <= 64 * one


def test_a_watching_quantizer_is_copied_and_pickled():
    quantizer, encoder = VectorQuantizer(DIM, 8), nn.Linear(DIM, DIM)
    quantizer(encoder(torch.randn(3, DIM)))
    quantizer.update_codebook()
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        other(encoder(torch.randn(3, DIM)))


WRAPPED = {
    "in layout": lambda inner: InLayout(inner(DIM), DIM, "channels_last"),
    "in patches": lambda inner: InPatches(inner(DIM), (1, 1)),
    "grouped": lambda inner: Grouped(DIM, [inner(DIM)]),
}
INNER = {
    "vq": lambda dim: VectorQuantizer(dim, 8, heads=2),
    "residual vq": lambda dim: ResidualVectorQuantizer(dim, [8, 5]),
    "neural": lambda dim: NeuralResidualQuantizer(dim, [8, 5]),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_pass_the_whole_contract_on(wrapper, inner):
    outer = WRAPPED[wrapper](INNER[inner])
    wrapped = outer.groups[0] if wrapper == "grouped" else outer.quantizer
    assert isinstance(outer, Quantizer)
    z, calls = torch.randn(2, 3, 4, DIM), {}
    outer.eval()
    codes = outer.targets(z)[1]
    arguments = {"decode": (codes,), "embed_with_depth": (codes,), "decode_depth": (codes, 1), "codebook": (1,)}
    arguments |= {"targets": (z,), "soft_codes": (z,), "forward": (z,), "as_level": (z, None)}
    if wrapped.fixed_code_vectors:
        arguments |= {"code_vectors": (1,)}
    arguments |= {"update_codebook": (), "discard_codebook_update": (), "restart_counts": ()}
    for name in vars(Quantizer):
        member = inspect.getattr_static(Quantizer, name)
        if name.startswith("_") or not callable(member) or isinstance(member, property):
            continue
        if name == "code_vectors" and name not in arguments:
            continue
        calls[name] = getattr(outer, name)(*arguments[name]), getattr(wrapped, name)(*arguments[name])
    for name, (found, expected) in calls.items():
        torch.testing.assert_close(found, expected, msg=name)
    assert outer.num_codes == wrapped.num_codes and outer.drops_levels == wrapped.drops_levels
    for name in ("fixed_code_vectors", "uses_all_parameters"):
        assert getattr(outer, name) == getattr(wrapped, name)


def test_a_layout_learns_like_the_quantizer_inside():
    torch.manual_seed(0)
    outer = InLayout(VectorQuantizer(DIM, 8), DIM, "channels_first")
    inner, z = copy.deepcopy(outer.quantizer), torch.randn(2, DIM, 3, 4)
    found, expected = outer(z), inner(z.movedim(1, -1))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(outer.decode_depth(found.codes, 0), outer.decode(found.codes))
    outer.update_codebook()
    inner.update_codebook()
    assert torch.equal(outer.codebook(0), inner.codebook(0)) and torch.equal(
        outer.restart_counts(), inner.restart_counts()
    )
