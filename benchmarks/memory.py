"""How much memory `predict` takes, whatever the files: large films, eight at once, and files made to cost memory.

    python -m benchmarks.memory [--case NAME ...]

Each case is a folder of its own and a process of its own, with all formats, on the CPU. Its peak is the sum over the
process and those that it starts (decoders of DICOM) of what each has in RAM, looked at every 10 ms; pages that they
share count twice. Needs Linux, some minutes and 2 GB of disk. Writes ``results/memory.json``; exit status 1 if a peak
is over the limit.
"""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from benchmarks.common import RESULTS, ROOT, command, machine, make_parser, need, read_json, write_json
from kaggle_utils.image import encode_image
from kaggle_utils.pictures.header import MAX_BYTES
from kaggle_utils.synthetic import AppearanceModel

if TYPE_CHECKING:
    import psutil

sys.path.insert(0, str(ROOT / "tests"))

RESULT = RESULTS / "memory.json"
LIMIT = 2000  # MB
SIDE = 8000  # px: the largest square film that is read
_SEQUENCE, _ITEM, _PRIVATE = b"\x28\0\x10\x30SQ\0\0", b"\xfe\xff\x00\xe0", b"\x29\0\x10\x10OB\0\0"
_UNDEFINED = b"\xff" * 4


def film(side: int = SIDE) -> np.ndarray:
    """A synthetic radiograph, ``uint8 (side, side)``, with lungs of usual size."""
    image = AppearanceModel.load().film(7, 0, size=512, tb=0).image
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)


def deep() -> np.ndarray:
    """The same in 16 bits with noise in the lowest, which doesn't compress."""
    noise = np.random.default_rng(0).integers(0, 64, (SIDE, SIDE), np.uint16)
    return film().astype(np.uint16) * 64 + noise


def large(folder: Path) -> None:
    """Films of 64 megapixels in seven formats, one with four channels of 16 bits."""
    gray = film()
    sixteen = gray.astype(np.uint16) * 64
    pictures = {
        "gray.png": gray,
        "gray.jpg": gray,
        "gray.jp2": gray,
        "colour.webp": np.dstack([gray] * 3),
        "colour.png": np.dstack([sixteen] * 4),
        "float.tif": gray.astype(np.float32),
    }
    for name, array in pictures.items():
        (folder / name).write_bytes(encode_image(array, Path(name).suffix))
    (folder / "packed.png.gz").write_bytes(gzip.compress(encode_image(gray, ".png"), 1))


def eight_large(folder: Path) -> None:
    """Eight films of 64 megapixels."""
    copies(folder, ".png", encode_image(film(), ".png"))


def bombs(folder: Path) -> None:
    """Eight PNGs of 1.5 MB or less that are 64 megapixels with four channels of 16 bits."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint16)
    pixels[::50] = 3000
    copies(folder, ".png", cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes())


def packed_bombs(folder: Path) -> None:
    """Eight gzip files with a bomb in them, and eight of 1 GB of zeros."""
    copies(folder, ".png.gz", gzip.compress(encode_image(np.zeros((SIDE, SIDE), np.uint8), ".png"), 9))
    copies(folder, ".gz", gzip.compress(bytes(1 << 30), 1))


def montgomery(folder: Path) -> None:
    """24 films of 20 megapixels."""
    copies(folder, ".png", encode_image(film(4500), ".png"), count=24)


def dicom(image: np.ndarray, syntax: str = "ExplicitVRLittleEndian", **options) -> bytes:
    """The bytes of a file in a transfer syntax, by its name in pydicom; options are those of ``dicom`` in tests."""
    import dicoms
    from pydicom import uid

    return dicoms.dicom(image, getattr(uid, syntax), **options)


def dicom_native(folder: Path) -> None:
    """Two DICOM films of 64 megapixels and 14 bits."""
    tags = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4", "PatientOrientation": ["L", "F"]}
    copies(folder, ".dcm", dicom(deep(), bits=14, **tags), count=2)


def dicom_compressed(folder: Path) -> None:
    """Two such films as JPEG 2000 and two as RLE."""
    copies(folder, ".j2k.dcm", dicom(deep(), "JPEG2000Lossless", bits=14), count=2)
    copies(folder, ".rle.dcm", dicom(deep(), "RLELossless", bits=14), count=2)


def dicom_hostile(folder: Path) -> None:
    """48 DICOM files with endless, nested or huge elements and images."""
    small = film(512)
    explicit, implicit = dicom(small), dicom(small, "ImplicitVRLittleEndian")

    def before_pixels(data: bytes, *elements: bytes) -> bytes:
        at = data.index(b"\xe0\x7f\x10\0")
        return b"".join((data[:at], *elements, data[at:]))

    values = b"1\\" * (50 << 20)
    length = struct.pack("<I", len(values))
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (60 << 20)
    nothing = encode_image(np.zeros((SIDE, SIDE), np.uint8), ".jp2")
    empty = _ITEM + bytes(4)
    nested = (_SEQUENCE + _UNDEFINED + _ITEM + _UNDEFINED) * 1_000_000
    files = {
        "windows": before_pixels(implicit, b"\x28\0\x50\x10", length, values),
        "luts": before_pixels(explicit, _SEQUENCE, struct.pack("<I", 8 << 20), empty * (1 << 20)),
        "endless": before_pixels(explicit, _SEQUENCE, _UNDEFINED, empty * (5 << 20)),
        "nested": before_pixels(explicit, nested),
        "rle": dicom(small, "RLELossless", frame=runs),
        "larger": dicom(small, "JPEG2000Lossless", frame=nothing),
    }
    for name, data in files.items():
        copies(folder, f".{name}.dcm", data)


def sparse(folder: Path) -> None:
    """40 files of 500 MB that are nearly all holes."""
    data, size = dicom(film(512)), 500_000_000
    at = data.index(b"\xe0\x7f\x10\0")
    for n in range(8):
        for name, head, tail in (
            (f"{n}.private.dcm", data[:at] + _PRIVATE + struct.pack("<I", size), data[at:]),
            (f"{n}.zeros.dcm", data[:at], data[at:]),
            (f"{n}.bmp", b"BM", b""),
            (f"{n}.tif", b"II*\0", b""),
            (f"{n}.jpg", b"\xff\xd8\xff\xe0", b""),
        ):
            with (folder / name).open("wb") as file:
                file.write(head)
                file.seek(min(size, MAX_BYTES - len(head) - len(tail)), os.SEEK_CUR)
                file.write(tail or b"\0")


def tiny(folder: Path) -> None:
    """10,000 films of 64 px."""
    copies(folder, ".png", encode_image(film(64), ".png"), count=10_000)


def copies(folder: Path, suffix: str, data: bytes, *, count: int = 8) -> None:
    """The same file under several names; on the disk it is there once."""
    first = folder / f"0{suffix}"
    first.write_bytes(data)
    for n in range(1, count):
        os.link(first, folder / f"{n}{suffix}")


CASES: dict[str, Callable[[Path], None]] = {
    case.__name__: case
    for case in (
        large,
        eight_large,
        bombs,
        packed_bombs,
        montgomery,
        dicom_native,
        dicom_compressed,
        dicom_hostile,
        sparse,
        tiny,
    )
}


def peak(command: list[str]) -> tuple[float, int, str]:
    """MB that a process and those below it have in RAM at once, its exit status, and what it said last."""
    import psutil

    most = 0
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        while process.poll() is None:
            with suppress(psutil.Error):  # it has ended
                most = max(most, sum(map(_resident, [process, *process.children(recursive=True)])))
            time.sleep(0.01)
        said.seek(0)
        return most / 1e6, process.returncode, said.read()[-2000:]


def _resident(process: psutil.Process) -> int:
    import psutil

    try:
        return process.memory_info().rss
    except psutil.Error:  # it has ended
        return 0


def measure(case: str) -> dict[str, object]:
    """What one case takes: its peak, the films that got a mask, and the files."""
    with tempfile.TemporaryDirectory() as folder:
        films, out = Path(folder, "films"), Path(folder, "out")
        films.mkdir()
        CASES[case](films)
        begun = time.perf_counter()
        command = [sys.executable, "-m", "kaggle_utils", "predict", str(films), "--out", str(out), "--device", "cpu"]
        megabytes, status, said = peak([*command, "--force", "--format", "png", "coco", "dicom-seg"])
        seconds = time.perf_counter() - begun
        if status not in (0, 1, 3) or "Traceback" in said:
            raise SystemExit(f"{case}: status {status}: {said}")
        found = {
            "files": CASES[case].__doc__,
            "count": len(os.listdir(films)),
            "masks": len(os.listdir(out / "masks")),
            "peak_mb": round(megabytes),
            "seconds": round(seconds),
        }
        shutil.rmtree(out)
    return found


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="all if not given")
    args = parser.parse_args()
    need("psutil", "pydicom")
    found = read_json(RESULT).get("cases", {})
    about = {"command": command(), "machine": machine(), "opencv": cv2.__version__, "limit_mb": LIMIT}
    for case in args.case:
        found[case] = measure(case)
        print(f"{case}: {found[case]}", flush=True)
        write_json(RESULT, about | {"cases": {name: found[name] for name in CASES if name in found}})
    return int(any(case["peak_mb"] > LIMIT for case in found.values()))


if __name__ == "__main__":
    sys.exit(main())
