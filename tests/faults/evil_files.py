"""Files that try to run code, to write elsewhere, or to crash whoever reads them. Each maker writes one to a path.

What a payload would do is create the file `trap`; a test fails when it is there afterwards.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

Maker = Callable[[Path, Path], None]
"""(file to write, trap) -> None"""


class Runs:
    """Pickles to a call."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def _touch(trap: Path) -> Runs:
    return Runs(os.system, f"touch {trap}")


def _evaluate(trap: Path) -> Runs:
    return Runs(eval, f"open({str(trap)!r}, 'w')")


def zip_with_system_call(file: Path, trap: Path) -> None:
    torch.save(_touch(trap), file)


def zip_with_eval_among_weights(file: Path, trap: Path) -> None:
    """A checkpoint like any other, but for one value."""
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.zeros(2)}, "epoch": _evaluate(trap)}, file)


def legacy_format(file: Path, trap: Path) -> None:
    torch.save({"state_dict": _touch(trap)}, file, _use_new_zipfile_serialization=False)


def bare_pickle(file: Path, trap: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": _evaluate(trap)}, protocol=2))


def old_opcodes(file: Path, trap: Path) -> None:
    """Protocol 0 by hand: GLOBAL os system, REDUCE."""
    file.write_bytes(b"cos\nsystem\n(Vtouch " + str(trap).encode() + b"\ntR.")


def zip_with_two_pickles(file: Path, trap: Path) -> None:
    """A sound pickle with the malicious one beside it, and members that lead out of the archive."""
    torch.save({"state_dict": {}}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps(_touch(trap)))
        archive.writestr(f"../../{trap.name}", "out")
        archive.writestr(str(trap), "out")


def torchscript_archive(file: Path, trap: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(_touch(trap)))
        archive.writestr("model/data.pkl", pickle.dumps(_touch(trap)))
        archive.writestr("model/code/__torch__.py", "import os")
        archive.writestr("model/version", "3")


def numpy_reconstruct(file: Path, trap: Path) -> None:
    """An array of objects: what `np.load(allow_pickle=True)` would run."""
    with open(file, "wb") as stream:
        np.save(stream, np.array([_touch(trap)], dtype=object), allow_pickle=True)


def not_even_a_pickle(file: Path, trap: Path) -> None:
    file.write_bytes(b"\x80\x02" + b"]" * 4096)


PICKLES: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        zip_with_system_call,
        zip_with_eval_among_weights,
        legacy_format,
        bare_pickle,
        old_opcodes,
        zip_with_two_pickles,
        torchscript_archive,
        numpy_reconstruct,
        not_even_a_pickle,
    )
}


def _safetensors(header: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def header_longer_than_the_file(file: Path, trap: Path) -> None:
    file.write_bytes(_safetensors(b"{}", length=2**63))


def header_of_a_gigabyte(file: Path, trap: Path) -> None:
    file.write_bytes(_safetensors(b"{" + b" " * 4096, length=2**30))


def tensors_beyond_the_end(file: Path, trap: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 1]}
    file.write_bytes(_safetensors(json.dumps({"weight": entry}).encode()))


def overlapping_tensors(file: Path, trap: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    file.write_bytes(_safetensors(json.dumps({"a": entry, "b": entry}).encode()) + bytes(4))


def deeply_nested_header(file: Path, trap: Path) -> None:
    file.write_bytes(_safetensors(b"[" * 100_000))


def cut_short(file: Path, trap: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pickle_as_safetensors(file: Path, trap: Path) -> None:
    torch.save(_touch(trap), file)


SAFETENSORS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        header_longer_than_the_file,
        header_of_a_gigabyte,
        tensors_beyond_the_end,
        overlapping_tensors,
        deeply_nested_header,
        cut_short,
        pickle_as_safetensors,
    )
}

YAML_TEXTS = {
    "apply": "seed: !!python/object/apply:os.system ['touch TRAP']\n",
    "new": "seed: !!python/object/new:type {args: [x, !!python/tuple [], {}]}\n",
    "name": "seed: !!python/name:os.system\n",
    "module": "seed: !!python/module:antigravity\n",
    "target": "seed: {_target_: os.system, _args_: ['touch TRAP']}\n",
    "target at the top": "_target_: os.system\ncommand: touch TRAP\n",
    "target in a section": "optimizer: {_target_: builtins.eval, source: \"open('TRAP', 'w')\"}\n",
    "resolver": "seed: ${python:__import__('os').system('touch TRAP')}\n",
    "nested": "seed: " + "[" * 5000 + "\n",
}


def png_bomb(file: Path, trap: Path, side: int = 60_000) -> None:
    """A PNG of some kilobytes that says it has 3.6 gigapixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 22), 9))
        + chunk(b"IEND", b"")
    )


def png_with_a_text_bomb(file: Path, trap: Path) -> None:
    """A small image whose compressed comment unpacks to 256 MiB."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    content = b"comment\0\0" + zlib.compress(bytes(1 << 28), 9)
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    whole = stream.getvalue()
    file.write_bytes(whole[:33] + chunk + whole[33:])


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _tar(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(file, "w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def tar_that_climbs(file: Path, trap: Path) -> None:
    _tar(file, (_member(f"../../../../../../../..{trap}.jpg"), b"out"))


def tar_with_absolute_name(file: Path, trap: Path) -> None:
    _tar(file, (_member(f"{trap}.jpg"), b"out"))


def tar_with_link(file: Path, trap: Path) -> None:
    _tar(file, (_member("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), (_member("a.jpg"), b"through the link"))


def tar_with_hard_link(file: Path, trap: Path) -> None:
    _tar(file, (_member("a.jpg", tarfile.LNKTYPE, "/etc/passwd"), b""))


def tar_with_device(file: Path, trap: Path) -> None:
    _tar(file, (_member("a.jpg", tarfile.CHRTYPE), b""))


TARS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (tar_that_climbs, tar_with_absolute_name, tar_with_link, tar_with_hard_link, tar_with_device)
}


def npz_of_objects(file: Path, trap: Path) -> None:
    """Statistics, or images, that are pickles."""
    evil = np.array([[_touch(trap)]], dtype=object)
    np.savez(file, mu=evil, sigma=evil, arr_0=evil, images=evil)


def npz_that_unpacks_to_gigabytes(file: Path, trap: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("mu", "sigma", "arr_0"):
            archive.writestr(f"{name}.npy", header.getvalue() + bytes(1 << 20))


ARRAYS: dict[str, Maker] = {maker.__name__: maker for maker in (npz_of_objects, npz_that_unpacks_to_gigabytes)}


def tiff_of(
    width: int, height: int, tags: list[tuple[int, int, int, int]], compression: int = 1, content: bytes = b""
) -> bytes:
    """A grey TIFF whose tags are those given, after its content, which starts at byte 8.

    tags: number, type (4: 32 bits), how many, and the value or where the values lie; they say where the pixels are.
    """
    fixed = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    entries = sorted([*fixed, (277, 3, 1, 1), *tags])
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(content)) + content + directory + bytes(4)


def png_of(side: int) -> bytes:
    """A sound image."""
    file = io.BytesIO()
    Image.fromarray(np.arange(3 * side * side, dtype=np.uint8).reshape(side, side, 3)).save(file, "PNG")
    return file.getvalue()
