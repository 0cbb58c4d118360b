"""Folders, array files and tar shards give the same images; what cannot be scored is one line or a counted skip."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from runtime.distributed import DistEnv
from runtime.errors import UserError
from scoring.comparison import Comparison
from scoring.image_source import open_source
from scoring.settings import ComparisonConfig, FeatureSettings
from tests.evaluation.image_files import as_png, images_of, random_images, write_array, write_folder, write_shard

IMAGES = random_images(13)


def two_shards(folder, labels=True):
    for shard, rows in enumerate((range(0, 6), range(6, 13))):
        members = {}
        for index in rows:
            if labels:
                members[f"{index:04d}.cls"] = str(index % 3).encode() + b"\n"
            members[f"{index:04d}.png"] = as_png(IMAGES[index])
            members[f"{index:04d}.json"] = b"{}"
        write_shard(folder / f"part-{shard:03d}.tar", members)
    return str(folder / "part-{000..001}.tar")


def sources(tmp_path):
    write_folder(tmp_path / "png", IMAGES, "{:04d}/x.PNG")
    write_array(tmp_path / "a.npz", IMAGES)
    np.save(tmp_path / "a.npy", IMAGES.permute(0, 2, 3, 1).numpy())
    (tmp_path / "tars").mkdir()
    shards = two_shards(tmp_path / "tars")
    return [
        str(tmp_path / "png"),
        str(tmp_path / "a.npz"),
        str(tmp_path / "a.npy"),
        shards,
        str(tmp_path / "tars"),
        str(tmp_path / "tars" / "part-*.tar"),
    ]


def test_every_form_gives_the_same_images(tmp_path):
    for spec in sources(tmp_path):
        source = open_source(spec)
        assert len(source) == 13
        for _ in range(2):  # and gives them again
            assert torch.equal(images_of(source), IMAGES), spec
        for batch in source.batches(5):
            assert batch["image"].dtype == torch.uint8
            assert len(batch["image"]) == len(batch["index"]) <= 5


@pytest.mark.parametrize("world_size", [2, 3, 14])
def test_ranks_share_the_images_out(tmp_path, world_size):
    for spec in sources(tmp_path):
        source = open_source(spec)
        seen = {}
        for rank in range(world_size):
            for batch in source.batches(2, rank, world_size):
                assert len(batch["image"]) <= 2
                assert (batch["index"] % world_size == rank).all()
                seen |= dict(zip(batch["index"].tolist(), batch["image"]))
        assert torch.equal(torch.stack([seen[index] for index in range(13)]), IMAGES)


def labels_of(source):
    return torch.cat([batch["label"] for batch in source.batches(4)]).tolist()


def test_labels(tmp_path):
    expected = [index % 3 for index in range(13)]
    assert labels_of(open_source(two_shards(tmp_path))) == expected
    for key in ("arr_1", "labels"):
        array = write_array(tmp_path / "a.npz", IMAGES, **{key: np.array(expected)})
        assert labels_of(open_source(str(array))) == expected
    for index in range(13):
        write_folder(tmp_path / "named", IMAGES[index : index + 1], f"{index:06d}_class{expected[index]}.png")
    assert labels_of(open_source(str(tmp_path / "named"))) == expected
    write_folder(tmp_path / "named", IMAGES[:1], "z.png")
    assert "label" not in next(open_source(str(tmp_path / "named")).batches(4))


def test_a_run_of_samples_is_its_images_without_the_preview(tmp_path):
    write_folder(tmp_path / "run" / "images", IMAGES)
    (tmp_path / "run" / "samples.png").write_bytes(as_png(random_images(1, 40)[0]))
    assert torch.equal(images_of(open_source(str(tmp_path / "run"))), IMAGES)
    write_array(tmp_path / "run" / "samples.npz", IMAGES[:5])
    assert torch.equal(images_of(open_source(str(tmp_path / "run"))), IMAGES[:5])


def test_modes_become_rgb(tmp_path):
    grey_HW = IMAGES[0, 0].numpy()
    for name, mode in (("grey", "L"), ("palette", "P"), ("alpha", "RGBA"), ("bit", "1")):
        Image.fromarray(grey_HW).convert(mode).save(tmp_path / f"{name}.png")
    image_NCHW = images_of(open_source(str(tmp_path)))
    assert image_NCHW.shape == (4, 3, 12, 12)
    np.testing.assert_array_equal(image_NCHW[2].numpy(), np.stack([grey_HW] * 3))
    for array in (IMAGES[:, 0].numpy(), IMAGES[:, :1].permute(0, 2, 3, 1).numpy()):
        np.savez(tmp_path / "a.npz", arr_0=array)
        assert torch.equal(images_of(open_source(str(tmp_path / "a.npz"))), IMAGES[:, :1].expand(-1, 3, -1, -1))


def refused(spec, match, **settings):
    with pytest.raises(UserError, match=match) as error:
        images_of(open_source(str(spec), **settings))
    assert "\n" not in str(error.value)


def test_mixed_sizes(tmp_path):
    write_folder(tmp_path, IMAGES)
    write_folder(tmp_path, random_images(1, 9), "0003b.png")
    refused(tmp_path, r"0003b\.png is 9x9, .*0000\.png is 12x12: the images of a source must have one size")


def test_nothing_there(tmp_path):
    refused(tmp_path, "no images in .*; images end in .jpg")
    refused(tmp_path / "nowhere", "no images at .*nowhere.*expected a folder of images, an .npz")
    refused(tmp_path / "x.npz", "no file .*x.npz")
    refused(tmp_path / "x.tar", "no shard .*x.tar")
    refused(tmp_path / "x-{0..2}.tar", "no shard .*x-0.tar")
    refused(tmp_path / "x-*.tar", r"no shard .*x-\*.tar")
    refused(tmp_path / "x-{2..0}.tar", r"no shard .*x-2.tar")
    refused(tmp_path / "x-{0..99999999999}.tar", "stands for more than 1000000 shards")
    refused(tmp_path / "x-{0..9.tar", "is no brace pattern")
    refused("dataset:digits", "must be dataset:NAME:SPLIT")
    write_shard(tmp_path / "y.tar", {"readme.txt": b"none"})
    refused(tmp_path / "y.tar", "no images in")
    write_folder(tmp_path, IMAGES[:2])
    refused(tmp_path, "holds both images and .tar files")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (IMAGES.permute(0, 2, 3, 1).numpy() / np.float32(255), "is float32; images must be uint8"),
        (IMAGES.permute(0, 2, 3, 1).numpy().astype(np.int64) * 2, "is int64; images must be uint8"),
        (IMAGES.numpy(), r"shape \(13, 3, 12, 12\); images must be \(N, height, width, 1, 3 or 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no images in it"),
        (np.array(3, np.uint8), r"shape \(\)"),
        (np.zeros((12, 10, 3), np.uint8), "one image with channels or 12 grey ones"),
        (np.zeros((3, 12, 10), np.uint8), "one image with channels or 3 grey ones"),
        (np.zeros((12, 10, 4), np.uint8), "one image with channels or 12 grey ones"),
        (np.zeros((5, 12, 10, 2), np.uint8), r"images must be \(N, height, width, 1, 3 or 4\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, array, match):
    np.savez(tmp_path / "a.npz", arr_0=array)
    refused(tmp_path / "a.npz", match)
    np.savez(tmp_path / "b.npz", pixels=array)
    refused(tmp_path / "b.npz", "holds no images: it has pixels, not arr_0")


def damaged_folder(folder):
    write_folder(folder, IMAGES)
    content = (folder / "0004.png").read_bytes()
    (folder / "0004.png").write_bytes(content[: len(content) // 2])
    (folder / "0007.png").write_bytes(b"no image")
    return folder


def test_unreadable_images_are_an_error_or_left_out_and_counted(tmp_path):
    folder = damaged_folder(tmp_path / "png")
    refused(folder, r"0004\.png cannot be read: ")
    source = open_source(str(folder), skip_unreadable=True)
    assert [name[-8:] for name in source.skipped] == ["0004.png", "0007.png"]
    assert len(source) == 11
    kept = [index for index in range(13) if index not in (4, 7)]
    assert torch.equal(images_of(source), IMAGES[kept])

    members = {
        f"{file.stem}{end}": content
        for file in sorted(folder.iterdir())
        for end, content in ((".png", file.read_bytes()), (".cls", file.stem.encode()))
    }
    shard = write_shard(tmp_path / "a.tar", members)
    refused(shard, r"0004 of .*a\.tar cannot be read")
    source = open_source(str(shard), skip_unreadable=True)
    assert torch.equal(images_of(source), IMAGES[kept])
    assert labels_of(source) == kept
    for file in folder.iterdir():
        file.write_bytes(b"")
    refused(folder, "no readable images", skip_unreadable=True)


@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_truncated_array_files(tmp_path, kept):
    for path in (write_array(tmp_path / "a.npz", IMAGES), tmp_path / "a.npy"):
        if path.suffix == ".npy":
            np.save(path, IMAGES.permute(0, 2, 3, 1).numpy())
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        refused(path, rf"{path.name} is not a readable {path.suffix} file")


def test_truncated_and_damaged_shards(tmp_path):
    shard = write_shard(tmp_path / "a.tar", {f"{index}.png": as_png(IMAGES[index]) for index in range(4)})
    content = shard.read_bytes()
    with tarfile.open(shard) as archive:
        starts = [member.offset for member in archive]
    # in the middle of an image; exactly between two images; inside a header; a damaged header; compressed
    for damaged in (
        content[: starts[2] + 700],
        content[: starts[3]],
        content[: starts[3] + 100],
        content[: starts[2]] + b"x" + content[starts[2] + 1 :],
        zlib.compress(content),
    ):
        shard.write_bytes(damaged)
        refused(shard, r"a\.tar is not a whole uncompressed tar file")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_shards_are_refused_as_in_training(tmp_path, kind):
    (tmp_path / "secret.png").write_bytes(as_png(IMAGES[5]))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = kind, str(tmp_path / "secret.png")
        archive.addfile(info)
    refused(tmp_path / "a.tar", "is refused: its member 'link.png' is not a plain file")


@pytest.mark.parametrize("name", ["../../out.png", "/etc/abs.png", "a/../../b.png"])
def test_names_that_lead_out_of_a_shard_are_refused_as_in_training(tmp_path, name):
    refused(write_shard(tmp_path / "a.tar", {name: as_png(IMAGES[0])}), "a name that leads out of the archive")


def test_shards_with_wrong_members(tmp_path):
    image = as_png(IMAGES[0])
    refused(
        write_shard(tmp_path / "a.tar", {"x.png": image, "x.jpg": image}), "has two image members under the key 'x'"
    )
    refused(write_shard(tmp_path / "b.tar", {"x.png": image, "x.cls": b"cat"}), r"x\.cls is no label .*: b'cat'")
    # the same key in two folders, and an image that belongs to another modality
    shard = write_shard(tmp_path / "c.tar", {"a/x.png": image, "b/x.png": image, "b/x.seg.png": image})
    assert len(open_source(str(shard))) == 2


def bomb(side):
    """A PNG of a few hundred bytes whose header says side x side pixels."""
    content = io.BytesIO()
    Image.new("L", (1, 1)).save(content, "PNG")
    data = bytearray(content.getvalue())
    data[16:24] = struct.pack(">2I", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_decompression_bombs_and_deep_pixels(tmp_path):
    (tmp_path / "a.png").write_bytes(bomb(9_500))
    refused(tmp_path, r"a\.png cannot be read: 9500x9500 pixels are more than")
    (tmp_path / "a.png").write_bytes(bomb(60_000))
    refused(tmp_path, r"a\.png cannot be read: .*decompression bomb")
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    batch = next(open_source(str(tmp_path)).batches(1))
    assert (batch["image"] == 40_000 >> 8).all()
    Image.fromarray(np.full((4, 4), 40_000, np.int32)).save(tmp_path / "a.png", "TIFF")
    refused(tmp_path, "a.png cannot be read: its pixels are integers of 32 bits")


def test_images_that_carry_the_numbers_they_were_drawn_as(tmp_path):
    """As a sampling script writes them: in its folder, or with their classes anywhere."""

    def saved(folder, names):
        folder.mkdir(parents=True)
        for name, image_CHW in zip(names, IMAGES):
            (folder / name).write_bytes(as_png(image_CHW))
        return folder

    plain, classes = [f"{index:06d}.png" for index in range(3)], [f"{index:06d}_class7.png" for index in range(3)]
    run = saved(tmp_path / "run" / "images", plain).parent
    (run / "samples.png").write_bytes(as_png(IMAGES[0]))
    (tmp_path / "archive").mkdir()
    numbered = [run, run / "images", saved(tmp_path / "classes", classes)]
    listed = [
        saved(tmp_path / "plain", plain),
        saved(tmp_path / "gap", [classes[0], classes[2]]),
        saved(tmp_path / "order", ["0_class1.png", "10_class1.png", "2_class1.png"]),
        saved(tmp_path / "others", ["a_class1.png", "b_class1.png"]),
        write_array(tmp_path / "archive" / "samples.npz", IMAGES),
        write_shard(tmp_path / "a.tar", {f"{index:06d}.png": as_png(IMAGES[index]) for index in range(3)}),
    ]
    assert [open_source(str(path)).numbered for path in numbered] == [True] * 3
    assert [open_source(str(path)).numbered for path in listed] == [False] * 6
    archive = tmp_path / "archive"
    (archive / "samples.png").write_bytes(as_png(IMAGES[0]))
    assert open_source(str(archive / "samples.npz")).numbered and open_source(str(archive)).numbered
    (run / "images" / plain[1]).write_bytes(b"no image")
    assert not open_source(str(run), skip_unreadable=True).numbered


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("world_size", [1, 2])
def test_mixed_sizes_come_in_batches_of_one_size_with_their_own_numbers_and_labels(tmp_path, batch_size, world_size):
    sizes = [(8, 6), (6, 8), (8, 6), (5, 5), (6, 8), (8, 6), (8, 6)]
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (index, 0, 0)).save(tmp_path / f"{index}_class{index % 3}.png")
    source = open_source(str(tmp_path), mixed_sizes=True)
    batches = [batch for rank in range(world_size) for batch in source.batches(batch_size, rank, world_size)]
    seen = {}
    for batch in batches:
        assert len(batch["index"]) <= batch_size
        for image_CHW, index, label in zip(batch["image"], batch["index"].tolist(), batch["label"].tolist()):
            assert image_CHW.shape == (3, *sizes[index][::-1]) and image_CHW[0, 0, 0] == index and label == index % 3
            seen[index] = seen.get(index, 0) + 1
    assert seen == dict.fromkeys(range(7), 1)
    refused(tmp_path, "mixed_sizes=true")


def test_endings_of_any_case_are_known(tmp_path):
    write_array(tmp_path / "a.npz", IMAGES).rename(tmp_path / "a.NPZ")
    np.save(tmp_path / "a.npy", IMAGES.permute(0, 2, 3, 1).numpy())
    (tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    write_shard(tmp_path / "a.tar", {f"{index:02d}.PNG": as_png(IMAGES[index]) for index in range(13)})
    (tmp_path / "a.tar").rename(tmp_path / "a.TAR")
    for name in ("a.NPZ", "a.NPY", "a.TAR"):
        assert torch.equal(images_of(open_source(str(tmp_path / name))), IMAGES)


def test_what_is_said_of_a_source_is_said_once_however_often_it_is_read(tmp_path, capsys):
    for name in "ab":
        Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(tmp_path / f"{name}.png")
    source = open_source(str(tmp_path))
    next(abandoned := source.batches(1))
    abandoned.close()
    for rank, world_size in ((0, 1), (1, 2), (0, 1)):
        list(source.batches(2, rank, world_size))
    assert capsys.readouterr().err == f"warning: 2 images have transparency, shown over white: {tmp_path}\n"


def test_classes_are_known_without_a_look_at_the_images(tmp_path):
    names = [f"{index}_class{index * 5}.png" for index in range(3)]
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).write_bytes(b"no image")
    alone = DistEnv(0, 1, 0, torch.device("cpu"), "none")
    config = ComparisonConfig(ref_dataset=str(tmp_path / "images"))
    assert Comparison(config, FeatureSettings(), alone, (8, 8)).num_classes == 11
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((3, 8, 8, 3), dtype=np.uint8), arr_1=np.arange(3))
    assert open_source(str(tmp_path / "x.npz")).labels_N.tolist() == [0, 1, 2]
    assert open_source(str(write_array(tmp_path / "y.npz", IMAGES))).labels_N is None


def test_classes_that_nothing_can_have_are_refused(tmp_path):
    """Numbers beyond int64 were a raw overflow, unsigned ones became negative classes."""
    write_folder(tmp_path / "named", IMAGES[:1], f"000000_class{10**20}.png")
    with pytest.raises(ValueError, match=r"\.png has label 1000+; a label is a whole number from 0 to 999999"):
        open_source(str(tmp_path / "named"))
    for name, labels in (("large", np.array([2**63], np.uint64)), ("negative", np.array([-1]))):
        write_array(tmp_path / f"{name}.npz", IMAGES[:1], arr_1=labels)
        with pytest.raises(ValueError, match=f"has label {labels[0]}; a label is a whole number from 0 to 999999"):
            open_source(str(tmp_path / f"{name}.npz"))
