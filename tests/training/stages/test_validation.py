"""Metrics of a split: exact, in one collective, also where a rank has no image."""

from __future__ import annotations

import math

import pytest
import torch

from data import DatasetConfig, EvalLoader, build_dataset
from rqtransformer import RQTransformer, RQTransformerConfig
from rqvae import RQVAE, RQVAEConfig
from runtime.precision import Precision
from training.stages.code_counts import CodeCounts
from training.stages.validation import validate_stage1, validate_stage2

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)


def tokenizer(bottleneck: str = "rq") -> RQVAE:
    torch.manual_seed(0)
    halves = {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    return RQVAE(
        RQVAEConfig.from_mapping(
            {
                "bottleneck_type": bottleneck,
                "embed_dim": 8,
                "n_embed": 16,
                "latent_shape": [4, 4, 8],
                "code_shape": [4, 4, 2],
                "ddconfig": halves,
            }
        )
    )


def transformer() -> RQTransformer:
    torch.manual_seed(1)
    return RQTransformer(
        RQTransformerConfig.from_mapping(
            {
                "block_size": [4, 4, 2],
                "embed_dim": 16,
                "input_embed_dim": 8,
                "vocab_size": 16,
                "input_emb_vqvae": True,
                "head_emb_vqvae": True,
                "shared_cls_emb": True,
                "body": {"n_layer": 1, "block": {"n_head": 2}},
                "head": {"n_layer": 1, "block": {"n_head": 2}},
            }
        )
    )


def batches(batch_size: int, rank: int = 0, world_size: int = 1, limit: int | None = 7):
    dataset = build_dataset(DatasetConfig(type="digits", resolution=8), "val")
    return EvalLoader(dataset, batch_size, rank, world_size, limit=limit)


def both_stages(rank: int = 0, world_size: int = 1, batch_size: int = 3, limit: int = 7) -> dict[str, object]:
    shard = batches(batch_size, rank, world_size, limit)
    stage1 = validate_stage1(tokenizer(), shard, CPU, FP32)
    counts = CodeCounts([16, 16], CPU)
    stage2 = validate_stage2(transformer(), tokenizer(), shard, CPU, FP32, counts)
    return {**stage1, **{f"stage2_{name}": value for name, value in stage2.items()}}


def assert_same(ours: dict[str, object], theirs: dict[str, object]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=1e-5), name


def test_batch_sizes_do_not_matter():
    assert_same(both_stages(batch_size=1), both_stages(batch_size=7))


def test_means_are_those_of_the_images():
    model, images = tokenizer().eval(), torch.cat([batch["image"] for batch in batches(7)])
    metrics = validate_stage1(model, batches(2), CPU, FP32)
    with torch.no_grad():
        recon = model(images).recon
        first = model.decode_partial_code(model.get_codes(images), 0, "add")
    assert metrics["recon_mse"] == pytest.approx((recon - images).square().mean().item(), rel=1e-5)
    assert metrics["recon_l1"] == pytest.approx((recon - images).abs().mean().item(), rel=1e-5)
    assert metrics["recon_mse_by_depth"][0] == pytest.approx((first - images).square().mean().item(), rel=1e-5)
    assert metrics["recon_mse_by_depth"][1] == metrics["recon_mse"]


def test_baselines_of_stage2():
    metrics = both_stages()
    assert metrics["stage2_uniform_nll"] == pytest.approx(math.log(16))
    assert len(metrics["stage2_nll_by_depth"]) == len(metrics["stage2_unigram_nll_by_depth"]) == 2
    assert metrics["stage2_nll"] == pytest.approx(sum(metrics["stage2_nll_by_depth"]) / 2)


def test_no_bottleneck_has_errors_but_no_usage():
    metrics = validate_stage1(tokenizer("none"), batches(3), CPU, FP32)
    assert metrics["recon_mse"] == metrics["recon_mse_by_depth"][0] > 0
    assert not [name for name in metrics if "perplexity" in name]


def validate_one_rank(rank: int) -> list[dict[str, object]]:
    return [both_stages(rank, 2, limit=limit) for limit in (1, 7)]


def test_two_ranks_equal_one_even_if_one_has_no_image(on_ranks):
    alone = [both_stages(limit=limit) for limit in (1, 7)]
    for results in on_ranks(validate_one_rank):
        for ours, theirs in zip(results, alone, strict=True):
            assert_same(ours, theirs)
