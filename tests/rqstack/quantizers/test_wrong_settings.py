"""Every argument of every public constructor, replaced by what it does not take: a working object, or one line.

The arguments are those of the signatures, so a new one is tried without being listed. What is made has to work as well:
it is called once in train mode.
"""

import dataclasses
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from rqstack import quantizers
from rqstack.arguments import shown
from rqstack.quantizers import (
    FiniteScalarOptions,
    LatentOptions,
    MultiScaleOptions,
    RandomProjectionOptions,
    ResidualFiniteScalarOptions,
    ScalarPerturbationOptions,
    VectorOptions,
    VectorQuantizer,
)
from rqstack.quantizers.compat import vector_quantize_pytorch, vqtorch
from tests.rqstack.quantizers.test_wrong_arguments import assert_one_line

WRONG: dict[str, Any] = {
    "None": None,
    "text": "x",
    "-1": -1,
    "0": 0,
    "nan": float("nan"),
    "inf": float("inf"),
    "10**400": 10**400,
    "1e300": 1e300,
    "empty list": [],
    "mapping": {},
    "object": object(),
    "tensor": torch.tensor([1.0, 2.0]),
    "True": True,
    "list of text": ["x"],
}
GRID, OF_BOOK = {"levels": [3, 3]}, {"dim": 8, "codebook_size": 16}
STACK = {"dim": 8, "num_quantizers": 2}
LAYER = {"feature_size": 8, "num_codes": 16}
ROWS, MAPS, CHANNELS = torch.randn(2, 6, 8), torch.randn(2, 4, 4, 8), torch.randn(2, 8, 4, 4)
ROWS.requires_grad_()

OWN: dict[str, dict[str, Any]] = {
    "AffineRule": {},
    "BinaryMapper": {"dim": 8, "codebook_size": 16},
    "BinaryOptions": {},
    "CodeUsage": {"depth": 2, "num_codes": 16},
    "EMACodebook": {"num_codes": 16, "dim": 8},
    "FiniteScalarOptions": GRID,
    "FiniteScalarQuantizer": {"dim": 8, "options": FiniteScalarOptions([3, 3])},
    "Grouped": {"dim": 8, "groups": [VectorQuantizer(4, 4), VectorQuantizer(4, 4)]},
    "InLayout": {"quantizer": VectorQuantizer(8, 16), "channels": 8},
    "InPatches": {"quantizer": VectorQuantizer(32, 16), "patch": (2, 2)},
    "LatentOptions": GRID,
    "LatentQuantizer": {"dim": 8, "options": LatentOptions([3, 3])},
    "LookupFreeOptions": {},
    "LookupFreeQuantizer": {"dim": 8, "codebook_size": 16},
    "MaxVectorPool2d": {},
    "MultiScaleOptions": {"scales": [1, 2]},
    "MultiScaleQuantizer": {"dim": 8, "codebook_size": 16, "options": MultiScaleOptions([1, 2])},
    "NeuralResidualOptions": {},
    "NeuralResidualQuantizer": {"dim": 8, "num_codes": 16, "num_quantizers": 2},
    "RandomProjectionOptions": {"codebook_dim": 4},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 16, "options": RandomProjectionOptions(4)},
    "ResidualFiniteScalarOptions": GRID,
    "ResidualLookupFreeOptions": {},
    "ResidualQuantizer": {"dim": 8, "num_codes": [16, 16]},
    "ResidualSimOptions": {},
    "ResidualStack": {"dim": 8, "levels": [VectorQuantizer(8, 16), VectorQuantizer(8, 16)]},
    "ResidualVectorOptions": {},
    "ResidualVectorQuantizer": {"dim": 8, "num_codes": 16, "num_quantizers": 2},
    "RestartRule": {},
    "ScalarPerturbationOptions": GRID,
    "ScalarPerturbationQuantizer": {"dim": 8, "options": ScalarPerturbationOptions([3, 3])},
    "SimOptions": {},
    "SimQuantizer": {"dim": 8, "codebook_size": 16},
    "SoftmaxVectorPool2d": {},
    "StackOptions": {},
    "VectorLosses": {},
    "VectorOptions": {},
    "VectorQuantizer": {"num_codes": 16, "dim": 8},
    "codebook_warmup": {"model": VectorQuantizer(8, 4), "loader": [torch.randn(16, 8)]},
    "mask_from_lengths": {"lengths_B": torch.tensor([1, 2]), "num_positions": 3},
    "residual_fsq": STACK | {"options": ResidualFiniteScalarOptions(**GRID)},
    "residual_lfq": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
    "residual_simvq": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
}
DROP_IN: dict[str, dict[str, Any]] = {
    "BinaryMapper": {"bits": 8},
    "FSP": GRID | {"dim": 8},
    "FSQ": GRID | {"dim": 8},
    "GroupedResidualFSQ": GRID | STACK | {"groups": 2},
    "GroupedResidualLFQ": STACK | {"codebook_size": 16, "groups": 2},
    "GroupedResidualVQ": STACK | {"codebook_size": 16, "groups": 2},
    "HierarchicalVQ": OF_BOOK | {"scales": [1, 2]},
    "LFQ": OF_BOOK,
    "LatentQuantize": GRID | {"dim": 8},
    "RandomProjectionQuantizer": OF_BOOK | {"codebook_dim": 4, "num_codebooks": 2},
    "ResidualFSQ": GRID | STACK,
    "ResidualLFQ": STACK | {"codebook_size": 16},
    "ResidualSimVQ": STACK | {"codebook_size": 16},
    "ResidualVQ": STACK | {"codebook_size": 16},
    "SimVQ": OF_BOOK,
    "VectorQuantize": OF_BOOK,
    "build_cdf_act": {"act_name": "tanh"},
}
VQTORCH: dict[str, dict[str, Any]] = {
    "GroupVectorQuant": LAYER | {"groups": 2},
    "MaxVecPool2d": {},
    "ResidualVectorQuant": LAYER | {"groups": 2},
    "SoftMaxVecPool2d": {},
    "VectorQuant": LAYER,
    "codebook_warmup": {"model": vqtorch.VectorQuant(**LAYER), "loader": [torch.randn(32, 8)]},
    "get_vq_layers": {"model": nn.Identity()},
    "no_vq": {"modules": nn.Identity()},
}
MODULES = {"own": (quantizers, OWN), "drop-in": (vector_quantize_pytorch, DROP_IN), "vqtorch": (vqtorch, VQTORCH)}
# What a constructor passes on to another one takes the arguments of that.
PASSED_ON = {
    "GroupedResidualFSQ": "ResidualFSQ",
    "GroupedResidualLFQ": "ResidualLFQ",
    "GroupedResidualVQ": "ResidualVQ",
    "ResidualVQ": "VectorQuantize",
    "ResidualFSQ": "FSQ",
    "ResidualLFQ": "LFQ",
    "ResidualSimVQ": "SimVQ",
    "GroupVectorQuant": "VectorQuant",
    "ResidualVectorQuant": "VectorQuant",
}


def of_vectors(**options: Any) -> VectorQuantizer:
    return VectorQuantizer(8, 16, VectorOptions(**options))


MADE_FOR: dict[str, Any] = {
    "VectorOptions": lambda options: quantizers.VectorQuantizer(8, 16, options),
    "AffineRule": lambda rule: quantizers.VectorQuantizer(
        8, 16, quantizers.VectorOptions(codebook="learned", affine=rule)
    ),
    "RestartRule": lambda rule: of_vectors(restart=rule),
    "VectorLosses": lambda losses: of_vectors(losses=losses),
    "BinaryOptions": lambda options: quantizers.BinaryMapper(8, 16, options),
    "FiniteScalarOptions": lambda options: quantizers.FiniteScalarQuantizer(8, options),
    "LatentOptions": lambda options: quantizers.LatentQuantizer(8, options),
    "LookupFreeOptions": lambda options: quantizers.LookupFreeQuantizer(8, 16, options),
    "MultiScaleOptions": lambda options: quantizers.MultiScaleQuantizer(8, 16, options),
    "NeuralResidualOptions": lambda options: quantizers.NeuralResidualQuantizer(8, 16, 2, options),
    "RandomProjectionOptions": lambda options: quantizers.RandomProjectionQuantizer(8, 16, options),
    "ResidualFiniteScalarOptions": lambda options: quantizers.residual_fsq(8, 2, options),
    "ResidualLookupFreeOptions": lambda options: quantizers.residual_lfq(8, 16, 2, options),
    "ResidualSimOptions": lambda options: quantizers.residual_simvq(8, 16, 2, options),
    "ResidualVectorOptions": lambda options: quantizers.ResidualVectorQuantizer(8, 16, 2, options),
    "ScalarPerturbationOptions": lambda options: quantizers.ScalarPerturbationQuantizer(8, options),
    "SimOptions": lambda options: quantizers.SimQuantizer(8, 16, options),
    "StackOptions": lambda options: quantizers.ResidualStack(8, [VectorQuantizer(8, 16)] * 2, options=options),
}
GIVEN = {
    "InPatches": MAPS,
    "MultiScaleQuantizer": MAPS,
    "MultiScaleOptions": MAPS,
    "InLayout": CHANNELS,
    "MaxVectorPool2d": CHANNELS,
    "SoftmaxVectorPool2d": CHANNELS,
    "HierarchicalVQ": ROWS.mT,
}
UNTRIED = {"Quantizer", "QuantizerOutput", "NullQuantizer", "Sequential"}  # interfaces, and what has no settings
UNTRIED |= {"SoftMaxPool2d", "VectorQuantize", "is_vq", "is_vqn"}  # of vqtorch: other names, and questions
CASES = [(library, name) for library, (_, table) in MODULES.items() for name in table]


def arguments_of(library: str, name: str) -> list[str]:
    """The names in the signature, and in those that it passes on to."""
    parameters = inspect.signature(getattr(MODULES[library][0], name)).parameters.values()
    own = [it.name for it in parameters if it.kind not in (it.VAR_KEYWORD, it.VAR_POSITIONAL)]
    return own + (arguments_of(library, PASSED_ON[name]) if name in PASSED_ON else [])


def attempt(library: str, name: str, changes: dict[str, Any], work: bool) -> Exception | None:
    """Make it, and with `work` call it; the error, if there is one."""
    module, table = MODULES[library]
    try:
        made = getattr(module, name)(**table[name] | changes)
        made = MADE_FOR[name](made) if dataclasses.is_dataclass(made) and name in MADE_FOR else made
        if work and isinstance(made, nn.Module) and name != "EMACodebook":
            given = GIVEN.get(name, CHANNELS if library == "vqtorch" else ROWS)
            made.train()(given)
    except Exception as error:
        return error
    return None


def assert_clear(error: Exception | None, what: str) -> None:
    if error is not None:
        assert isinstance(error, (ValueError, TypeError)), f"{what}: {error!r}"
        assert_one_line(error)


def test_every_public_name_is_tried():
    for module, table in MODULES.values():
        names = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
        assert names - set(table) <= UNTRIED


@pytest.mark.parametrize(("library", "name"), CASES)
def test_the_right_arguments_are_taken(library, name):
    assert attempt(library, name, {}, True) is None


@pytest.mark.parametrize(("library", "name"), CASES)
def test_a_wrong_argument_is_one_line(library, name):
    """A third of the values for each argument, other ones for the next."""
    kinds = list(WRONG)
    for index, changed in enumerate(dict.fromkeys(arguments_of(library, name))):
        for kind in kinds[index % 3 :: 3]:
            error = attempt(library, name, {changed: WRONG[kind]}, False)
            assert_clear(error, f"{name}({changed}={kind})")
            of_a_run = name == "codebook_warmup"  # whose model may refuse the loader's batches
            assert error is None or of_a_run or changed in str(error) or shown(WRONG[kind]) in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), CASES)
def test_every_wrong_argument_is_one_line_or_works(library, name):
    for changed in dict.fromkeys(arguments_of(library, name)):
        for kind, wrong in WRONG.items():
            assert_clear(attempt(library, name, {changed: wrong}, True), f"{name}({changed}={kind})")
