"""Walks in fixed buffers: recorded once, replayed for later calls, never with codes of another model or call."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import pytest
import torch

from rqtransformer import sample
from rqtransformer.decoding import decode_program, sample_batches, sample_stream, truncation
from rqtransformer.fast import decoding_state, packing
from rqtransformer.native import calls
from tests.rqtransformer.fast.stand_in_recorder import StandInRecorder

SETTINGS = {"top_k": 7, "top_p": 0.9}


@pytest.fixture(autouse=True)
def recorder(monkeypatch) -> StandInRecorder:
    """Records torch's operations, so that everything is torch's, as on a GPU: no compiled code, no other layouts."""
    monkeypatch.setattr(calls, "library", lambda: None)
    monkeypatch.setattr(packing, "_can_block", lambda weight: False)
    monkeypatch.setattr(truncation, "_numpy_sorts", lambda: False)
    recorder = StandInRecorder()
    monkeypatch.setattr(decode_program, "recorder_on", lambda device: recorder)
    return recorder


def plain(*given, **settings):
    return sample(*given, graphs=False, **settings)


def replayed(*given, **settings):
    return sample(*given, graphs=True, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_size_cond": 3},
        {"input_emb_vqvae": False, "head_emb_vqvae": False},
        {"vocab_size": [11, 4, 7], "shared_cls_emb": False, "cumsum_depth_ctx": False},
        {"body": {"n_layer": 2, "block": {"n_head": 2, "alibi": True}}},
        {"body": {"n_layer": 2, "block": {"n_head": 4, "n_kv_head": 2, "norm": "rms"}}},
        {
            "input_emb_vqvae": False,
            "shared_tok_emb": False,
            "body": {"n_layer": 1, "block": {"n_head": 2, "gelu": "v2"}},
        },
    ],
    ids=["published", "text", "own tables", "uneven", "alibi", "grouped, rms", "mixed"],
)
def test_replayed_codes_are_the_plain_ones(changes, build, recorder):
    model, tokenizer = build(**changes)
    for call in range(4):
        cond = torch.randint(0, 5, (4, model.config.block_size_cond))
        settings = {"seed": call, "start_index": 3 * call, **SETTINGS}
        assert torch.equal(replayed(model, tokenizer, cond, **settings), plain(model, tokenizer, cond, **settings))
    start, position = sorted(recorder.recordings, key=lambda recording: recording.replays)
    assert (start.replays, position.replays) == (2, 3 * 5 + 3)  # the first two of each ran as they are


def test_guidance_masks_and_prefixes_are_data_of_one_recording(build, random_codes, recorder):
    model, tokenizer = build(cond_drop_prob=0.1)
    generator = torch.Generator().manual_seed(0)
    for call in range(4):
        cond, given = torch.randint(0, 5, (3,)), random_codes(model, 3)
        mask = torch.rand(3, 2, 3, 3, generator=generator) < 0.5
        mask[:, 0, 0] = call == 1  # then the first position is given
        settings = {"seed": call, "cfg_scale": ["linear:3", 2.0, [0.5] * 6, "cosine:4"][call], "known": (mask, given)}
        codes = replayed(model, tokenizer, cond, **settings)
        assert torch.equal(codes, plain(model, tokenizer, cond, **settings))
    for call in range(3):
        settings = {"seed": call, "prefix": random_codes(model, 3).flatten(1, 2)[:, : 1 + 2 * call]}
        codes = replayed(model, tokenizer, cond, **settings)
        assert torch.equal(codes, plain(model, tokenizer, cond, **settings))
    starts_and_positions = len(recorder.recordings)
    assert starts_and_positions == 3  # with guidance and masks both, with prefixes no start


@pytest.mark.parametrize("changes", [{}, {"cond_drop_prob": 0.1}])
def test_a_smaller_last_batch_is_filled_up(changes, build, recorder):
    model, tokenizer = build(**changes)
    settings = {"seed": 3, **({"cfg_scale": 2.0} if changes else {}), **SETTINGS}
    labels = [index % 5 for index in range(14)]
    together = plain(model, tokenizer, torch.tensor(labels), **settings)
    parts = list(sample_batches(model, tokenizer, labels, 4, graphs=True, **settings))
    assert [len(part.codes) for part in parts] == [4, 4, 4, 2]
    assert torch.equal(torch.cat([part.codes for part in parts]), together)
    assert len(recorder.recordings) == 2
    (few,) = sample_batches(model, tokenizer, labels[:3], 100, graphs=True, **settings)
    assert torch.equal(few.codes, together[:3])


def test_two_streams_of_one_model_do_not_meet(build, recorder):
    model, tokenizer = build()
    expected = [plain(model, tokenizer, num_samples=2, seed=seed) for seed in range(4)]
    replayed(model, tokenizer, num_samples=2)
    streams = [sample_stream(model, tokenizer, num_samples=2, seed=seed, graphs=True) for seed in range(2)]
    for first, second in zip(*streams):
        assert first.position == second.position
    assert torch.equal(first.codes, expected[0])
    assert torch.equal(second.codes, expected[1])
    long, short = (sample_stream(model, tokenizer, num_samples=2, seed=seed, graphs=True) for seed in (2, 3))
    for _ in range(3):
        next(long), next(short)
    short.close()
    gc.collect()
    *_, last = long
    assert torch.equal(last.codes, expected[2])


@pytest.mark.parametrize("in_training", [False, True])
def test_streams_in_two_formats_take_turns(in_training, build, recorder):
    model, tokenizer = build()
    with torch.no_grad():
        model.classifier.linear.weight.mul_(30)
    formats = [{"amp_dtype": torch.bfloat16}, {"weights": "int8"}, {}]
    expected = [plain(model, tokenizer, num_samples=8, **how) for how in formats]
    assert not torch.equal(expected[0], expected[1])
    for graphs in (True, False):
        model.train(in_training)
        streams = [sample_stream(model, tokenizer, num_samples=8, graphs=graphs, **how) for how in formats]
        for partials in itertools.zip_longest(*streams):
            assert model.training == (in_training and partials[0].position == 0)
        assert model.training == in_training
        for partial, codes in zip(partials, expected):
            assert torch.equal(partial.codes, codes)
    if in_training:
        assert not model.decoding._idle


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_a_recording_follows_the_weights(amp_dtype, build, recorder):
    """Weights written in place are copied to where the recording reads them; it is not made anew."""
    model, tokenizer = build()
    settings = {"num_samples": 4, "amp_dtype": amp_dtype}
    for _ in range(3):
        before = replayed(model, tokenizer, **settings)
    made = len(recorder.recordings)
    state = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for parameter in model.parameters():
        parameter.grad = -0.5 * parameter.detach()
    optimizer.step()
    tokenizer.books = [-book for book in tokenizer.books]  # computed anew, as some tokenizers do
    after = replayed(model, tokenizer, **settings)
    assert torch.equal(after, plain(model, tokenizer, **settings))
    assert not torch.equal(after, before)
    tokenizer.books = [-book for book in tokenizer.books]
    model.load_state_dict(state)
    assert torch.equal(replayed(model, tokenizer, **settings), before)
    assert len(recorder.recordings) == made


def test_what_stands_elsewhere_is_recorded_anew(build, recorder):
    model, tokenizer = build()
    changes = {
        "other parameters": lambda: model.load_state_dict(
            {name: 1.5 * value for name, value in model.state_dict().items()}, assign=True
        ),
        "moved": lambda: model.double().float(),
        "another norm": lambda: [setattr(block.ln1, "eps", 0.1) for block in model.blocks],
        "another weight": lambda: setattr(model.head_mlp, "weight", torch.nn.Parameter(2 * model.head_mlp.weight)),
    }
    for _ in range(3):
        replayed(model, tokenizer, num_samples=2)
    for name, change in changes.items():
        made = len(recorder.recordings)
        change()
        for _ in range(3):
            expected = plain(model, tokenizer, num_samples=2)
            assert torch.equal(replayed(model, tokenizer, num_samples=2), expected), name
        assert len(recorder.recordings) > made, name


def test_a_walk_that_breaks_off_leaves_nothing_behind(build, recorder, monkeypatch):
    model, tokenizer = build()
    expected = plain(model, tokenizer, num_samples=2, seed=8)
    for _ in range(3):
        replayed(model, tokenizer, num_samples=2)
    stream = sample_stream(model, tokenizer, num_samples=2, graphs=True)
    for _ in range(3):
        next(stream)
    stream.close()
    (kept,) = model.decoding._idle
    assert torch.equal(replayed(model, tokenizer, num_samples=2, seed=8), expected)
    assert model.decoding._idle == [kept]

    def fail(program):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(decode_program.DecodeProgram, "draw_next", fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            replayed(model, tokenizer, num_samples=2)
    assert model.decoding._idle == []
    assert model.decoding.walks == 0
    assert torch.equal(replayed(model, tokenizer, num_samples=2, seed=8), expected)


def test_few_programs_are_kept_and_none_is_copied_or_saved(build, recorder):
    model, tokenizer = build()
    for rows in range(1, 6):
        replayed(model, tokenizer, num_samples=rows)
    sizes = [len(program.codes_BTD) for program in model.decoding._idle]
    assert sizes == [3, 4, 5]
    assert decoding_state.MOST_IDLE == 3
    assert recorder.waits == 2
    assert not any("decoding" in name for name in model.state_dict())
    twin = copy.deepcopy(model)
    assert twin.decoding._idle == []
    with torch.no_grad():
        twin.body_transformer.blocks[0].attn.query.weight.mul_(-3)
    assert torch.equal(replayed(twin, tokenizer, num_samples=5), plain(twin, tokenizer, num_samples=5))
    assert torch.equal(replayed(model, tokenizer, num_samples=5), plain(model, tokenizer, num_samples=5))
    gone = weakref.ref(model.decoding._idle[0].codes_BTD)
    recorder.recordings.clear()
    model.to("cpu", torch.float64)
    gc.collect()
    assert gone() is None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_memory_of_idle_programs_is_given_up_first(build, recorder, monkeypatch):
    model, tokenizer = build()
    replayed(model, tokenizer, num_samples=2)
    build_program, failures = decode_program.DecodeProgram.__init__, []

    def scarce(program, model, *given):
        if model.decoding._idle:
            failures.append(1)
            raise torch.OutOfMemoryError("no memory")
        build_program(program, model, *given)

    monkeypatch.setattr(decode_program.DecodeProgram, "__init__", scarce)
    expected = plain(model, tokenizer, num_samples=3)
    assert torch.equal(replayed(model, tokenizer, num_samples=3), expected)
    assert failures == [1]
