"""Array files row by row: what numpy writes is read, what we write numpy reads, damage is one line."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest

from runtime.errors import UserError
from runtime.npz import Header, npy_header, read_arrays, read_headers, stream_array, write_npz

ROWS = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
READERS = (
    read_headers,
    lambda path: read_arrays(path, ["rows"]),
    lambda path: list(stream_array(path, "rows", 1)),
)


@pytest.fixture
def archive(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        rows=ROWS,
        columns=np.asfortranarray(ROWS[:, :, 0]),
        one=np.array(7),
        text=np.array("né"),
        none=np.empty((0, 4)),
    )
    return tmp_path / "a.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, save):
    save(tmp_path / "a.npz", rows=ROWS)
    blocks = list(stream_array(tmp_path / "a.npz", "rows", 4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), ROWS)


def test_whole_arrays_of_any_layout(archive):
    headers = read_headers(archive)
    assert headers["rows"] == Header((10, 3, 2), np.dtype(np.float32))
    arrays = read_arrays(archive, ["columns", "one", "text", "none", "absent"])
    np.testing.assert_array_equal(arrays["columns"], ROWS[:, :, 0])
    assert (int(arrays["one"]), str(arrays["text"]), arrays["none"].shape) == (7, "né", (0, 4))
    assert "absent" not in arrays


def test_numpy_reads_what_is_written_in_blocks(tmp_path):
    path = tmp_path / "b.npz"
    for _ in range(2):
        write_npz(path, {"rows": (Header(ROWS.shape, ROWS.dtype), np.array_split(ROWS, 3)), "one": np.array(7)})
    first = path.read_bytes()
    loaded = np.load(path, allow_pickle=False)
    np.testing.assert_array_equal(loaded["rows"], ROWS)
    assert int(loaded["one"]) == 7
    write_npz(path, {"rows": ROWS, "one": np.array(7)})
    assert path.read_bytes() == first  # blocks or not, today or tomorrow
    assert [file.name for file in tmp_path.iterdir()] == ["b.npz"]


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.npz"
    write_npz(path, {"rows": ROWS})

    def blocks():
        yield ROWS[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_npz(path, {"rows": (Header(ROWS.shape, ROWS.dtype), blocks())})
    np.testing.assert_array_equal(np.load(path)["rows"], ROWS)
    assert [file.name for file in tmp_path.iterdir()] == ["b.npz"]
    with pytest.raises(AssertionError, match="announced"):
        write_npz(path, {"rows": (Header(ROWS.shape, ROWS.dtype), [ROWS[:2]])})
    for folder in (tmp_path / "nowhere", path):
        with pytest.raises(UserError, match="cannot write"):
            write_npz(folder / "b.npz", {"rows": ROWS})


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", rows=np.array([Trap()], dtype=object))
    for read in READERS:
        with pytest.raises(UserError, match="Python objects") as error:
            read(tmp_path / "a.npz")
        assert "a.npz" in one_line(error)


@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_and_foreign_files(archive, kept):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    for read in READERS:
        with pytest.raises(UserError, match=r"a\.npz is not a readable \.npz file") as error:
            read(archive)
        one_line(error)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    write_npz(path, {"rows": ROWS})
    content = bytearray(path.read_bytes())
    content[content.index(ROWS.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="CRC"):
        list(stream_array(path, "rows", 3))
    with pytest.raises(UserError, match="CRC"):
        read_arrays(path, ["rows"])


@pytest.mark.parametrize("rows", [3, 10])
def test_the_checksum_of_a_compressed_member_is_compared(tmp_path, rows):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, rows=ROWS)
    with zipfile.ZipFile(path) as archive:
        checksum = struct.pack("<I", archive.infolist()[0].CRC)
    path.write_bytes(path.read_bytes().replace(checksum, b"\x01\x02\x03\x04"))
    with pytest.raises(UserError, match="CRC"):
        list(stream_array(path, "rows", rows))


def test_a_header_cannot_promise_more_than_there_is(tmp_path):
    """A hundred bytes that claim to be a terabyte are refused before any memory is asked for."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 17)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("rows.npy", content.getvalue())
    with pytest.raises(UserError, match="its header promises 1099511627776"):
        read_headers(tmp_path / "a.npz")
    (tmp_path / "a.npy").write_bytes(content.getvalue())
    with pytest.raises(UserError, match="its header promises 1099511627776"):
        npy_header(tmp_path / "a.npy")
    write_npz(tmp_path / "b.npz", {"rows": ROWS})
    with pytest.raises(UserError, match="more than 100"):
        read_arrays(tmp_path / "b.npz", ["rows"], max_bytes=100)


def test_missing_files_arrays_and_column_order(archive, tmp_path):
    with pytest.raises(UserError, match="no file .*nowhere"):
        read_headers(tmp_path / "nowhere.npz")
    with pytest.raises(UserError, match="no array 'absent'"):
        list(stream_array(archive, "absent", 1))
    with pytest.raises(UserError, match="column by column"):
        list(stream_array(archive, "columns", 1))


def test_npy_files(tmp_path):
    np.save(tmp_path / "a.npy", ROWS)
    assert npy_header(tmp_path / "a.npy").shape == ROWS.shape
    np.testing.assert_array_equal(np.concatenate(list(stream_array(tmp_path / "a.npy", "", 3))), ROWS)


def member(header: bytes | dict, content: bytes = b"") -> bytes:
    """An array as a member of an archive has it."""
    file = io.BytesIO()
    if isinstance(header, dict):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1,)} | header)
        return file.getvalue() + content
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


@pytest.mark.parametrize(
    "content",
    [
        member({"descr": "|V0", "shape": (1 << 40,)}),
        member({"descr": [("a", "<f4"), ("b", "|S3")]}, bytes(7)),
        member({"descr": "<M8[ns]"}, bytes(8)),
        member({"shape": (-4, 1)}),
        member({"shape": (0, 1 << 70)}),
        member({"shape": (True,)}, bytes(4)),
        member(b"(" * 9000),
        member(b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 200 + b")" * 200 + b"}"),
        member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1" + b"0" * 9000 + b",)}"),
        member(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), 'x"),
        member(b"\xff" * 100),
        member(b"{}" + b" " * 60000),
        b"\x93NUMPY\x03\x00",
        b"\x93NUMPY",
        b"",
    ],
)
def test_odd_headers_are_one_line(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("rows.npy", content)
    for read in READERS:
        with pytest.raises(UserError, match=r"a\.npz is not a readable \.npz file") as error:
            read(tmp_path / "a.npz")
        assert len(one_line(error)) < 300
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy is not a readable \.npy file") as error:
        npy_header(tmp_path / "a.npy")
    one_line(error)


def test_a_small_archive_does_not_fill_the_memory(tmp_path, monkeypatch):
    """What truly unpacks to a thousand times its size, which `max_bytes` alone would allow."""
    monkeypatch.setattr("runtime.npz._SOME_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("rows.npy", "w") as file:
            file.write(member({"shape": (1 << 6, 1 << 18)}))
            file.write(bytes(1 << 26))
    assert (tmp_path / "a.npz").stat().st_size < 1 << 17
    assert read_headers(tmp_path / "a.npz")["rows"].nbytes == 1 << 26
    with pytest.raises(UserError, match="rows has 67108864 bytes, more than"):
        read_arrays(tmp_path / "a.npz", ["rows"])
    with pytest.raises(UserError, match="64 of its rows have"):
        list(stream_array(tmp_path / "a.npz", "rows", 1000))
    assert next(stream_array(tmp_path / "a.npz", "rows", 1)).shape == (1, 1 << 18)


def test_archives_that_numpy_does_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("rows.npy", member({}, bytes(4)))
    with pytest.raises(UserError, match="packed as numpy packs nothing"):
        read_headers(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(1001):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(UserError, match="1001 members, more than 1000"):
        read_headers(tmp_path / "a.npz")
