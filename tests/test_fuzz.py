"""Whatever happened to a file, it is read as something valid or refused with ValueError: never another exception,
death or hang."""

import gzip
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import fuzz
import nibabel
import numpy as np
import pytest
import torch
from dicoms import dicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantoms import phantom, write_raw
from safetensors.torch import save

from kaggle_utils import image as files
from kaggle_utils.dicom import read as reader
from kaggle_utils.model import FORMAT, UNet, load_weights
from kaggle_utils.pictures import header
from kaggle_utils.pictures.header import MAX_BYTES, MAX_PIXELS, is_dicom, read_picture_header

EDITS = st.lists(
    st.tuples(
        st.sampled_from(fuzz.KINDS),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(fuzz.EDGES) | st.integers(0, 1 << 32),
    ),
    min_size=1,
    max_size=6,
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
# What pure Python or Rust reads can't kill the process that tests; OpenCV's and the DICOM decoders could.
IN_PROCESS = ("dicom implicit", "dicom explicit", "dicom big endian", "dicom bare", "weights")


@pytest.mark.parametrize("name", IN_PROCESS)
def test_damaged_file_is_read_or_refused(tmp_path, name):
    @FEW
    @given(edits=EDITS)
    def holds(edits):
        assert fuzz.check(name, fuzz.edit(fuzz.whole_files()[name], edits), tmp_path) in ("read", "refused")

    holds()


@FEW
@given(
    data=st.binary(max_size=300)
    | st.builds(
        lambda magic, rest: magic + rest,
        st.sampled_from(
            [
                b"\x89PNG\r\n\x1a\n",
                b"\xff\xd8\xff",
                b"II*\0\x08\0\0\0",
                b"MM\0*\0\0\0\x08",
                b"II+\0",
                b"BM",
                b"GIF89a",
                b"\x08\0\x05\0CS",
                b"RIFF\x40\0\0\0WEBPVP8X",
                b"\0\0\0\x0cjP  \r\n\x87\n",
                b"\xffO\xffQ",
                b"\x1c\2\0\0n+2\0\r\n\x1a\n\2\0",
            ]
        ),
        st.binary(max_size=200),
    )
)
def test_any_bytes_declare_a_size_or_are_refused(data):
    is_dicom(data)
    try:
        found = read_picture_header(data)
    except ValueError:
        return
    assert all(
        isinstance(number, int) for number in (found.rows, found.columns, found.pictures, found.page, found.orientation)
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on address space and alarms")
def test_decoders_survive_damaged_files():
    names = [name for name in fuzz.whole_files() if name not in IN_PROCESS and "JPEG" not in name and "RLE" not in name]
    counts, failures = fuzz.run(names, 0, seconds=900, most=20 * len(names))
    assert not failures
    assert sum(counts.values()) == 20 * len(names)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on address space and alarms")
def test_decoders_of_dicom_survive_damaged_files():
    names = [name for name in fuzz.whole_files() if "JPEG" in name or "RLE" in name]
    counts, failures = fuzz.run(names, 0, seconds=900, most=2 * len(names))
    assert not failures and sum(counts.values()) == 2 * len(names)


def test_whole_files_are_read(tmp_path, monkeypatch):
    """Else the tests above would only ever see refusals."""
    monkeypatch.setattr(reader, "_decode_apart", lambda data, notes: reader._decode(reader._parse(data)))
    for name, data in fuzz.whole_files().items():
        assert fuzz.check(name, data, tmp_path) == "read", name


def test_sealed_png_is_the_same_png():
    assert fuzz.seal_png(fuzz.whole_files()["png8"]) == fuzz.whole_files()["png8"]


# --- the fuzzer itself -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "reading, verdict", [("os.abort()", "died, status -6"), ("raise KeyError('x')", "KeyError: \"'x'\"")]
)
def test_fuzzer_reports_the_case_that_broke_the_rule(monkeypatch, tmp_path, reading, verdict):
    child = f"""
import os, sys
sys.argv[0] = {str(fuzz.__file__)!r}
sys.path.insert(0, {str(Path(fuzz.__file__).parent)!r})
import fuzz
def check(name, data, folder):
    if seed() == 2:
        {reading}
    return "read"
def seed():
    return seeds.pop(0)
seeds = list(range(int(sys.argv[sys.argv.index("--first") + 1]), 100))
fuzz.check, fuzz.damaged, fuzz.whole_files = check, lambda name, seed: b"", lambda: dict.fromkeys(["png8", "bmp"], b"")
fuzz.main()
"""
    (tmp_path / "child.py").write_text(child)
    monkeypatch.setattr(fuzz, "__file__", str(tmp_path / "child.py"))
    counts, failures = fuzz.run(["png8", "bmp"], 0, seconds=900, most=4)
    assert failures == [("png8", 2, verdict)]
    assert counts == {("png8", "read"): 1, ("bmp", "read"): 2, ("png8", "FAILED"): 1}


# --- bombs -----------------------------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def bomb(kind: str, side: int = 65_000) -> bytes:
    film = phantom(64, 64).image
    if kind == "png":
        return png_of(side, side)
    if kind == "dicom":
        return dicom(film, Rows=side, Columns=side)
    data = bytearray(
        b""
        if kind == "nii"
        else cv2.imencode(f".{kind}", np.dstack([film] * 3) if kind == "gif" else film)[1].tobytes()
    )
    if kind == "jpg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif kind == "bmp":
        data[18:26] = struct.pack("<ii", side, -side)
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "jp2":
        at = data.index(b"\xff\x4f\xff\x51")
        data[at + 8 : at + 16] = struct.pack(">II", side, side)
    elif kind == "webp":
        data = bytearray(
            b"RIFF"
            + struct.pack("<I", len(data) + 10)
            + b"WEBPVP8X"
            + struct.pack("<II", 10, 0)
            + 2 * (side - 1).to_bytes(3, "little")
            + data[12:]
        )
    elif kind == "nii":
        data = bytearray(nibabel.Nifti1Image(film, np.eye(4)).to_bytes())
        data[40:46] = struct.pack("<3h", 2, side // 2, side // 2)
    elif kind == "tif":
        first = struct.unpack_from("<I", data, 4)[0] + 2
        for n in range(struct.unpack_from("<H", data, first - 2)[0]):
            if struct.unpack_from("<H", data, first + 12 * n)[0] in (256, 257):
                struct.pack_into("<HII", data, first + 12 * n + 2, 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif", "tif", "webp", "jp2", "nii", "dicom"])
def test_bomb_is_refused_by_what_it_declares_before_anything_decodes_it(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(cv2, "imdecode", None)
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(bomb(kind))
    side = 32500 if kind == "nii" else 65000  # NIfTI's numbers have a sign
    with pytest.raises(
        ValueError, match=f"{path}: .*it declares {side} x {side} pixels, more than {MAX_PIXELS / 1e6:.0f} million"
    ):
        files.read_image(path)


@pytest.mark.parametrize(
    "content, said",
    [
        (bytes(20_000_000), "not an image of a film"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20_000_000), "not an image of a film"),
        (gzip.compress(bytes(1000)), "not an image"),
    ],
    ids=["zeros", "a PNG's first bytes", "gzip again"],
)
def test_gzip_bomb_is_refused_without_being_unpacked(tmp_path, content, said, monkeypatch):
    path = tmp_path / "film.png.gz"
    path.write_bytes(gzip.compress(content, 1))
    monkeypatch.setattr(header, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match=f"{path}: {said}"):
        files.read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif", ".tiff", ".webp"])
def test_declared_size_is_rows_then_columns(tmp_path, suffix):
    film = phantom(30, 20).image
    path = write_raw(tmp_path / f"film{suffix}", np.dstack([film] * 3) if suffix == ".gif" else film)
    found = read_picture_header(path.read_bytes())
    assert (found.rows, found.columns) == (30, 20)


def test_opencv_has_the_same_limit():
    assert int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]) == MAX_PIXELS


def test_png_chunk_of_gigabytes_is_refused_before_room_is_made_for_it(tmp_path, monkeypatch):
    whole = png_of(16, 16)
    at = whole.index(b"IDAT") - 4
    (tmp_path / "film.png").write_bytes(whole[:at] + struct.pack(">I", 0xF0000000) + whole[at + 4 :])
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ValueError, match="truncated"):
        files.read_image(tmp_path / "film.png")


def test_file_of_gigabytes_is_refused_unread(tmp_path):
    with (tmp_path / "film.bmp").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no disk
    with pytest.raises(ValueError, match="too large"):
        files.read_image(tmp_path / "film.bmp")


def test_device_or_pipe_is_no_file():
    with pytest.raises(ValueError, match="/dev/zero: not a file"):
        files.read_image("/dev/zero")


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"architecture": {"base_channels": 10**6}},
        {"architecture": {"depth": 10**9}},
        {"architecture": {"depth": -1}},
        {"architecture": {"patch": 10**9}},
        {"architecture": {"prior": 1}},
        {"architecture": {"base_channels": "2"}},
        {"architecture": [2]},
        {"architecture": None},
        {},
        [],
        3,
    ],
    ids=str,
)
def test_header_that_names_an_impossible_network_is_refused(tmp_path, header):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(UNet(base_channels=2, depth=1).state_dict(), {FORMAT: json.dumps(header)}))
    with pytest.raises(ValueError, match=str(path)) as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_deeply_nested_header_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"x": torch.zeros(1)}, {FORMAT: "[" * 100_000}))
    with pytest.raises(ValueError, match=str(path)):
        load_weights(path)
