"""A hundred radiographs and other files by which the page in the browser is compared with the package."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import cv2
import imagecodecs
import numpy as np
from dicoms import LOSSLESS, dicom, gray_lut
from pydicom import uid
from pydicom.sequence import Sequence

from kaggle_utils.sets import EXAMPLES
from kaggle_utils.synthetic import AppearanceModel

SIZES = (
    (512, 512),
    (777, 911),
    (300, 290),
    (1024, 1024),
    (384, 384),
    (1031, 643),
    (256, 500),
    (640, 512),
)  # rows, columns


def make_films() -> dict[str, bytes]:
    """Files by their names: a hundred that are radiographs, or nearly."""
    model = AppearanceModel.load()
    drawn = [model.film(7, n, size=512, tb=n % 2).image for n in range(12)]
    films = dict(_pictures(drawn))
    films |= {path.name: path.read_bytes() for path in sorted(EXAMPLES.glob("*.jpg"))}
    films |= dict(_dicoms([cv2.resize(film, (288, 320), interpolation=cv2.INTER_AREA) for film in drawn]))
    return films


def _pictures(drawn: list[np.ndarray]) -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    for n in range(40):
        rows, columns = SIZES[n % len(SIZES)]
        film = cv2.resize(drawn[n % 12], (columns, rows), interpolation=cv2.INTER_AREA)
        film = [film, 255 - film, np.rot90(film), film[:, ::-1], np.rot90(film, 2)][n % 7 if n % 7 < 5 else 0]
        yield f"film_{n:02}.png", _encoded(".png", film)
    gray = drawn[3]
    yield "deep.png", _encoded(".png", gray.astype(np.uint16) * 9 + 300)
    yield "colour.png", _encoded(".png", cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
    yield "tinted.png", _encoded(".png", np.dstack([gray, gray // 2, gray // 3]))
    yield "alpha.png", _encoded(".png", np.dstack([gray, gray, gray, rng.integers(0, 256, gray.shape, dtype=np.uint8)]))
    yield "palette.png", _palette(gray)
    yield "lossy.jpg", _encoded(".jpg", cv2.resize(drawn[4], (640, 480)))
    yield "colour.jpg", _encoded(".jpg", cv2.cvtColor(drawn[5], cv2.COLOR_GRAY2BGR))
    yield "lossy.webp", _encoded(".webp", cv2.resize(drawn[6], (640, 480)))
    yield "bordered.png", _encoded(".png", np.pad(drawn[7], ((0, 40), (25, 0))))
    yield "cut.png", _encoded(".png", drawn[8][:300, 100:])
    yield "half.png", _encoded(".png", np.where(np.arange(512) < 270, drawn[9], 20).astype(np.uint8))
    yield "small.png", _encoded(".png", cv2.resize(drawn[10], (70, 66), interpolation=cv2.INTER_AREA))
    yield "tiny.png", _encoded(".png", cv2.resize(drawn[10], (60, 66), interpolation=cv2.INTER_AREA))
    yield "mask.png", _encoded(".png", (drawn[11] > 120).astype(np.uint8) * 255)
    yield "blank.png", _encoded(".png", rng.integers(100, 104, (200, 200), dtype=np.uint8))
    yield "noise.png", _encoded(".png", rng.integers(0, 256, (300, 200), dtype=np.uint8))
    yield "photo.png", _encoded(".png", cv2.resize(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), (400, 400)))


def _dicoms(drawn: list[np.ndarray]) -> Iterator[tuple[str, bytes]]:
    deep = [film.astype(np.uint16) * 15 + 40 for film in drawn]  # 12 bits
    curve = np.round(4095 * (np.arange(4096) / 4095) ** 1.5)
    spaced = {"PixelSpacing": [1.1, 1.2]}
    for n, (name, syntax) in enumerate(LOSSLESS.items()):
        yield f"{name} 8.dcm", dicom(drawn[n], syntax)
        yield f"{name} 12.dcm", dicom(deep[n], syntax, bits=12, photometric="MONOCHROME1")
        yield f"{name} signed.dcm", dicom(deep[n].astype(np.int16) - 2048, syntax, bits=12)
    yield "jpeg.dcm", dicom(drawn[0], uid.JPEGBaseline8Bit)
    if htj2k_encode := getattr(imagecodecs, "htj2k_encode", None):  # older ones have none
        yield "HTJ2K 8.dcm", dicom(drawn[1], uid.HTJ2KLossless, frame=htj2k_encode(drawn[1], reversible=True))
        yield "HTJ2K 12.dcm", dicom(deep[2], uid.HTJ2KLossless, bits=12, frame=htj2k_encode(deep[2], reversible=True))
    yield "window.dcm", dicom(deep[1], bits=12, WindowCenter=["1800", "300"], WindowWidth=["3000", "100"], **spaced)
    yield "sigmoid.dcm", dicom(deep[2], bits=12, WindowCenter="1800", WindowWidth="3000", VOILUTFunction="SIGMOID")
    yield "rescaled.dcm", dicom(deep[3], bits=12, RescaleSlope="-1", RescaleIntercept="4095")
    yield "voi.dcm", dicom(deep[4], bits=12, VOILUTSequence=Sequence([gray_lut(curve)]))
    yield "modality.dcm", dicom(deep[5], bits=12, ModalityLUTSequence=Sequence([gray_lut(curve)]))
    yield "padded.dcm", dicom(_framed(deep[6]), bits=12, PixelPaddingValue=0, PatientAge="003Y", **spaced)
    edges = {"UpperHorizontal": 20, "LowerHorizontal": 300, "LeftVertical": 20, "RightVertical": 270}
    shutter = {f"Shutter{name}Edge": value for name, value in edges.items()}
    yield "shutter.dcm", dicom(_framed(deep[7]), bits=12, ShutterShape="RECTANGULAR", **shutter)
    lying = {"PatientOrientation": ["F", "R"], "ImagerPixelSpacing": [1.0, 1.3]}
    yield "lying.dcm", dicom(np.ascontiguousarray(np.rot90(deep[8])), bits=12, **lying)
    yield (
        "lateral tag.dcm",
        dicom(deep[9], bits=12, ViewPosition="LL", BurnedInAnnotation="YES", PatientOrientation=["A", "F"]),
    )
    yield "colour.dcm", dicom(np.dstack([drawn[10]] * 3), photometric="RGB")


def _framed(film: np.ndarray) -> np.ndarray:
    framed = film.copy()
    framed[:15] = framed[:, :15] = 0
    return framed


def _encoded(suffix: str, image: np.ndarray) -> bytes:
    return cv2.imencode(suffix, np.ascontiguousarray(image))[1].tobytes()


def _palette(gray: np.ndarray) -> bytes:
    from PIL import Image

    Image.fromarray(gray // 8 * 8).convert("P").save(file := BytesIO(), format="PNG")
    return file.getvalue()
