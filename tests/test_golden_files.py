"""The golden sets can be read and say what they hold."""

from __future__ import annotations

import pytest
import torch

SETS_WITH_CHECKPOINT = [
    "rqvae-shared",
    "rqvae-chmult",
    "rqvae-deep",
    "rqtransformer-class",
    "rqtransformer-text",
    "losses",
]


@pytest.mark.parametrize("name", [*SETS_WITH_CHECKPOINT, "metrics"])
def test_every_set_holds_tensors(golden, name):
    tensors = golden(name).io
    assert tensors
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())


@pytest.mark.parametrize("name", SETS_WITH_CHECKPOINT)
def test_every_checkpoint_reads_without_running_code(golden, name):
    assert golden(name).checkpoint
    assert golden(name).config


def test_an_unknown_set_names_the_known_ones(golden):
    with pytest.raises(ValueError, match="rqvae-shared"):
        golden("rqvae-nothing")


def test_published_keys_list_counts_and_names(golden_keys):
    entry = golden_keys["imagenet256 stage 1 (in256-rqvae-8x8x4)"]
    assert entry["parameters"] == 104402051
    assert entry["keys"][0][0] == "encoder.conv_in.weight"
