"""What `quantizer_comparison` compares: every bottleneck at the same number of bits, in the same small autoencoder.

Every image becomes 4 x 4 positions of 4 codes out of 256, or as many codes on grids of several sizes: 512 bits.
"""

from dataclasses import dataclass, field
from typing import Any

from rqvae import RQVAEConfig

GRID, DEPTH, NUM_CODES, EMBED_DIM = 4, 4, 256, 32
RESOLUTION = 16
SCALES = [1, 1, 1, 2, 3, 4, 4, 4]  # grids with 64 positions together
LEVELS = [4, 4, 4, 4]  # 256 codes of four scalars
DEAD_CODES = {"restart": {"below": 0.1, "relative": True, "grace": 10}}  # unused: a tenth of uniform use
LFQ = {"entropy_weight": 0.02, "inv_temperature": 10.0}  # the default weights drown an error of this size


@dataclass(frozen=True)
class Method:
    """bottleneck, shared, restart, code_shape: as in a YAML file.

    weight: of the quantizer's loss beside the reconstruction's; 1 where the quantizer weights its own terms.
    """

    kind: str
    bottleneck: dict[str, Any] = field(default_factory=dict)
    weight: float = 0.25
    shared: bool = False
    restart: bool = False
    code_shape: tuple[int, int, int] = (GRID, GRID, DEPTH)


METHODS: dict[str, Method] = {
    "none": Method("none"),
    "vq": Method("vq", DEAD_CODES),
    "vq_kmeans": Method("vq", {**DEAD_CODES, "kmeans_init": True}),
    "vq_rotation": Method("vq", {**DEAD_CODES, "kmeans_init": True, "estimator": "rotation"}),
    "vq_cosine": Method("vq", {**DEAD_CODES, "kmeans_init": True, "distance": "cosine"}),
    "vq_learned": Method(
        "vq", {"codebook": "learned", "kmeans_init": True, "losses": {"commitment": 0.25, "codebook": 1.0}}, weight=1.0
    ),
    "rq": Method("rq", restart=True),
    "rq_shared": Method("rq", restart=True, shared=True),
    "residual_vq": Method("residual_vq", {**DEAD_CODES, "kmeans_init": True}),
    "residual_vq_beam4": Method("residual_vq", {**DEAD_CODES, "kmeans_init": True, "beam_width": 4}),
    "residual_vq_groups2": Method("residual_vq", {**DEAD_CODES, "kmeans_init": True, "groups": 2}),
    "implicit_residual_vq": Method("implicit_residual_vq", {"kmeans_init": True}),
    "hierarchical": Method(
        "hierarchical",
        {"scales": SCALES, "kmeans_init": True},
        weight=1.0,
        shared=True,
        restart=True,
        code_shape=(1, 1, 64),
    ),
    "fsq": Method("fsq", {"levels": LEVELS}, weight=1.0),
    "fsp": Method("fsp", {"levels": LEVELS}, weight=1.0),
    "residual_fsq": Method("residual_fsq", {"levels": LEVELS}, weight=1.0),
    "lfq": Method("lfq", LFQ, weight=1.0),
    "lfq_spherical": Method("lfq", {**LFQ, "spherical": True}, weight=1.0),
    "residual_lfq": Method("residual_lfq", LFQ, weight=1.0),
    "latent": Method("latent", {"levels": LEVELS}, weight=1.0),
    "simvq": Method("simvq", weight=1.0),
    "residual_simvq": Method("residual_simvq", weight=1.0),
    "random_projection": Method("random_projection", {"codebook_dim": 8}),
    "binary": Method("binary", {"kl_weight": 0.0001}, weight=1.0),
}


def config_of(method: Method) -> RQVAEConfig:
    """The RQ-VAE of a method; all differ in the bottleneck alone."""
    return RQVAEConfig.from_mapping(
        {
            "bottleneck_type": method.kind,
            "embed_dim": EMBED_DIM,
            "n_embed": NUM_CODES,
            "latent_shape": [GRID, GRID, EMBED_DIM],
            "code_shape": list(method.code_shape),
            "shared_codebook": method.shared,
            "restart_unused_codes": method.restart,
            "codebook_update": "deferred",
            "bottleneck": method.bottleneck,
            "ddconfig": {
                "z_channels": 32,
                "resolution": RESOLUTION,
                "ch": 32,
                "ch_mult": [1, 1, 1],
                "num_res_blocks": 1,
            },
        }
    )
