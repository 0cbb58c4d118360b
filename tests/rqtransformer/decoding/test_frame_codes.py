"""The head as a step: the codes of `sample` from the contexts of its body."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import frame_sampler, sample
from rqtransformer.decoding import Decoder

COND = torch.tensor([0, 3, 4])


def contexts_and_sums(model, tokenizer, codes_BTD):
    """What the body says before every position, and what it is given after it."""
    with model.decoding_mode(), torch.no_grad():
        decoder = Decoder(model, tokenizer, COND[:, None], codes_BTD[:, :0], torch.float32)
        for codes_BD in codes_BTD.unbind(1):
            context_BC = decoder.context()
            for code_B in codes_BD.unbind(1):
                decoder.logits()
                decoder.push(code_B)
            yield context_BC, decoder.pending_input


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"input_emb_vqvae": False, "head_emb_vqvae": False},
        {"vocab_size": [11, 4, 7], "shared_cls_emb": False, "cumsum_depth_ctx": False},
    ],
    ids=["published", "own tables", "uneven"],
)
@pytest.mark.parametrize("settings", [{}, {"top_k": [3, 2, 5], "temperature": 0.8}], ids=str)
def test_frames_are_the_positions_of_sample(changes, settings, build, either_path):
    model, tokenizer = build(**changes)
    codes_BTD = sample(model, tokenizer, COND, seed=5, start_index=2, **settings).flatten(1, 2)
    walk = list(contexts_and_sums(model, tokenizer, codes_BTD))
    with frame_sampler(model, tokenizer, batch_size=3, seed=5, start_index=2, **settings) as draw:
        for number, (context_BC, input_sum) in enumerate(walk):
            assert draw.frame == number
            frame = draw(context_BC)
            assert torch.equal(frame.codes, codes_BTD[:, number])
            torch.testing.assert_close(frame.vector_sum, input_sum)


def test_codes_that_are_ruled_out_do_not_come(build):
    model, tokenizer = build()
    shown = []

    def allowed(codes_BN):
        shown.append(codes_BN.shape)
        return torch.arange(11) == codes_BN.shape[1]

    with frame_sampler(model, tokenizer, batch_size=2, allowed=allowed) as draw:
        for _ in range(2):
            assert draw(torch.randn(2, 16)).codes.tolist() == [[0, 1, 2]] * 2
    assert shown == [(2, 0), (2, 1), (2, 2)] * 2


def test_a_model_in_training_goes_back_to_it(build):
    model, tokenizer = build()
    model.train()
    with frame_sampler(model, tokenizer) as draw:
        assert not draw(torch.randn(1, 16)).codes.requires_grad
    assert model.training


def test_what_is_wrong_is_said(build):
    model, tokenizer = build()
    with frame_sampler(model, tokenizer, batch_size=2) as draw:
        with pytest.raises(ValueError, match=r"must be of shape \(2, 16\), not \(3, 16\)"):
            draw(torch.randn(3, 16))
        with pytest.raises(ValueError, match=r"must be of shape \(2, 16\), not None"):
            draw(None)
        with pytest.raises(ValueError, match="logits of 1 of 2 samples are not finite"):
            draw(torch.randn(2, 16).index_fill(0, torch.tensor([1]), float("nan")))
    for settings, said in [({"batch_size": 0}, "batch_size=0"), ({"top_k": 0}, "top_k=0"), ({"seed": "x"}, "seed='x'")]:
        with pytest.raises(ValueError, match=said), frame_sampler(model, tokenizer, **settings):
            pass
    with pytest.raises(ValueError, match="code vectors of a tokenizer"), frame_sampler(model, None):
        pass
