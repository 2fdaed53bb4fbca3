"""Damaged files, by the thousand: each is read as something valid or refused with ValueError, in bounded time and
memory.

``python -m tests.fuzz --minutes 10`` prints counts and writes the inputs that broke the rule to runs/fuzz. A case is a
whole file's name and a seed, so it can be made again: ``python -m tests.fuzz --case png8 17``.
"""

from __future__ import annotations

import argparse
import gzip
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks import tell_missing_packages_in_a_line

tell_missing_packages_in_a_line()

import cv2
import numpy as np
from dicoms import LOSSLESS, dicom, gray_lut
from nibabel import Nifti1Image
from phantoms import phantom, tiff
from PIL import Image

from kaggle_utils import image as files
from kaggle_utils.pictures.header import MAX_PIXELS

SECONDS = 10  # of processor time, of one case; a small file that declares 100 megapixels takes 2-3
HANG = 300  # seconds of one case on a busy machine
BYTES = 6 << 30  # address space of the process that reads, most of it PyTorch's
# Numbers at which sizes, offsets and signs go over.
EDGES = (
    0,
    1,
    2,
    7,
    8,
    9,
    16,
    17,
    127,
    128,
    255,
    256,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
Edit = tuple[str, float, int]  # what, where as a share of the file, a number


@lru_cache(maxsize=1)
def whole_files() -> dict[str, bytes]:
    """A small file of each format and coding."""
    from kaggle_utils.model import UNet, save_weights  # PyTorch takes seconds to import

    film = phantom(40, 32).image
    twelve = film.astype(np.uint16) << 4

    def encode(suffix: str, image: np.ndarray, *options: int) -> bytes:
        return cv2.imencode(suffix, image, options)[1].tobytes()

    found = {
        "png8": encode(".png", film),
        "png16": encode(".png", twelve),
        "png colour": encode(".png", np.dstack([film] * 4)),
        "jpeg": encode(".jpg", film),
        "jpeg progressive": encode(".jpg", np.dstack([film] * 3), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "bmp": encode(".bmp", film),
        "gif": encode(".gif", np.dstack([film] * 3)),
        "webp": encode(".webp", film),
        "webp lossy": encode(".webp", film, cv2.IMWRITE_WEBP_QUALITY, 50),
        "jpeg 2000": encode(".jp2", phantom(64, 64).image),
        "nifti": Nifti1Image(twelve, np.eye(4)).to_bytes(),
        "gzip": gzip.compress(encode(".png", film)),
    }
    found["jpeg 2000 codestream"] = found["jpeg 2000"][found["jpeg 2000"].index(b"\xff\x4f\xff\x51") :]
    for kind in ("JPEG", "PNG", "WEBP"):
        file, exif = BytesIO(), Image.Exif()
        exif[274] = 6
        Image.fromarray(film).save(file, kind, exif=exif)
        found[f"{'png' if kind == 'PNG' else kind.lower()} orientation"] = file.getvalue()
    found["tiff thumbnail"] = tiff((film[::2, ::2], {254: 1}), (film, {}))
    for name, code in (("raw", 1), ("lzw", 5), ("deflate", 8), ("packbits", 32773)):
        found[f"tiff {name}"] = encode(".tif", twelve, cv2.IMWRITE_TIFF_COMPRESSION, code)
    tags = {
        "RescaleSlope": "1",
        "RescaleIntercept": "0",
        "WindowCenter": "2000",
        "WindowWidth": "3000",
        "PixelSpacing": [0.2, 0.2],
    }
    for name, syntax in LOSSLESS.items():
        found[f"dicom {name}"] = dicom(twelve, syntax, bits=12, **tags)
    found["dicom bare"] = dicom(film, preamble=False)
    found["dicom tags"] = dicom(
        twelve,
        bits=12,
        **tags
        | {
            "WindowCenter": ["9", "2000"],
            "WindowWidth": ["9", "3000"],
            "PatientOrientation": ["R", "F"],
            "PatientAge": "045Y",
            "PixelPaddingValue": 0,
            "PixelPaddingRangeLimit": 9,
            "VOILUTSequence": [gray_lut()],
            "ShutterShape": "RECTANGULAR",
            "ShutterUpperHorizontalEdge": 2,
            "ShutterLowerHorizontalEdge": 36,
            "ShutterLeftVerticalEdge": 2,
            "ShutterRightVerticalEdge": 30,
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "w.safetensors")
        save_weights(path, UNet(base_channels=2, depth=1), {"size": 32, "sources": ["montgomery"]})
        found["weights"] = path.read_bytes()
    return found


def edit(data: bytes, edits: list[Edit]) -> bytes:
    """A file with edits: flip a bit, set or insert a number, cut a part out, cut off the end, copy a part elsewhere."""
    for what, where, number in edits:
        at = int(where * len(data))
        if what == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :] if data else data
        elif what in ("little", "big", "insert"):
            size = 4 if number > 0xFFFF else 2 if number > 0xFF else 1 + number % 2
            word = (number & 0xFFFFFFFF).to_bytes(max(size, 1), "big" if what == "big" else "little")
            data = data[:at] + word + data[at + (0 if what == "insert" else len(word)) :]
        elif what == "cut":
            data = data[:at] + data[at + number % 64 :]
        elif what == "truncate":
            data = data[:at]
        elif what == "splice":
            source = number % (len(data) + 1)
            data = data[:at] + data[source : source + 64] + data[at:]
    return data


KINDS = ("flip", "little", "big", "insert", "cut", "truncate", "splice")


def seal_png(data: bytes) -> bytes:
    """A PNG with the right checksum for every chunk: otherwise the first check would hide all that come after it."""
    at, sealed = 8, data[:8]
    while at + 12 <= len(data):
        body = data[at + 4 : at + 8 + int.from_bytes(data[at : at + 4], "big")]
        sealed += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 8 + len(body)  # the type is part of the body
    return sealed + data[at:]


def damaged(name: str, seed: int) -> bytes:
    """A whole file after one to six edits; half of them in its first 512 bytes, where headers are."""
    rng, data = np.random.default_rng(seed), whole_files()[name]
    head = min(1.0, 512 / len(data))
    edits = [
        (
            str(rng.choice(KINDS, p=(0.3, 0.2, 0.2, 0.1, 0.08, 0.02, 0.1))),
            float(rng.random() * (head if rng.random() < 0.5 else 1)),
            int(rng.choice(EDGES)) if rng.random() < 0.7 else int(rng.integers(1 << 32)),
        )
        for _ in range(rng.integers(1, 7))
    ]
    data = edit(data, edits)
    return seal_png(data) if name.startswith("png") and rng.random() < 0.8 else data


def check(name: str, data: bytes, folder: Path) -> str:
    """Reads a file as its format's readers do: ``read`` or ``refused``; any other exception is the caller's.

    Raises:
        AssertionError: what was read is not valid, or the error doesn't name the file in one line.
    """
    path = folder / "damaged.bin"
    path.write_bytes(data)
    try:
        if name == "weights":
            from kaggle_utils.model import UNet, load_weights

            assert isinstance(load_weights(path), UNet)
            return "read"
        film = files.read_film(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error), (
            f"error without its file, or of several lines: {error}"
        )
        return "refused"
    assert film.image.dtype == np.uint8 and film.image.ndim == 2 and 0 < film.image.size <= MAX_PIXELS
    assert film.spacing_mm is None or len(film.spacing_mm) == 2 and min(film.spacing_mm) > 0
    assert not any(";" in note for note in film.notes)
    return "read"


def work(cases: Iterator[tuple[str, int]]) -> None:
    """Checks cases and says on stdout which one it is at, so that a parent knows which one it died of."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole_files()
    with tempfile.TemporaryDirectory() as folder:
        for name, seed in cases:
            print("at", name, seed, "", sep="\t", flush=True)
            signal.alarm(HANG)  # ends the process, inside a decoder too
            start = sum(os.times()[:4])
            try:
                verdict = check(name, damaged(name, seed), Path(folder))
            except Exception as error:  # what the rule forbids
                verdict = f"{type(error).__name__}: {str(error)[:200]!r}"
            took = sum(os.times()[:4]) - start
            print("done", name, seed, verdict if took < SECONDS else f"slow: {took:.0f} s", sep="\t", flush=True)


def run(
    names: list[str], first: int, seconds: float, most: int | None = None
) -> tuple[Counter, list[tuple[str, int, str]]]:
    """Checks cases in a process of their own, started again after a death, until the time is over.

    Args:
        names: of whole files, taken in turn.
        first: the first seed.
        seconds: when to stop.
        most: how many cases at most.

    Returns:
        How often each file was read and refused; the failures: file, seed, what happened.
    """
    counts, failures = Counter(), []
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end and (most is None or done < most):
        command = [sys.executable, __file__, "--worker", *names, "--first", str(first + done)]
        at = None
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as child:
            for line in child.stdout:
                _, name, seed, verdict = line.rstrip("\n").split("\t")
                at, done = (name, int(seed)), int(seed) - first + 1
                if verdict:
                    _count(counts, failures, name, int(seed), verdict)
                    at = None
                    if time.monotonic() > end or done == most:
                        child.kill()
                        return counts, failures
        if at is None:
            raise RuntimeError(
                f"the process that reads ended with status {child.returncode} before a case: {' '.join(command)}"
            )
        _count(counts, failures, *at, f"died, status {child.returncode}")
    return counts, failures


def _count(counts: Counter, failures: list[tuple[str, int, str]], name: str, seed: int, verdict: str) -> None:
    fine = verdict in ("read", "refused")
    counts[name, verdict if fine else "FAILED"] += 1
    if not fine:
        failures.append((name, seed, verdict))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="how long")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--files", nargs="+", choices=list(whole_files()), default=list(whole_files()), help="which whole files"
    )
    parser.add_argument("--case", nargs=2, metavar=("FILE", "SEED"), help="one case, with its traceback")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work((args.worker[seed % len(args.worker)], seed) for seed in count(args.first))
    if args.case:
        with tempfile.TemporaryDirectory() as folder:
            print(check(args.case[0], damaged(args.case[0], int(args.case[1])), Path(folder)))
        return 0
    counts, failures = run(args.files, args.first, 60 * args.minutes)
    for name in args.files:
        print(
            f"{name:22}", "  ".join(f"{verdict} {counts[name, verdict]:5}" for verdict in ("read", "refused", "FAILED"))
        )
    out = ROOT / "runs/fuzz"
    for name, seed, what in failures:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name.replace(' ', '_')}_{seed}.bin").write_bytes(damaged(name, seed))
        print(f"{name} {seed}: {what}")
    print(f"{sum(counts.values())} damaged files, {len(failures)} failures" + (f", in {out}" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
