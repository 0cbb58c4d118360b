"""The recorder of a GPU asks torch for the right things in the right order; what a GPU makes of it is not seen here."""

from __future__ import annotations

import contextlib
from unittest.mock import MagicMock

import pytest
import torch

from rqtransformer.fast.cuda_graph import CudaRecorder


@pytest.fixture
def asked(monkeypatch) -> MagicMock:
    asked = MagicMock()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: asked.side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: asked.caller)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: asked.graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda given: contextlib.nullcontext())
    return asked


@pytest.mark.parametrize("fails", [False, True])
def test_a_recording_begins_and_always_ends(asked, fails):
    recorder = CudaRecorder(torch.device("cuda", 0))
    step = MagicMock(side_effect=ValueError("in the step") if fails else None)
    asked.attach_mock(step, "step")
    with pytest.raises(ValueError, match="in the step") if fails else contextlib.nullcontext():
        recorder.record(step)
    names = [name for name, _, _ in asked.mock_calls]
    assert names == ["side.wait_stream", "graph.capture_begin", "step", "graph.capture_end", "caller.wait_stream"]
    asked.graph.capture_begin.assert_called_once_with(pool="pool", capture_error_mode="thread_local")
