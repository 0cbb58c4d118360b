"""Which settings of `VectorQuantize` go together."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require


def check_vector_settings(
    *,
    straight_through: bool,
    rotation_trick: bool,
    directional_reparam: bool,
    use_cosine_sim: bool,
    learnable_codebook: bool,
    ema_update: bool,
    vq_bridge: Callable[[Tensor], Tensor] | None,
    threshold_ema_dead_code: float,
    sync_update_v: float,
    affine_param: bool,
) -> None:
    """`UsageError` for a combination that means nothing."""
    estimators = {
        "straight_through": straight_through,
        "rotation_trick": rotation_trick,
        "directional_reparam": directional_reparam,
    }
    chosen = [name for name, on in estimators.items() if on]
    require(len(chosen) < 2, f"at most one of {', '.join(estimators)}; got {' and '.join(chosen)}")
    require(
        not (directional_reparam and threshold_ema_dead_code == 0),
        "directional_reparam needs threshold_ema_dead_code > 0: nothing else revives unused codes",
    )
    require(not (use_cosine_sim and learnable_codebook), "use_cosine_sim does not go with learnable_codebook")
    require(not (straight_through and learnable_codebook), "straight_through does not go with learnable_codebook")
    require(not (ema_update and learnable_codebook), "learnable_codebook needs ema_update=False")
    require(vq_bridge is None or learnable_codebook, "vq_bridge needs learnable_codebook=True")
    require(0 <= sync_update_v <= 1, f"sync_update_v must be between 0 and 1, got {sync_update_v}")
    require(sync_update_v == 0 or learnable_codebook, "sync_update_v needs learnable_codebook=True")
    require(not (affine_param and use_cosine_sim), "affine_param does not go with use_cosine_sim")
