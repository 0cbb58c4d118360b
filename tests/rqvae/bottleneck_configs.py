"""Settings in which every bottleneck of the table is tried, but the multi-scale one, which takes other code shapes."""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "rq": [{"n_embed": [16, 12], "codebook_update": "deferred", "restart_unused_codes": True}],
    "vq": [
        {"n_embed": 16, "restart_unused_codes": True},
        {
            "n_embed": 16,
            "shared_codebook": True,
            "decay": 0.9,
            "bottleneck": {
                "codebook_dim": 3,
                "distance": "cosine",
                "kmeans_init": True,
                "estimator": "rotation",
                "restart": {"below": 0.1, "relative": True, "grace": 2},
                "losses": {"commitment": 0.5, "diversity": 0.1},
            },
        },
        {
            "n_embed": 16,
            "bottleneck": {
                "codebook": "learned",
                "estimator": "gumbel",
                "sample_temp": 0.5,
                "sync_nu": 0.5,
                "affine": {"groups": 2},
                "losses": {"orthogonal": 1.0, "orthogonal_max": 8},
            },
        },
        {"n_embed": 16, "bottleneck": {"codebook": "learned", "inplace_lr": 0.1, "restart": {"unused_for": 1}}},
    ],
    "fsq": [{"bottleneck": {"levels": [8, 5, 5, 5]}}],
    "fsp": [{"bottleneck": {"levels": [8, 5, 5, 5]}}, {"bottleneck": {"levels": [6, 6], "quantize_rate": 1.0}}],
    "lfq": [{"n_embed": 1024, "bottleneck": {"inv_temperature": 10.0}}],
    "latent": [{"bottleneck": {"levels": [5, 5, 4]}}, {"bottleneck": {"levels": [5, 5, 4], "inplace_lr": 0.1}}],
    "simvq": [{"n_embed": 20, "bottleneck": {"commitment_weight": 0.5, "codebook_dim": 3, "estimator": "rotation"}}],
    "random_projection": [{"n_embed": 20, "bottleneck": {"codebook_dim": 4}}],
    "binary": [{"n_embed": 16, "bottleneck": {"kl_weight": 0.5}}],
    "residual_vq": [
        {"n_embed": [16, 12], "bottleneck": {"beam_width": 2, "loss_weights": [1.0, 0.5]}},
        {
            "n_embed": 16,
            "shared_codebook": True,
            "restart_unused_codes": True,
            "bottleneck": {"codebook_dim": 4, "kmeans_init": True, "quantize_dropout": True, "estimator": "rotation"},
        },
        {"n_embed": 16, "bottleneck": {"groups": 2, "codebook": "learned", "affine": {"kind": "running"}}},
    ],
    "implicit_residual_vq": [
        {"n_embed": [16, 12], "bottleneck": {"hidden": 6, "depth": 1, "kmeans_init": True}},
        {"n_embed": 16, "bottleneck": {"hidden": 6, "codebook_dim": 4, "beam_width": 2}},
    ],
    "residual_fsq": [
        {"bottleneck": {"levels": [8, 5, 5]}},
        {"bottleneck": {"levels": [8, 5, 5], "quantize_dropout": True, "dropout_multiple": 2}},
    ],
    "residual_lfq": [{"n_embed": 16, "bottleneck": {"inv_temperature": 10.0, "groups": 2}}],
    "residual_simvq": [
        {"n_embed": 16, "bottleneck": {"commitment_weight": 0.5, "groups": 2}},
        {"n_embed": 16, "bottleneck": {"quantize_dropout": True, "dropout_cutoff": 1}},
    ],
}
