"""The readers of files from elsewhere, as the fuzz uses them: sound files, how they are read, what is a refusal."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.fuzz_archives import Arrays, Indexes, Tars
from tests.faults.fuzz_reader import Reader

FIRST = re.compile(rb"IHDR|PLTE|IDAT|tRNS|gAMA|tEXt|zTXt|iCCP|eXIf|IEND")


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
