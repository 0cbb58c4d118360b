"""The published step of the comparison is the same mathematics as ours, so that its time can be compared."""

from __future__ import annotations

import copy
import json

import torch

from benchmarks import stage2_comparison
from benchmarks.training_speed import STAGE1, STAGE2, build_stage1, typed
from runtime.distributed import DistEnv
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2

ENV = DistEnv(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="none")


def small_stages(dropout: float, stochastic: bool) -> dict[str, Stage2]:
    first, second = copy.deepcopy(STAGE1), copy.deepcopy(STAGE2)
    first["arch"]["hparams"] |= {"embed_dim": 8, "n_embed": 32, "latent_shape": [4, 4, 8], "code_shape": [4, 4, 3]}
    first["arch"]["ddconfig"] |= {
        **{"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 2]},
        **{"num_res_blocks": 1, "attn_resolutions": [4]},
    }
    second["arch"] |= {"block_size": [4, 4, 3], "embed_dim": 32, "input_embed_dim": 8}
    for section, layers in (("body", 2), ("head", 1)):
        second["arch"][section] = {"n_layer": layers, "block": {"n_head": 4, "resid_pdrop": dropout}}
    second["loss"]["stochastic_codes"] = stochastic
    second["experiment"]["batch_size"] = 4
    return stage2_comparison.build_forms(second, build_stage1(typed(Stage1Config, first), ENV), ENV)


def test_both_steps_are_the_same_mathematics():
    stage = small_stages(dropout=0.0, stochastic=False)["fp32"]
    published = stage2_comparison.published_step(stage)
    image_BCHW, label_B = torch.rand(4, 3, 8, 8) * 2 - 1, torch.arange(4)
    for group in published.optimizer.param_groups:
        group["lr"] = stage.update.schedule.at(1)
    for step in (1, 1):
        loss = stage.train_step([{"image": image_BCHW, "label": label_B}], step)["loss"].item()
        assert abs(published(image_BCHW, label_B) - loss) < 1e-5
    theirs = published.model.state_dict()
    for name, value in stage.model.state_dict().items():
        assert torch.allclose(theirs[name], value, atol=2e-5), name


def test_rows_tell_every_form_by_both_clocks():
    stages = small_stages(dropout=0.1, stochastic=True)
    assert stages["encoder_bf16"].encoder_dtype is torch.bfloat16
    assert stages["bf16"].precision.name == "bf16"
    rows = stage2_comparison.compare(stages, torch.rand(4, 3, 8, 8) * 2 - 1, torch.arange(4), rounds=3)
    told = [(row["form"], row["against"], row["clock"]) for row in rows]
    assert told == [(*pair, clock) for pair in stage2_comparison.PAIRS for clock in ("cpu", "wall")]
    assert all(row["lowest"] <= row["times_faster"] <= row["highest"] for row in rows)
    assert json.loads(json.dumps(rows)) == rows
