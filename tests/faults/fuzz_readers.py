"""The readers of files from elsewhere, as the fuzz uses them: sound files, how they are read, what is a refusal."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FIRST = re.compile(rb"IHDR|PLTE|IDAT|tRNS|gAMA|tEXt|zTXt|iCCP|eXIf|IEND")


class Reader:
    """One kind of file.

    Attributes:
        errors: what a refusal raises; `one_line`: its text is one line.
        words: what means something in the format.
    """

    errors: tuple[type[BaseException], ...] = (ValueError, OSError)
    one_line = True
    words: Sequence[bytes] = ()

    def seeds(self, folder: Path) -> list[bytes]:
        """Sound files."""
        raise AssertionError(f"{type(self).__name__} must implement seeds")

    def read(self, content: bytes, folder: Path) -> None:
        """Reads a file as the product does, all of it."""
        raise AssertionError(f"{type(self).__name__} must implement read")

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        """Half of the files get right checksums again, without which nothing behind them is looked at."""
        return content


class Images(Reader):
    """Decoded and cropped as training does."""

    one_line = False  # Pillow's own texts; whoever reports an image makes them one line

    def __init__(self) -> None:
        from data.images.decoding import UNREADABLE

        self.errors = UNREADABLE

    def seeds(self, folder: Path) -> list[bytes]:
        from PIL import Image

        from tests.faults.evil_files import tiff_of

        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
        colour, grey = Image.fromarray(noise[..., :3]), Image.fromarray(noise[..., 0])
        deep = Image.fromarray(noise[..., 0].astype(np.uint16) << 7)
        files: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (colour, "JPEG", {}),
            (colour, "JPEG", {"progressive": True, "subsampling": 2}),
            (colour, "JPEG", {"exif": _exif()}),
            (colour.convert("CMYK"), "JPEG", {}),
            (colour, "PNG", {}),
            (Image.fromarray(noise), "PNG", {}),
            (colour.convert("P"), "PNG", {"transparency": 0}),
            (deep, "PNG", {}),
            (grey.convert("1"), "PNG", {}),
            (colour, "WEBP", {}),
            (Image.fromarray(noise), "WEBP", {"lossless": True, "exact": True}),
            (colour, "BMP", {}),
            (grey, "BMP", {}),
            (colour, "TIFF", {}),
            (deep, "TIFF", {"compression": "tiff_lzw"}),
            (colour, "TIFF", {"compression": "tiff_adobe_deflate"}),
            (colour, "TIFF", {"compression": "jpeg"}),
            (grey.convert("1"), "TIFF", {"compression": "group4"}),
            (grey.convert("F").point(lambda value: value / 256), "TIFF", {}),
            (colour, "PPM", {}),
            (grey, "PPM", {}),
        ]
        made = []
        for image, form, options in files:
            file = io.BytesIO()
            image.save(file, form, **options)
            made.append(file.getvalue())
        tiles = [(322, 4, 1, 32), (323, 4, 1, 32), (324, 4, 1, 8), (325, 4, 1, 1024)]
        made.append(tiff_of(32, 32, tiles, content=bytes(1024)))
        header = struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024)
        info = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, 8, 1, 0, 0, 0, 256, 0)
        rows = b"\x08\x01\x00\x00\x00\x08abcdefgh\x00\x00" + b"\x08\x02\x00\x00" * 2 + b"\x00\x01"
        made.append(b"BM" + header + info + bytes(range(256)) * 4 + rows)
        made.append(b"P3\n4 2\n255\n" + b"1 2 3 " * 8)
        return made

    def read(self, content: bytes, folder: Path) -> None:
        from data.images.decoding import read_pixels
        from data.images.pixel_rule import RGB
        from data.images.transforms import Pipeline

        pipeline = Pipeline("imagenet", 16)
        pixels = read_pixels(content, RGB)
        pipeline.check(pixels.image, RGB.max_pixels)
        assert pipeline(pixels.image, None).shape == (3, 16, 16)

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        if not content.startswith(b"\x89PNG") or draw.random() < 0.3:
            return content
        changed = bytearray(content)
        for found in FIRST.finditer(content):
            start = found.start()
            size = int.from_bytes(content[start - 4 : start], "big")
            end = start + 4 + size
            if end + 4 <= len(changed):
                changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[start:end]))
        return bytes(changed)


def _exif() -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


class Tars(Reader):
    """Indexed as a shard; every member is then read by the index."""

    words = (
        b"ustar\0",
        b"././@LongLink",
        b"x",
        b"L",
        b"K",
        b"g",
        b"30 size=-1\n",
        b"21 path=../../../a\n",
        b"\0" * 512,
    )

    def seeds(self, folder: Path) -> list[bytes]:
        from tests.faults.evil_files import png_of

        members = {
            "a.png": png_of(4),
            "a.cls": b"3",
            "a.txt": b"one\ntwo",
            "b.png": png_of(4),
            "b.json": b'{"label": 1}',
        }
        made = []
        for kind, prefix in (
            (tarfile.USTAR_FORMAT, ""),
            (tarfile.GNU_FORMAT, "d" * 120),
            (tarfile.PAX_FORMAT, "é" * 60),
        ):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
                for name, content in members.items():
                    info = tarfile.TarInfo(prefix + name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
            made.append(file.getvalue())
        return made

    def read(self, content: bytes, folder: Path) -> None:
        from data.shards.shard_index import FIELDS, index_from_bytes, scan_shard
        from data.shards.tar_members import json_label_and_captions
        from data.text_files import decoded, lines_of

        index = scan_shard(io.BytesIO(content), "x.tar")
        for starts_F, sizes_F in zip(index.start_NF, index.size_NF):
            for name, start, size in zip(FIELDS, starts_F.tolist(), sizes_F.tolist()):
                member = content[start : start + max(size, 0)]
                assert len(member) == max(size, 0), "a member beyond the end"
                lines_of(decoded(member))
                if name == "json":
                    json_label_and_captions(member)
        assert index_from_bytes(index.to_bytes()) is not None, "an index that is not read again"

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.2:
            return content
        changed = bytearray(content)
        for start in range(0, len(changed) - 511, 512):
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start + 148 : start + 156] = b" " * 8
                changed[start + 148 : start + 156] = b"%06o\0 " % sum(changed[start : start + 512])
        return bytes(changed)


class Indexes(Reader):
    """Of shards: made again where it cannot be, so nothing is ever raised."""

    errors = ()

    def seeds(self, folder: Path) -> list[bytes]:
        from data.shards.shard_index import scan_shard

        return [scan_shard(io.BytesIO(content), "x.tar").to_bytes() for content in Tars().seeds(folder)]

    def read(self, content: bytes, folder: Path) -> None:
        from data.shards.shard_index import index_from_bytes
        from data.shards.tar_members import MAX_CLASSES

        index = index_from_bytes(content)
        if index is not None and len(index):
            assert index.start_NF.min() >= 0 and (index.start_NF + index.size_NF.clip(0)).max() <= index.shard_size
            assert -1 <= index.label_N.min() and index.label_N.max() < MAX_CLASSES

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        """With a digest that fits, where the archive can still be read."""
        from data.shards.shard_index import _digest

        if draw.random() < 0.2:
            return content
        content = _with_right_checksums(content)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files if name != "digest"}
        except Exception:  # of numpy and zipfile: it stays as it is
            return content
        file = io.BytesIO()
        np.savez(file, digest=np.array(_digest(arrays)), **arrays)
        return file.getvalue()


def _with_right_checksums(content: bytes) -> bytes:
    """A zip archive without compression whose members have the checksums of what they hold."""
    changed = bytearray(content)
    start = content.find(b"PK\x01\x02")
    while start >= 0 and start + 46 <= len(content):
        size, place = struct.unpack_from("<I", content, start + 20)[0], struct.unpack_from("<I", content, start + 42)[0]
        if place + 30 <= len(content):
            inside = place + 30 + sum(struct.unpack_from("<HH", content, place + 26))
            checksum = struct.pack("<I", zlib.crc32(content[inside : inside + size]))
            changed[start + 16 : start + 20] = changed[place + 14 : place + 18] = checksum
        start = content.find(b"PK\x01\x02", start + 4)
    return bytes(changed)


class Arrays(Reader):
    """`.npz` files as images to score, labels and references; `.npy` files are their members."""

    words = (b"'descr': '|O'", b"'<f8'", b"'<U99'", b"True", b"(1, 2, 3)", b"-1", b"(" * 50)

    def seeds(self, folder: Path) -> list[bytes]:
        made = []
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            eye = np.eye(3)
            save(
                file,
                arr_0=np.zeros((2, 4, 4, 3), dtype=np.uint8),
                labels=np.arange(2),
                mu=eye[0],
                sigma=eye,
                features=np.ones((2, 3), dtype=np.float32),
                num_images=np.array(2),
            )
            made.append(file.getvalue())
        return made

    def read(self, content: bytes, folder: Path) -> None:
        from evaluation.references.reference_files import read_reference
        from runtime.npz import npy_header, read_arrays, read_headers, stream_array

        path = folder / "a.npz"
        path.write_bytes(content)
        headers = read_headers(path)
        read_arrays(path, headers)
        for name in headers:
            for block in stream_array(path, name, 1) if headers[name].shape else ():
                assert len(block) == 1
        read_reference(path)
        with zipfile.ZipFile(path) as archive:
            (folder / "a.npy").write_bytes(archive.read("sigma.npy"))
        npy_header(folder / "a.npy")

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        return content if draw.random() < 0.2 else _with_right_checksums(content)


class Safetensors(Reader):
    """Weights, and whether they fit a model."""

    words = (b'"F32"', b'"I64"', b'"BOOL"', b'"shape":[', b'"data_offsets":[0,', b"null", b"{", b"}", b'"__metadata__"')

    def seeds(self, folder: Path) -> list[bytes]:
        import torch
        from safetensors.torch import save

        state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
        return [save(state), save(state, metadata={"step": "1"}), save({**state, "bias": torch.zeros(2).half()})]

    def read(self, content: bytes, folder: Path) -> None:
        import torch

        from rqstack.strict_loading import check_fit
        from rqstack.weight_files import read_safetensors

        path = folder / "a.safetensors"
        path.write_bytes(content)
        tensors = read_safetensors(path)
        module = torch.nn.Linear(3, 2)
        check_fit(module.state_dict(), tensors, path)
        module.load_state_dict(tensors)

    def repaired(self, content: bytes, draw: random.Random) -> bytes:
        """With a length of the header that fits, mostly."""
        end = content.find(b"}}", 8)
        if draw.random() < 0.3 or end < 0:
            return content
        return struct.pack("<Q", end - 6) + content[8:]


@dataclass
class _Schema:
    name: str = "x"
    steps: int = 1
    rate: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    more: dict[str, Any] = field(default_factory=dict)


class Yaml(Reader):
    """A config as scripts read one, and one beside weights."""

    words = (
        *(
            b"&a ",
            b"*a",
            b"${name}",
            b"${more.a}",
            b"${oc.env:HOME}",
            b"!!python/name:os.system",
            b"<<: *a",
            b": ",
            b"- ",
        ),
        *(b"? ", b"[", b"{", b"|", b"defaults: [b]\n", b"null", b"\xef\xbb\xbf", b"---\n", b"%YAML 9.9\n", b"\t", b"~"),
        *(b"1:30", b"="),
    )

    def seeds(self, folder: Path) -> list[bytes]:
        (folder / "b.yaml").write_text("rate: 0.5\n")
        return [
            b"name: run\nsteps: 3\nsizes: [1, 2, 3]\nmore: {a: 1, b: [x, 'y']}\n",
            b"defaults: [b, _self_]\nname: ${more.a}\nmore:\n  a: &a text\n  b: *a\n",
            b"# a comment\nrate: 1e-4\nname: |\n  two\n  lines\nmore:\n  x: {y: {z: '${steps}'}}\n",
        ]

    def read(self, content: bytes, folder: Path) -> None:
        from rqstack.archive import _read_config
        from runtime.config import config_to_yaml, load_config

        path = folder / "a.yaml"
        path.write_bytes(content)
        _read_config(path)
        config_to_yaml(load_config(_Schema, path))


class Tokenizers(Reader):
    """A `tokenizer.json` with and without settings beside it, which then reads a text."""

    words = (
        *(
            b"null",
            b"true",
            b'"dropout":0.5',
            b'"type":"Replace"',
            b'"Regex":"(a+)+$"',
            b'"String":""',
            b'"type":"Split"',
        ),
        *(b"{}", b"[]", b'"id":4294967295', b'"unk_token":"x"', b'"byte_fallback":true', b'"content":""'),
    )

    def seeds(self, folder: Path) -> list[bytes]:
        from data.tokenizers.bpe_training import train_bpe

        text = train_bpe(["a cat on a mat", "a red car"] * 5, 300, 8).files()
        plain = json.loads(text["tokenizer.json"])
        padded = plain | {
            "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]"},
        }  # fmt: skip
        words = {"type": "WordLevel", "vocab": {"a": 1, "cat": 2, "[UNK]": 0}, "unk_token": "[UNK]"}
        small = padded | {"model": words, "pre_tokenizer": {"type": "Whitespace"}, "decoder": None}
        return [
            json.dumps(content).encode() for content in (plain | {"truncation": padded["truncation"]}, padded, small)
        ]

    def read(self, content: bytes, folder: Path) -> None:
        from data.tokenizers.tokenizer_loading import load_tokenizer

        path = folder / "tokenizer.json"
        path.write_bytes(content)
        tokenizer = load_tokenizer(path)
        for text in ("a cat on a mat", "", "aaaa" * 50 + "!", "日本 \x00 \u200d"):
            ids = tokenizer.encode(text)
            assert len(ids) == tokenizer.context_length, "of another length"
            assert all(0 <= number < tokenizer.vocab_size for number in ids), "an id outside of the vocabulary"
            tokenizer.decode(ids)
        tokenizer.length("a cat")


class Metrics(Reader):
    """The log of a run: read by pages, and cut by a resume."""

    words = (
        b"\n",
        b'{"step": 5}',
        b'{"step": "x"}',
        b'{"step": null}',
        b"null",
        b"[1]",
        b"NaN",
        b"[" * 200,
        b'"',
        b"1e999",
    )

    def seeds(self, folder: Path) -> list[bytes]:
        lines = [{"step": step, "epoch": 0.5, "train/loss": 1.5, "depth": [1.0, 2.0]} for step in range(1, 8)]
        return ["".join(json.dumps(line) + "\n" for line in lines).encode()]

    def read(self, content: bytes, folder: Path) -> None:
        from runtime.records.metrics_file import read_metrics, truncate_metrics

        path = folder / "metrics.jsonl"
        path.write_bytes(content)
        read_metrics(path)
        truncate_metrics(path, 4)
        assert all(line["step"] <= 4 for line in read_metrics(path))


READERS: dict[str, type[Reader]] = {
    "metrics": Metrics,
    "safetensors": Safetensors,
    "index": Indexes,
    "npz": Arrays,
    "tar": Tars,
    "images": Images,
    "tokenizer": Tokenizers,
    "yaml": Yaml,
}
