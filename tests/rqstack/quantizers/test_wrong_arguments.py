"""What users can get wrong: one line with the value and what is valid, never a raw error of torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqstack.quantizers import (
    BinaryMapper,
    Grouped,
    InLayout,
    InPatches,
    LookupFreeQuantizer,
    MultiScaleOptions,
    MultiScaleQuantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    ResidualFiniteScalarOptions,
    ResidualQuantizer,
    ResidualStack,
    ResidualVectorQuantizer,
    SimQuantizer,
    VectorOptions,
    VectorQuantizer,
    residual_fsq,
    residual_lfq,
    residual_simvq,
)
from rqstack.quantizers.compat import vector_quantize_pytorch
from tests.rqstack.quantizers.quantizer_methods import DIM, METHODS, OF_MAPS, make

NO_SIZE = st.sampled_from([0, -1, -(2**70), 1.5, float("nan"), "8", "", None, True, [], [4], {}, b"1", 3j, object()])
WITH_A_SIZE = {
    "VectorQuantizer(_, 8)": lambda n: VectorQuantizer(n, 8),
    "VectorQuantizer(32, _)": lambda n: VectorQuantizer(32, n),
    "VectorQuantizer(heads)": lambda n: VectorQuantizer(8, 8, heads=n),
    "VectorOptions(kmeans_iterations)": lambda n: VectorOptions(kmeans_iterations=n or -1),
    "ResidualQuantizer(_, [8])": lambda n: ResidualQuantizer(n, [8]),
    "ResidualQuantizer(8, [_])": lambda n: ResidualQuantizer(8, [n]),
    "ResidualQuantizer(patch)": lambda n: ResidualQuantizer(8, [8], patch=(1, n)),
    "ResidualVectorQuantizer(_, [8])": lambda n: ResidualVectorQuantizer(n, [8]),
    "ResidualVectorQuantizer(8, [_])": lambda n: ResidualVectorQuantizer(8, [n]),
    "ResidualVectorQuantizer(8, 8, _)": lambda n: ResidualVectorQuantizer(8, 8, n),
    "SimQuantizer(8, _)": lambda n: SimQuantizer(8, n),
    "LookupFreeQuantizer(8, _)": lambda n: LookupFreeQuantizer(8, n),
    "BinaryMapper(8, _)": lambda n: BinaryMapper(8, n),
    "BinaryMapper(_, 8)": lambda n: BinaryMapper(n, 8),
    "RandomProjectionQuantizer(8, _)": lambda n: RandomProjectionQuantizer(8, n, RandomProjectionOptions(4)),
    "RandomProjectionOptions(_)": lambda n: RandomProjectionQuantizer(8, 8, RandomProjectionOptions(n)),
    "residual_fsq(8, _)": lambda n: residual_fsq(8, n, ResidualFiniteScalarOptions(levels=[3, 3])),
    "residual_fsq(levels)": lambda n: residual_fsq(8, 2, ResidualFiniteScalarOptions(levels=[3, n])),
    "residual_lfq(8, 8, _)": lambda n: residual_lfq(8, 8, n),
    "residual_simvq(8, 8, _)": lambda n: residual_simvq(8, 8, n),
    "ResidualStack(_)": lambda n: ResidualStack(n, [VectorQuantizer(8, 8)]),
    "Grouped(_)": lambda n: Grouped(n, [VectorQuantizer(8, 8)]),
    "InPatches(patch)": lambda n: InPatches(VectorQuantizer(8, 8), (n, 1)),
    "InLayout(channels)": lambda n: InLayout(VectorQuantizer(8, 8), n),
    "MultiScaleQuantizer(8, _)": lambda n: MultiScaleQuantizer(8, n, MultiScaleOptions([1, 2])),
}


DROP_IN: dict = {
    "VectorQuantize": {"dim": 8, "codebook_size": 16, "heads": 1},
    "ResidualVQ": {"dim": 8, "num_quantizers": 2, "codebook_size": 16},
    "FSQ": {"levels": [3, 3], "dim": 8, "num_codebooks": 1},
    "LFQ": {"dim": 8, "codebook_size": 16, "num_codebooks": 1},
    "SimVQ": {"dim": 8, "codebook_size": 16},
    "ResidualFSQ": {"levels": [3, 3], "num_quantizers": 2, "dim": 8},
    "ResidualLFQ": {"dim": 8, "num_quantizers": 2, "codebook_size": 16},
    "LatentQuantize": {"levels": [3, 3], "dim": 8},
    "RandomProjectionQuantizer": {"dim": 8, "codebook_size": 16, "codebook_dim": 4, "num_codebooks": 1},
}


@pytest.mark.parametrize("name", DROP_IN)
@given(size=NO_SIZE.filter(lambda size: size is not None and size != [4]))
@settings(max_examples=15, deadline=None)
def test_sizes_of_the_drop_in_modules(name, size):
    good = DROP_IN[name]
    getattr(vector_quantize_pytorch, name)(**good)
    for argument in good:
        with pytest.raises((ValueError, TypeError)) as error:
            getattr(vector_quantize_pytorch, name)(**good | {argument: size})
        assert_one_line(error.value)


def assert_one_line(error: Exception) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 300 and " at 0x" not in message


@pytest.mark.parametrize("name", WITH_A_SIZE)
@given(size=NO_SIZE)
@settings(max_examples=15, deadline=None)
def test_sizes(name, size):
    with pytest.raises((ValueError, TypeError)) as error:
        WITH_A_SIZE[name](size)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", METHODS | OF_MAPS)
def test_codes_out_of_range_are_refused_by_every_codebook(name):
    quantizer = make(name).eval()
    codes = torch.zeros(2, 1, len(quantizer.num_codes), dtype=torch.int64)
    calls = [quantizer.decode, quantizer.embed_with_depth, lambda codes: quantizer.decode_depth(codes, 0)]
    for depth in (0, len(quantizer.num_codes) - 1):
        for wrong in (quantizer.num_codes[depth], 2**62, *([] if quantizer.drops_levels else [-1])):
            there = codes.clone()
            there[1, 0, depth] = wrong
            for call in calls:
                with pytest.raises(ValueError, match=rf"code {wrong} is not in 0 \.\. \d+") as error:
                    call(there)
                assert_one_line(error.value)
    for kind in (torch.int8, torch.int32, torch.uint8):
        assert torch.equal(quantizer.decode(codes.to(kind)), quantizer.decode(codes))


NO_CODES = [None, [0], 0, codes_float := torch.zeros(2, 1), codes_float.bool(), torch.tensor(0)]


@pytest.mark.parametrize("name", ["vq", "rq", "fsq", "lfq", "residual vq", "latent", "binary", "multi-scale"])
@pytest.mark.parametrize("codes", NO_CODES, ids=str)
def test_no_codes(name, codes):
    with pytest.raises((ValueError, TypeError), match="codes") as error:
        make(name).decode(codes)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", ["vq", "rq", "fsq", "lfq", "residual vq", "latent", "binary", "random projection"])
@pytest.mark.parametrize(
    "z", [None, [1.0] * DIM, torch.zeros(3, DIM).long(), torch.zeros(3, DIM + 1), torch.tensor(1.0)], ids=str
)
def test_no_vectors(name, z):
    with pytest.raises((ValueError, TypeError), match="vectors") as error:
        make(name)(z)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", ["vq", "rq", "fsq", "lfq", "residual vq", "grouped residual fsq"])
@pytest.mark.parametrize("mask", [[True], torch.ones(2, 4).bool(), torch.ones(4, 2).bool(), torch.ones(2, 3)], ids=str)
def test_no_masks(name, mask):
    """A mask of another shape, also one with as many entries, is never taken for one of the positions."""
    with pytest.raises((ValueError, TypeError), match=r"mask must be a boolean tensor \(2, 3\)") as error:
        make(name)(torch.zeros(2, 3, DIM), mask)
    assert_one_line(error.value)


@pytest.mark.parametrize("layout", ["nowhere", None, 1.5, True, [], 7])
def test_no_layouts(layout):
    with pytest.raises(ValueError, match="layout") as error:
        InLayout(VectorQuantizer(8, 8), 8, layout)(torch.zeros(2, 8, 3))
    assert_one_line(error.value)
