"""`VectorQuantize` beside the package whose signature it has: training and evaluation in every setting of the table.

Run with `make test-peers`. Outputs, indices, losses, gradients of inputs and parameters, and all state are compared.
What is known to differ is in docs/migrating.md and tested in tests/rqstack/quantizers/compat.
"""

from __future__ import annotations

import pytest
import torch

from tests.peers.vector_settings import SETTINGS, check_gradients, check_outputs, check_state, pair

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer


@pytest.mark.parametrize("name", SETTINGS)
def test_training_and_evaluation_agree(name):
    settings, shape, forward = SETTINGS[name]
    both = pair(peer, settings)
    generator = torch.Generator().manual_seed(1)
    optimizers = [torch.optim.SGD(list(m.parameters()) or [torch.zeros(1)], lr=0.1) for m in both]
    for step in range(5):
        training = step < 3
        x = torch.randn(shape, generator=generator)
        keywords = forward(generator) if callable(forward) else forward
        inputs = [x.clone().requires_grad_() for _ in both]
        results = []
        for module, own_input, optimizer in zip(both, inputs, optimizers, strict=True):
            module.train(training)
            optimizer.zero_grad()
            torch.manual_seed(step)
            results.append(module(own_input, **keywords))
        check_outputs(*results)
        if training:
            for (quantized, *_, loss), own_input in zip(results, inputs, strict=True):
                upstream = torch.arange(quantized.numel()).cos().view(quantized.shape)  # any fixed gradient
                ((quantized * upstream).sum() + loss.sum() + own_input.sum()).backward()
            check_gradients(*both, inputs)
            for optimizer in optimizers:
                optimizer.step()
        check_state(*both)


@pytest.mark.parametrize("name", SETTINGS)
def test_evaluation_is_identical_from_one_state(name):
    """After a training step of theirs, whose state is loaded: the same indices, and outputs and losses bit by bit.

    But for affine codebooks, where a rounding differs, and cross entropies, whose sums run in another order.
    """
    settings, shape, forward = SETTINGS[name]
    theirs, ours = pair(peer, settings)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    keywords = forward(generator) if callable(forward) else forward
    theirs(x, **keywords)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected, found = (module.eval()(x, **keywords) for module in (theirs, ours))
    check_outputs(expected, found)
    if "affine" not in name:
        assert torch.equal(found[0], expected[0])
    if "indices" not in keywords:
        assert torch.equal(found[1], expected[1])
        assert torch.equal(found[2], expected[2])
