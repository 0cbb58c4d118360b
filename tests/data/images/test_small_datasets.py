"""Digits, Fashion-MNIST, CIFAR-10 and the synthetic shapes."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from data import DatasetConfig, build_dataset
from data.captions.shape_grammar import BACKGROUNDS, CAPTION_LENGTH, shape_caption, shape_tokenizer, shape_vocabulary
from data.images.binary_formats import CIFAR_CLASSES, FASHION_CLASSES, read_idx
from data.images.memory_dataset import augment, resized


def _pair(**settings):
    config = DatasetConfig(**settings)
    return build_dataset(config, "train"), build_dataset(config, "val")


def test_digits_are_split_by_class():
    train, val = _pair(type="digits")
    assert (len(train), len(val), train.num_classes, train.resolution) == (1438, 359, 10, (32, 32))
    assert train.class_names == tuple("0123456789")
    counts = torch.bincount(val.labels_N) / (torch.bincount(val.labels_N) + torch.bincount(train.labels_N))
    assert ((counts - 0.2).abs() < 0.01).all()
    images = {image.numpy().tobytes() for image in torch.cat([train.image_NCHW, val.image_NCHW])}
    assert len(images) == 1797


def test_digits_split_depends_on_split_seed_only():
    train, _ = _pair(type="digits", resolution=8)
    again = build_dataset(DatasetConfig(type="digits", resolution=8), "train", seed=99)
    other, _ = _pair(type="digits", resolution=8, split_seed=1)
    assert torch.equal(train.image_NCHW, again.image_NCHW)
    assert not torch.equal(train.image_NCHW, other.image_NCHW)


def test_digits_at_their_own_size_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, val = _pair(type="digits", resolution=8)
    ours = sorted(((item[0].double() * 16 / 255).numpy().round().tobytes(), int(label))
                  for part in (train, val) for item, label in zip(part.image_NCHW, part.labels_N))  # fmt: skip
    raw = load_digits()
    assert ours == sorted(
        (image.astype(np.float64).tobytes(), int(label)) for image, label in zip(raw.images, raw.target)
    )
    item = train[3]
    assert item["image"].shape == (3, 8, 8)
    assert torch.equal(item["image"][0], item["image"][2])
    assert item["label"].dtype == item["index"].dtype == torch.int64 and item["index"] == 3
    back = (item["image"][0] * 127.5 + 127.5).round().to(torch.uint8)
    assert torch.equal(back, train.image_NCHW[3, 0])  # uint8 survives the way to [-1, 1] and back


def test_resizing_keeps_constant_images_and_averages_when_it_shrinks():
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert (resized(flat, (32, 32)) == 77).all() and (resized(flat, (4, 4)) == 77).all()
    board = (torch.arange(64).reshape(8, 8) // 8 + torch.arange(8)) % 2 * 255
    assert (resized(board[None, None].to(torch.uint8), (2, 2)).int() - 127).abs().max() <= 2
    assert resized(flat, (8, 8)) is flat


def test_augmentation_moves_and_mirrors_by_whole_pixels():
    image = torch.randint(1, 255, (1, 3, 9, 9), dtype=torch.uint8).expand(400, -1, -1, -1)
    moved = augment(image, 0, np.arange(400), hflip=True, random_shift=2)
    inner = {}
    for mirrored in (False, True):
        source = image[0].flip(-1) if mirrored else image[0]
        for down in range(-2, 3):
            for right in range(-2, 3):
                window = source[:, 2 + down : 7 + down, 2 + right : 7 + right]
                inner[window.numpy().tobytes()] = (mirrored, down, right)
    seen = [inner[out[:, 2:7, 2:7].numpy().tobytes()] for out in moved]
    assert len(set(seen)) == 50  # every combination appears, and nothing else
    assert 150 < sum(mirrored for mirrored, _, _ in seen) < 250


def test_shifts_uncover_black_in_grey_images_and_the_edge_in_colour():
    grey, colour = (torch.full((50, channels, 4, 4), 200, dtype=torch.uint8) for channels in (1, 3))
    keys = np.arange(50)
    assert set(augment(grey, 0, keys, False, 1).unique().tolist()) == {0, 200}
    assert set(augment(colour, 0, keys, False, 1).unique().tolist()) == {200}


def _write_idx(path, array, zipped):
    content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def _write_fashion(folder, zipped, sizes=(20, 10)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for prefix, size in zip(("train", "t10k"), sizes):
        written[prefix] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8), np.arange(size, dtype=np.uint8) % 10
        _write_idx(folder / f"{prefix}-images-idx3-ubyte", written[prefix][0], zipped)
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte", written[prefix][1], zipped)
    return written


@pytest.mark.parametrize(("place", "zipped"), [("", True), ("raw", False), ("FashionMNIST/raw", False)])
def test_fashion_mnist(tmp_path, place, zipped):
    written = _write_fashion(tmp_path / place, zipped)
    train, val = _pair(type="fashion-mnist", root=str(tmp_path))
    assert (len(train), len(val), train.resolution, train.class_names) == (20, 10, (32, 32), FASHION_CLASSES)
    np.testing.assert_array_equal(val.image_NCHW[:, 0, 2:30, 2:30].numpy(), written["t10k"][0])
    assert val.image_NCHW[:, :, :2].max() == 0
    np.testing.assert_array_equal(train.labels_N.numpy(), written["train"][1])


def test_root_comes_from_config_environment_or_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RQ_DATA_ROOT", raising=False)
    with pytest.raises(FileNotFoundError, match="no images found in data/fashion-mnist; expected train-images"):
        build_dataset(DatasetConfig(type="fashion-mnist"), "train")
    _write_fashion(tmp_path / "data" / "fashion-mnist", True)
    assert len(build_dataset(DatasetConfig(type="fashion-mnist"), "train")) == 20
    _write_fashion(tmp_path / "env" / "fashion-mnist", True, sizes=(7, 3))
    monkeypatch.setenv("RQ_DATA_ROOT", str(tmp_path / "env"))
    assert len(build_dataset(DatasetConfig(type="fashion-mnist"), "train")) == 7
    _write_fashion(tmp_path / "given", True, sizes=(5, 3))
    assert len(build_dataset(DatasetConfig(type="fashion_mnist", root=str(tmp_path / "given")), "train")) == 5
    with pytest.raises(FileNotFoundError, match="RQ_DATA_ROOT") as error:
        build_dataset(DatasetConfig(type="fashion-mnist", root=str(tmp_path / "nowhere")), "train")
    assert "\n" not in str(error.value) and "nowhere" in str(error.value)


def test_an_idx_file_gives_no_more_bytes_than_its_header_says(tmp_path):
    header = bytes((0, 0, 8, 3)) + np.array([2, 3, 4], dtype=">u4").tobytes()
    (tmp_path / "a.gz").write_bytes(gzip.compress(header + bytes(10**7)))
    with pytest.raises(ValueError, match="is damaged: more bytes of data, 24 expected"):
        read_idx(tmp_path / "a.gz", num_axes=3)
    huge = bytes((0, 0, 8, 3)) + np.full(3, 2**32 - 1, dtype=">u4").tobytes()
    (tmp_path / "b.gz").write_bytes(gzip.compress(huge))
    with pytest.raises(ValueError, match="says that it holds .* bytes; at most"):
        read_idx(tmp_path / "b.gz", num_axes=3)


def test_damaged_idx_files(tmp_path):
    _write_fashion(tmp_path, False)
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole, config = images.read_bytes(), DatasetConfig(type="fashion-mnist", root=str(tmp_path))
    images.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="is damaged: 15677 bytes of data, 15680 expected"):
        build_dataset(config, "train")
    images.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="not an IDX file of unsigned bytes with 3 axes"):
        build_dataset(config, "train")
    images.unlink()
    images.with_name(images.name + ".gz").write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        build_dataset(config, "train")
    images.write_bytes(whole)
    _write_idx(labels, np.zeros(19, dtype=np.uint8), False)
    with pytest.raises(ValueError, match="20 images and 19 labels do not fit"):
        build_dataset(config, "train")


def _write_cifar(folder, records=3):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        content = rng.integers(0, 256, (records, 3073), dtype=np.uint8)
        content[:, 0] %= 10
        (folder / name).write_bytes(content.tobytes())


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, place):
    _write_cifar(tmp_path / "c" / place)
    train, val = _pair(type="cifar10", root=str(tmp_path / "c"))
    assert (len(train), len(val), train.class_names) == (15, 3, CIFAR_CLASSES)
    record = np.frombuffer((tmp_path / "c" / place / "test_batch.bin").read_bytes(), np.uint8)[:3073]
    assert val.labels_N[0] == record[0]
    np.testing.assert_array_equal(val.image_NCHW[0].flatten().numpy(), record[1:])


def test_cifar10_problems(tmp_path):
    _write_cifar(tmp_path / "c")
    config = DatasetConfig(type="cifar10", root=str(tmp_path / "c"))
    (tmp_path / "c" / "data_batch_2.bin").write_bytes(b"123")
    with pytest.raises(ValueError, match="data_batch_2.bin is damaged: 3 bytes"):
        build_dataset(config, "train")
    (tmp_path / "c" / "data_batch_2.bin").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_2.bin"):
        build_dataset(config, "train")
    (tmp_path / "e").mkdir()
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-bin/"):
        build_dataset(DatasetConfig(type="cifar10", root=str(tmp_path / "e")), "train")
    pickles = tmp_path / "p" / "cifar-10-batches-py"
    pickles.mkdir(parents=True)
    (pickles / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(ValueError, match="checksums are wrong"):  # and so it was never unpickled
        build_dataset(DatasetConfig(type="cifar10", root=str(tmp_path / "p")), "train")


def test_cifar10_python_version_goes_through_torchvision(tmp_path, monkeypatch):
    class Raw:
        def __init__(self, root, train):
            self.data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
            self.targets = [4, 9 if train else 8]

    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Raw)
    train, val = _pair(type="cifar10", root=str(tmp_path))
    assert (train.labels_N.tolist(), val.labels_N.tolist()) == ([4, 9], [4, 8])
    assert train.image_NCHW[0, :, 0, 1].tolist() == [3, 4, 5]


def test_synthetic_shapes_match_their_labels_and_captions():
    train, val = _pair(type="synthetic", resolution=32, num_samples=200)
    assert (len(train), len(val), train.num_classes) == (200, 20, 8)
    vocabulary = shape_vocabulary()
    assert vocabulary[0] == "<pad>" and len(set(vocabulary)) == len(vocabulary) == 27
    captions = train.captions(range(200))
    assert len(set(captions)) > 100 and set(captions) != set(val.captions(range(20)))
    for index, caption in enumerate(captions):
        item = train[index]
        assert [vocabulary[token] for token in item["cond"]] == caption.split()
        assert train.class_names[item["label"]] == caption.split()[3]
    counts = torch.bincount(train.labels_N, minlength=8)
    assert counts.min() > 10
    assert not torch.equal(train[0]["image"], val[0]["image"])


def test_synthetic_colours_are_the_captions():
    train, _ = _pair(type="synthetic", resolution=32, num_samples=300)
    captions = train.captions(range(300))
    red = [i for i, text in enumerate(captions) if " red " in text and "navy" not in text]
    blue = [i for i, text in enumerate(captions) if " blue " in text and "navy" not in text]
    for chosen, most, least in ((red, 0, 2), (blue, 2, 0)):
        assert chosen
        for index in chosen:
            image = train[index]["image"].flatten(1)
            brightest = image[:, (image.amax(0) - image.amin(0)).argmax()]  # the most colourful pixel
            assert brightest[most] > brightest[least]


def test_synthetic_backgrounds_surround_the_shapes():
    train, _ = _pair(type="synthetic", resolution=32, num_samples=100)
    for index, caption in enumerate(train.captions(range(100))):
        if " small " in caption:
            pixels = train[index]["image"].flatten(1) * 127.5 + 127.5
            expected = torch.tensor(BACKGROUNDS[caption.split()[6]], dtype=torch.float32)
            assert (pixels.median(1).values - expected).abs().max() <= 13


def test_synthetic_images_keep_their_content_at_any_size():
    small, large = (
        build_dataset(DatasetConfig(type="synthetic", resolution=side, num_samples=40), "train") for side in (32, 128)
    )
    for index in range(40):
        assert small[index]["label"] == large[index]["label"]
        shrunk = torch.nn.functional.avg_pool2d(large[index]["image"], 4)
        assert (shrunk - small[index]["image"]).abs().mean() < 0.01


def test_caption_tokens_are_padded_and_checked():
    text = shape_caption("small", "red", "ring", "navy")
    assert text == "a small red ring on a navy background"
    tokens = shape_tokenizer(10).encode(text)
    assert tokens[8:] == [0, 0] and tokens[0] == tokens[5]
    longer = build_dataset(DatasetConfig(type="synthetic", context_length=11, num_samples=4), "train")
    assert longer[0]["cond"].shape == (11,)
    with pytest.raises(ValueError, match="caption word 'purple' is unknown"):
        shape_tokenizer().encode("a purple ring")
    with pytest.raises(ValueError, match=f"has {CAPTION_LENGTH + 1} words, more than context_length {CAPTION_LENGTH}"):
        shape_tokenizer().encode(f"{text} a")
    with pytest.raises(ValueError, match="context_length 5 is too short"):
        build_dataset(DatasetConfig(type="synthetic", context_length=5), "train")
