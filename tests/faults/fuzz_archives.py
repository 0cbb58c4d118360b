"""Readers that the fuzz goes through: archives, and the arrays in them."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tests.faults.fuzz_reader import Reader


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
