"""In which number type the frozen tokenizer of stage 2 encodes."""

from __future__ import annotations

import pytest
import torch

from runtime.precision import Precision
from training.stages.frozen_tokenizer import VQVAEConfig, encoder_dtype


def test_the_encoder_is_in_bf16_on_a_gpu_in_bf16_or_where_asked_for():
    def chosen(wanted: str, of_the_run: str, device: str):
        return encoder_dtype(VQVAEConfig(precision=wanted), Precision(of_the_run, torch.device(device)))

    assert chosen("auto", "auto", "cuda") == chosen("auto", "bf16", "cuda") == torch.bfloat16
    assert chosen("bf16", "fp32", "cpu") == chosen("bf16", "fp16", "cuda") == torch.bfloat16
    for wanted, of_the_run, device in (
        ("auto", "bf16", "cpu"),
        ("auto", "fp16", "cuda"),
        ("auto", "fp32", "cuda"),
        ("fp32", "bf16", "cuda"),
    ):
        assert chosen(wanted, of_the_run, device) is None
    with pytest.raises(ValueError, match=r"vqvae.precision='half': choose from auto, fp32, bf16"):
        chosen("half", "fp32", "cpu")
