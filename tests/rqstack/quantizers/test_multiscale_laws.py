"""The laws of every quantizer for those of whole maps: layout x dtype x mask x train/eval, and what keeps their state.

A map (N positions) is one stack of codes; grids of two and three dims and closed forms are in `test_multi_scale.py`.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqstack.quantizers import InLayout
from tests.rqstack.quantizers.quantizer_methods import DIM, OF_MAPS, code_limits, forward, make

every_method = pytest.mark.parametrize("name", OF_MAPS)
examples = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def maps(batch=6, positions=5):
    return torch.randn(batch, positions, DIM)


@every_method
@examples
@given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    training=st.booleans(),
    masked=st.booleans(),
    channels_first=st.booleans(),
)
def test_output_layout_and_precision(name, seed, dtype, training, masked, channels_first):
    quantizer, drops = make(name, seed).train(training), OF_MAPS[name].drops and training
    copies, z = [copy.deepcopy(quantizer) for _ in range(2)], maps().to(dtype)
    mask = torch.rand(6, 5) < 0.7 if masked else None
    out = forward(quantizer, z, mask)
    assert out.quantized.shape == z.shape and out.quantized.dtype == dtype
    assert out.codes.shape == (6, 1, len(quantizer.num_codes)) and out.codes.dtype == torch.int64
    assert (out.codes >= (-1 if drops else 0)).all() and (out.codes < code_limits(quantizer)).all()
    assert torch.equal(out.quantized, quantizer.decode(out.codes).to(dtype))
    assert out.loss.shape == () and out.loss.dtype == torch.float32 and out.loss.isfinite()
    torch.testing.assert_close(sum(out.terms.values(), torch.zeros(())), out.loss)
    other = InLayout(copies[0], DIM, "channels_first" if channels_first else "channels_last")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = forward(other, z.movedim(-1, 1) if channels_first else z, mask)
    full = forward(copies[1], z.float(), mask)
    assert torch.equal(again.quantized.movedim(1, -1) if channels_first else again.quantized, out.quantized)
    for same in (again, full):
        assert torch.equal(same.codes, out.codes) and torch.equal(same.loss, out.loss)


@every_method
def test_evaluation_and_discarded_steps_change_no_state(name):
    quantizer = make(name)
    quantizer(maps())
    quantizer.update_codebook()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(maps())
    quantizer.discard_codebook_update()
    quantizer.targets(maps())
    quantizer.eval()(maps())
    quantizer.update_codebook()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_method
def test_a_bad_vector_harms_its_map_only(name):
    quantizer = make(name)
    quantizer(maps())
    quantizer.update_codebook()
    z = maps()
    bad = z.clone()
    bad[1, 2, 3], bad[4, 0] = float("nan"), float("inf")
    good = [0, 2, 3, 5]
    expected, out = forward(copy.deepcopy(quantizer).eval(), z), forward(copy.deepcopy(quantizer).eval(), bad)
    assert torch.equal(out.codes[good], expected.codes[good])
    assert torch.equal(out.quantized[good], expected.quantized[good])
    assert (forward(quantizer, bad).codes < code_limits(quantizer)).all()
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@every_method
def test_a_half_precision_model_keeps_its_codes(name):
    """Casting the model changes convolutions and learned code vectors (they are parameters), nothing else."""
    quantizer, z = make(name).eval(), maps().bfloat16()
    for parameter in quantizer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    rounded, cast = quantizer(z), copy.deepcopy(quantizer).bfloat16()(z)
    assert torch.equal(cast.codes, rounded.codes)
    assert torch.equal(cast.quantized, rounded.quantized)
