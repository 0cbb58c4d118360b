"""Two processes (gloo) against one process on the joint batch, for every quantizer: state, codes, losses, gradients.

State covers k-means start, updates, restarts, steps of a codebook's own optimizer. Both ranks see half of every
micro-batch, so that the mean of their losses and gradients (what data parallelism takes) is that of the joint batch.
"""

import pytest
import torch

from tests.rqstack.quantizers.quantizer_methods import DIM, METHODS, OF_MAPS, make

ALL = METHODS | OF_MAPS
STEPS, MICRO, ROWS, POSITIONS = 3, 2, 8, 5
START, END = "after the first forward", "after all updates"


def micro_batches(step, rank, world):
    """This process's share of the micro-batches of a step."""
    generator = torch.Generator().manual_seed(step)
    batches = torch.randn(MICRO, ROWS, POSITIONS, DIM, generator=generator).chunk(world, 1)[rank]
    return batches.unbind(0)


def train(name, rank, world):
    """What a process ends with: states, the codes, losses and input gradients of every forward, the summed gradients of
    the parameters, restarts."""
    quantizer, states, codes, losses, inputs = make(name), {}, [], [], []
    for step in range(STEPS):
        for index, z in enumerate(micro_batches(step, rank, world)):
            torch.manual_seed(100 * step + index)  # which levels are dropped
            z = z.clone().requires_grad_()
            out = quantizer(z)
            (out.loss + out.quantized.square().mean()).backward()
            inputs.append(z.grad / world)
            codes.append(out.codes)
            losses.append(out.loss.detach())
            states.setdefault(START, {key: value.clone() for key, value in quantizer.state_dict().items()})
        quantizer.update_codebook()
    states[END] = {key: value.clone() for key, value in quantizer.state_dict().items()}
    gradients = {key: p.grad for key, p in quantizer.named_parameters() if p.grad is not None}
    return states, torch.stack(codes), torch.stack(losses), torch.stack(inputs), gradients, quantizer.restart_counts()


def results(rank, world):
    return {name: train(name, rank, world) for name in ALL}


@pytest.fixture(scope="module")
def two_ranks(on_ranks):
    return on_ranks(results, 2)


def close(actual, expected, name):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("name", ALL)
def test_both_ranks_hold_the_same_state(two_ranks, name):
    (ours, *_, restarts), (theirs, *_, other_restarts) = (results[name] for results in two_ranks)
    for moment, state in ours.items():
        for key, value in state.items():
            assert torch.equal(value, theirs[moment][key]), f"{key} {moment}"
    assert torch.equal(restarts, other_restarts)
    assert bool(restarts.any()) == ("restart" in name), "otherwise the equality would say little"


@pytest.mark.parametrize("name", [name for name, method in ALL.items() if not method.random])
def test_two_ranks_equal_one_process_on_the_joint_batch(two_ranks, name):
    states, codes, losses, inputs, gradients, restarts = train(name, 0, 1)
    first, second = (results[name] for results in two_ranks)
    for moment, state in states.items():
        for key, value in state.items():
            close(first[0][moment][key], value, f"{key} {moment}")
    assert torch.equal(torch.cat([first[1], second[1]], 1), codes)
    close((first[2] + second[2]) / 2, losses, "losses")
    if not ALL[name].noisy:
        close(torch.cat([first[3], second[3]], 1), inputs, "input gradients")
    assert first[4].keys() == second[4].keys() == gradients.keys()
    for key, value in gradients.items():
        if not ALL[name].noisy:
            close((first[4][key] + second[4][key]) / 2, value, f"gradient of {key}")
    assert torch.equal(first[5], restarts)
