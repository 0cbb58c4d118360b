"""The learning-rate schedule against the reference numbers `losses` (`lr.*`), and where it bends."""

from __future__ import annotations

import math

import pytest
import torch

from training.optimization.schedule import LearningRateSchedule, WarmupConfig

# (setting, absolute tolerance) as stated beside the reference numbers
SETTINGS = {
    "in256_stage1": 4e-14,
    "fix_x3_buffer": 3e-13,
    "linear_ws4_from_base": 4e-13,
    "none_half": 1e-13,
    "stage2_no_warmup": 5e-13,
    "no_warmup_buffer": 5e-13,
}


def test_every_golden_setting_is_tested(golden):
    assert {setting["name"] for setting in golden("losses").json("schedules.json")["settings"]} == set(SETTINGS)


@pytest.mark.parametrize("name", SETTINGS)
def test_golden(golden, name):
    losses = golden("losses")
    setting = next(entry for entry in losses.json("schedules.json")["settings"] if entry["name"] == name)
    schedule = LearningRateSchedule(
        setting["init_lr"],
        WarmupConfig(**setting["warmup"]),
        setting["steps_per_epoch"],
        setting["max_epoch"],
        setting["world_size"],
    )
    used, following = losses.io[f"lr.{name}.used"], losses.io[f"lr.{name}.get_last_lr"]
    rates = torch.tensor([schedule.at(step) for step in range(len(used) + 1)], dtype=torch.float64)
    torch.testing.assert_close(rates[:-1], used, atol=SETTINGS[name], rtol=0)
    torch.testing.assert_close(rates[1:], following, atol=SETTINGS[name], rtol=0)


def test_published_defaults():
    """No warm-up: from `init_lr` at the first step to zero at the end."""
    schedule = LearningRateSchedule(1e-3, WarmupConfig(), steps_per_epoch=10, max_epoch=2)
    assert schedule.at(0) == 1e-3
    assert schedule.at(10) == pytest.approx(5e-4)
    assert schedule.at(20) == pytest.approx(0.0, abs=1e-18)


def test_square_root_mode_scales_with_the_ranks():
    warmup = WarmupConfig(epoch=1, multiplier=2, mode="sqrt")
    assert LearningRateSchedule(1e-3, warmup, 10, 10, world_size=4).at(10) == pytest.approx(4e-3)


@pytest.mark.parametrize(("mode", "peak"), [("fix", 1.0), ("linear", 1.0), ("sqrt", 1.0), ("none", 0.25)])
def test_only_mode_none_lowers_the_peak(mode, peak):
    warmup = WarmupConfig(epoch=1, multiplier=0.25, mode=mode)
    assert LearningRateSchedule(1.0, warmup, 10, 10, world_size=1).at(10) == peak


def test_fractional_lengths_count_whole_steps_and_end_at_the_minimum():
    warmup = WarmupConfig(epoch=0.25, buffer_epoch=0.25, min_lr=0.1)
    schedule = LearningRateSchedule(1.0, warmup, steps_per_epoch=10, max_epoch=1.5)
    rates = [schedule.at(step) for step in range(16)]
    assert rates[2:6] == pytest.approx([0.8] * 4)  # 2 of 2.5 steps, then the plateau up to step 5
    assert all(later < earlier for earlier, later in zip(rates[5:], rates[6:], strict=False))
    assert rates[10] == pytest.approx((0.8 + 0.1) / 2)
    assert rates[15] == pytest.approx(0.1)


def test_fractional_plateau_gives_way_at_the_next_whole_step():
    """1.5 + 2 steps: step 3 is the last of the plateau; the cosine still lasts 10 - 3.5 steps."""
    warmup = WarmupConfig(epoch=0.75, buffer_epoch=1, multiplier=3, start_from_zero=False)
    schedule = LearningRateSchedule(1.0, warmup, steps_per_epoch=2, max_epoch=5)
    plateau = 1 + 2 / 1.5
    assert [schedule.at(step) for step in (0, 1, 2, 3)] == pytest.approx([1.0, plateau, plateau, plateau])
    for step in (4, 9):
        assert schedule.at(step) == pytest.approx(plateau * (1 + math.cos(math.pi * (step - 3) / 6.5)) / 2)


@pytest.mark.parametrize("start_from_zero", [False, True])
def test_warmup_shorter_than_a_step_reaches_its_peak(start_from_zero):
    warmup = WarmupConfig(epoch=0.25, multiplier=2, start_from_zero=start_from_zero)
    schedule = LearningRateSchedule(1.0, warmup, steps_per_epoch=2, max_epoch=5)
    assert schedule.at(0) == (0.0 if start_from_zero else 1.0)
    assert schedule.at(1) == pytest.approx(2 * (1 + math.cos(math.pi / 9.5)) / 2)


def test_warmup_longer_than_the_run_never_falls():
    schedule = LearningRateSchedule(1.0, WarmupConfig(epoch=5), steps_per_epoch=2, max_epoch=1)
    assert [schedule.at(step) for step in (0, 5, 10, 40)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "cosine"}, "cosine.*fix"),
        ({"epoch": -1}, "warmup.epoch.*-1"),
        ({"multiplier": float("nan")}, "multiplier.*nan"),
        ({"min_lr": -1e-6}, "min_lr"),
        ({"buffer_epoch": -2}, "buffer_epoch"),
    ],
)
def test_wrong_warmup(change, message):
    with pytest.raises(ValueError, match=message):
        LearningRateSchedule(1e-3, WarmupConfig(**change), 10, 10)


@pytest.mark.parametrize(("steps", "epochs"), [(0, 1), (10, 0), (10, -1)])
def test_empty_run(steps, epochs):
    with pytest.raises(ValueError, match="needs steps"):
        LearningRateSchedule(1e-3, WarmupConfig(), steps, epochs)


@pytest.mark.parametrize(
    ("warmup", "epochs", "said"),
    [
        (
            {"epoch": 5.0},
            2,
            "the warm-up of 50 steps (optimizer.warmup.epoch) is as long as the run or longer: 20 steps",
        ),
        ({"epoch": 2.0}, 2, "the warm-up of 20 steps"),
        ({"epoch": 1.0, "buffer_epoch": 1.0}, 2, "warm-up and plateau (optimizer.warmup.buffer_epoch) last 20 steps"),
        ({"epoch": 1.0}, 2, ""),
        ({"buffer_epoch": 9.0}, 2, ""),  # without a warm-up the plateau does not apply
        ({}, 2, ""),
    ],
)
def test_a_run_that_ends_before_its_schedule_begins_says_so(warmup, epochs, said):
    line = LearningRateSchedule(1e-3, WarmupConfig(**warmup), 10, epochs).never_reached()
    assert line.startswith(said)
    assert bool(line) == bool(said)
