"""A codec of waves: frames of codes, decoded from all of them or from the first."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from examples import wave_codec
from examples.wave_codec import Settings, WaveCodec, draw_waves, error_by_depth, train

SMALL = Settings(depth=3, num_codes=16, channels=8, samples=256, batch_size=8, steps=200, lr=1e-2)


def test_more_codes_are_a_better_wave():
    errors = error_by_depth(train(SMALL), draw_waves(16, 256, torch.Generator().manual_seed(9)))
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9  # of the waves' own power


def test_shapes_and_the_prefix_of_a_frame():
    torch.manual_seed(0)
    model = WaveCodec(SMALL)
    waves = draw_waves(2, 256, torch.Generator().manual_seed(0))
    model(waves)  # codebooks start from data
    model.eval()
    with torch.no_grad():
        codes = model.encode(waves)
        assert codes.shape == (2, 256 // 64, 3)
        assert model.decode(codes).shape == waves.shape
        torch.testing.assert_close(model.decode(codes), model(waves)[0])
        first = model.quantizer.decode_depth(codes, 0)
        torch.testing.assert_close(model.decode(codes[..., :1]), model.decoder(first))


def test_waves_are_those_of_the_generator_and_fade():
    waves = draw_waves(4, 4000, torch.Generator().manual_seed(3))
    assert torch.equal(waves, draw_waves(4, 4000, torch.Generator().manual_seed(3)))
    power = waves.square().mean(dim=(0, 1))
    assert power[3000:].mean() < power[:1000].mean()


def test_the_command_writes_the_waves_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wave_codec", "--steps", "1", "--out", str(tmp_path)])
    wave_codec.main()
    line = json.loads(capsys.readouterr().out)
    assert len(line["relative_error_by_codes"]) == 6 and line["bits_per_second"] == 4500
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "wave.npy",
        *(f"wave_from_{count}_codes.npy" for count in range(1, 7)),
    ]
    assert np.load(tmp_path / "wave.npy").shape == (2048,)


def test_mistakes_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wave_codec", "--steps", "0"])
    with pytest.raises(SystemExit) as ended:
        wave_codec.main()
    assert ended.value.code == 2
    assert "--steps=0 must be at least 1" in capsys.readouterr().err
