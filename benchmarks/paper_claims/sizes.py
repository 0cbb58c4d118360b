"""How large the runs are: one table."""

from __future__ import annotations

from dataclasses import dataclass

STAGE1 = "configs/fashion-mnist/stage1/fashion-mnist-16-rqvae.yaml"
STAGE2 = "configs/fashion-mnist/stage2/fashion-mnist-16-rqtransformer.yaml"


@dataclass(frozen=True)
class Size:
    """What all runs of one table have in common.

    Attributes:
        name: of the size.
        stage1, stage2: the YAML files that the runs change a few values of.
        resolution: of the images, in training and in the scores.
        stage1_changes, stage2_changes: values that differ from the files in every run.
        coarse, fine: channel multipliers of the encoder for the 4x4 and for the 8x8 code grid.
        images1, images2: training images of a run (repeats counted) of stage 1 and stage 2.
        batch_size: of a step.
        num_codes: K.
        scored: images behind a FID, an rFID, a precision or a recall.
        test_images: images of the validation split behind errors and likelihoods.
        seeds: of the runs.
    """

    name: str
    stage1: str
    stage2: str
    resolution: int
    stage1_changes: tuple[str, ...]
    stage2_changes: tuple[str, ...]
    coarse: str
    fine: str
    images1: int
    images2: int
    batch_size: int
    num_codes: int
    scored: int
    test_images: int
    seeds: tuple[int, ...] = (0, 1, 2)


SIZES = {
    # the encoder sees the first images1 of a seeded order of the 60,000 training images
    "cpu": Size("cpu", STAGE1, STAGE2, 16, (), (), "[1,1,2]", "[1,2]", 9_600, 9_600, 32, 64, 2_000, 1_000),
    "gpu": Size(
        "gpu",
        STAGE1,
        STAGE2,
        32,
        ("dataset.resolution=32", "arch.ddconfig.resolution=32", "arch.ddconfig.ch=64"),
        ("dataset.resolution=32", "arch.embed_dim=256", "arch.body.n_layer=8", "arch.head.n_layer=4"),
        "[1,1,2,2]",
        "[1,1,2]",
        600_000,
        1_200_000,
        128,
        256,
        10_000,
        10_000,
    ),
}
