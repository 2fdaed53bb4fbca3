"""dicom.read: whatever encodes a radiograph, gray levels are those of the original; what is none is refused with its
reason."""

import subprocess
import sys
import time
import tracemalloc

import cv2
import numpy as np
import pytest
from dicoms import LOSSLESS, dicom, gray_lut
from phantoms import lost_in_the_middle, phantom
from pydicom import Dataset, uid
from pydicom.sequence import Sequence

from kaggle_utils import image as files
from kaggle_utils.dicom import read as reader
from kaggle_utils.dicom.read import read_dicom
from kaggle_utils.pictures.header import MAX_PIXELS

FILM = phantom(64, 48).image


@pytest.fixture
def in_process(monkeypatch):
    """Decodes where the test runs: these files are whole, and a process takes longer than a test of its own should."""

    def decode(data, notes):
        ds = reader._parse(data)
        reader._correct_bits(ds)
        return reader._decode(ds)

    monkeypatch.setattr(reader, "_decode_apart", decode)


def stored_values(bits: int, signed: bool) -> np.ndarray:
    """The phantom, filling the middle of the range that so many bits have."""
    low, span = (-(1 << (bits - 1)) if signed else 0), (1 << bits) - 1
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    return (low + np.round(FILM / 255.0 * span)).astype(kind)


def stretched(shown: np.ndarray) -> np.ndarray:
    low, high = np.percentile(shown[::4, ::4], (0.1, 99.9))
    return np.clip((shown - low) / (high - low) * 255, 0, 255)


def assert_gray(image: np.ndarray, expected: np.ndarray, tolerance: float = 0.51) -> None:
    assert image.dtype == np.uint8 and image.shape == expected.shape
    assert np.abs(image - expected).max() <= tolerance


# --- the matrix ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_lossless_pixels_come_out_as_they_went_in(in_process, syntax, bits, signed, photometric):
    values = stored_values(bits, signed)
    film = read_dicom(dicom(values, LOSSLESS[syntax], bits=bits, photometric=photometric))
    expected = FILM if bits == 8 and not signed else stretched(values.astype(float))
    assert_gray(film.image, 255 - expected if photometric == "MONOCHROME1" else expected)
    assert ("MONOCHROME1 inverted" in film.notes) == (photometric == "MONOCHROME1")


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("syntax", [uid.JPEGLSNearLossless, uid.JPEG2000], ids=["JPEG-LS", "JPEG 2000"])
def test_lossy_syntaxes_are_decoded(in_process, syntax, bits):
    lossless = {uid.JPEGLSNearLossless: uid.JPEGLSLossless, uid.JPEG2000: uid.JPEG2000Lossless}[syntax]
    values = stored_values(bits, False)
    frame = reader_frame(dicom(values, lossless, bits=bits))
    assert_gray(
        read_dicom(dicom(values, syntax, bits=bits, frame=frame)).image,
        FILM if bits == 8 else stretched(values.astype(float)),
    )


def reader_frame(data: bytes) -> bytes:
    from pydicom.encaps import generate_frames

    return next(generate_frames(reader._parse(data).PixelData, number_of_frames=1))


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit], ids=["baseline", "extended, 8 bits"])
def test_jpeg_keeps_about_the_gray_levels(in_process, syntax):
    frame = cv2.imencode(".jpg", FILM, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    film = read_dicom(dicom(FILM, syntax, frame=frame))
    assert np.abs(film.image.astype(int) - FILM).mean() < 2


@pytest.mark.parametrize("syntax", ["RLE", "JPEG lossless SV1", "JPEG-LS", "JPEG 2000"])
def test_compressed_pixels_come_back_from_the_process_that_decodes(syntax):
    assert_gray(
        read_dicom(dicom(stored_values(12, False), LOSSLESS[syntax], bits=12)).image,
        stretched(stored_values(12, False) / 1.0),
    )


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_secondary_capture_becomes_luminance(photometric):
    rgb = np.dstack([FILM, FILM // 2, FILM // 4])
    stored = rgb if photometric == "RGB" else cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    film = read_dicom(
        dicom(stored, photometric=photometric, SOPClassUID=uid.SecondaryCaptureImageStorage, Modality="OT")
    )
    assert_gray(film.image, rgb @ [0.299, 0.587, 0.114], tolerance=2)
    np.testing.assert_allclose(film.colour, rgb, atol=2)


@pytest.mark.parametrize("syntax", ["implicit", "explicit"])
def test_file_without_a_preamble_is_read(syntax):
    data = dicom(FILM, LOSSLESS[syntax], preamble=False)
    assert data[128:132] != b"DICM" and files.is_dicom(data)
    assert_gray(read_dicom(data).image, FILM)


# --- values to gray --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_high_bit_says_where_the_value_lies_and_the_rest_of_the_word_is_dropped(high, signed):
    values = stored_values(12, signed)
    words = (values.view(np.uint16) & 0xFFF) << (high - 11)
    junk = np.random.default_rng(0).integers(0, 1 << 16, words.shape, dtype=np.uint16) & ~np.uint16(
        0xFFF << (high - 11)
    )
    film = read_dicom(dicom((words | junk).view(values.dtype), bits=12, HighBit=high))
    assert_gray(film.image, stretched(values.astype(float)))


def window(values, center, width):
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def test_first_window_of_several_is_shown():
    values = stored_values(12, False)
    film = read_dicom(dicom(values, bits=12, WindowCenter=["1800", "300"], WindowWidth=["900", "100"]))
    assert_gray(film.image, stretched(window(values, 1800, 900)))
    assert "window" in film.notes


def test_rescale_comes_before_the_window():
    values = stored_values(12, True)
    film = read_dicom(
        dicom(values, bits=12, RescaleSlope="0.5", RescaleIntercept="1024", WindowCenter="1000", WindowWidth="800")
    )
    assert_gray(film.image, stretched(window(values * 0.5 + 1024, 1000, 800)))


def test_negative_slope_turns_the_gray_scale():
    values = stored_values(12, False)
    assert_gray(
        read_dicom(dicom(values, bits=12, RescaleSlope="-1", RescaleIntercept="4095")).image, stretched(4095.0 - values)
    )


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
def test_lut_sequence_is_applied(name):
    values, curve = stored_values(10, False), np.sqrt(np.arange(1024) / 1023) * 65535
    extra = {"ModalityLUTSequence": {"RescaleType": "US"}, "VOILUTSequence": {"WindowCenter": "1", "WindowWidth": "2"}}[
        name
    ]
    assert_gray(
        read_dicom(dicom(values, bits=10, **{name: Sequence([gray_lut(curve)])}, **extra)).image,
        stretched(curve.astype(int)[values]),
    )


EMPTY = Sequence([Dataset()])
HIDES = {
    "no window": ({"WindowCenter": "", "WindowWidth": ""}, None),
    "no width": ({"WindowCenter": "9", "WindowWidth": "0"}, "window ignored: empty or damaged"),
    "negative width": ({"WindowCenter": "2000", "WindowWidth": "-900"}, "window ignored: empty or damaged"),
    "window that is no number": ({"WindowCenter": "nan", "WindowWidth": "900"}, "window ignored"),
    "window of an unknown function": (
        {"WindowCenter": "2000", "WindowWidth": "900", "VOILUTFunction": "CUBIC"},
        "window ignored",
    ),
    "window beside all levels": (
        {"WindowCenter": "-90000", "WindowWidth": "9"},
        "window ignored: it would hide the film",
    ),
    "window below the film": ({"WindowCenter": "128", "WindowWidth": "256"}, "window ignored: it would hide the film"),
    "window above the film": ({"WindowCenter": "4050", "WindowWidth": "90"}, "window ignored: it would hide the film"),
    "window at the film's edge": (
        {"WindowCenter": "700", "WindowWidth": "600"},
        "window ignored: it would hide the film",
    ),
    "sigmoid beside the film": (
        {"WindowCenter": "90", "WindowWidth": "90", "VOILUTFunction": "SIGMOID"},
        "window ignored: it would hide the film",
    ),
    "empty VOI LUT": ({"VOILUTSequence": EMPTY}, "VOI LUT ignored: empty or damaged"),
    "empty modality LUT": ({"ModalityLUTSequence": EMPTY}, "Modality LUT ignored: empty or damaged"),
    "slope 0": ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "rescaling by 0 ignored: it would hide the film"),
    "huge slope": ({"RescaleSlope": "1e308", "RescaleIntercept": "0"}, "rescaling by 1e308 ignored"),
    "slope lost in the intercept": ({"RescaleSlope": "1e-9", "RescaleIntercept": "1e12"}, "rescaling by 1e-9 ignored"),
    "slope that is no number": ({"RescaleSlope": "nan", "RescaleIntercept": "0"}, "rescaling by nan ignored"),
}


@pytest.mark.parametrize("case", HIDES)
def test_gray_scale_that_would_hide_the_film_is_left_out_with_a_note(case):
    tags, note = HIDES[case]
    film = read_dicom(dicom(stored_values(12, False), bits=12, **tags))
    assert_gray(film.image, stretched(stored_values(12, False) / 1.0))
    assert film.notes[:-1] == () if note is None else film.notes[0].startswith(note)


def test_next_window_is_shown_where_the_first_hides_the_film():
    values = stored_values(12, False)
    film = read_dicom(dicom(values, bits=12, WindowCenter=["128", "1800"], WindowWidth=["256", "900"]))
    assert_gray(film.image, stretched(window(values, 1800, 900)))
    assert film.notes[:2] == ("window ignored: it would hide the film", "window 2")


def test_window_is_shown_where_a_slope_of_0_and_a_damaged_lut_are_left_out():
    values = stored_values(12, False)
    film = read_dicom(
        dicom(
            values,
            bits=12,
            RescaleSlope="0",
            RescaleIntercept="9",
            VOILUTSequence=EMPTY,
            WindowCenter="1800",
            WindowWidth="900",
        )
    )
    assert_gray(film.image, stretched(window(values, 1800, 900)))
    assert film.notes[-2] == "window"


def test_8_bit_film_with_the_window_of_all_8_bits_stays_as_it_is():
    film = read_dicom(dicom(FILM, WindowCenter="128", WindowWidth="256"))
    assert_gray(film.image, FILM, 0)
    assert "window" not in film.notes


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian"])
@pytest.mark.parametrize(
    "kind",
    [
        "12 bits",
        "8 bits in words",
        "8 bits, two a word",
        "odd count of 8 bits",
        "65536 entries",
        "entries not counted",
        "first value above 0",
    ],
)
def test_lut_of_any_descriptor_is_applied(kind, syntax, name):
    values = stored_values(12, False)
    curve = (np.sqrt(np.arange(4096) / 4095) * (255 if "8 bits" in kind else 4095)).astype(int)
    words, item = curve.astype("<u2"), Dataset()
    item.LUTDescriptor = [4096, 0, 8 if "8 bits" in kind else 12]
    if kind in ("8 bits, two a word", "odd count of 8 bits"):
        item.LUTDescriptor[0] -= kind != "8 bits, two a word"
        words = curve.astype(np.uint8).view("<u2")
    elif kind == "65536 entries":
        item.LUTDescriptor[0], words = 0, np.pad(words, (0, 61440), mode="edge")
    elif kind == "entries not counted":
        item.LUTDescriptor[0] = 0
    elif kind == "first value above 0":
        item.LUTDescriptor[:2], words = [3596, 500], words[500:]
    item.LUTData = words.astype("u2" if syntax != "big endian" else ">u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    film = read_dicom(dicom(values, LOSSLESS[syntax], bits=12, **{name: Sequence([item])}))
    assert_gray(film.image, stretched(curve[values]))


def test_lut_of_a_film_with_a_sign_begins_below_0():
    values = stored_values(12, True)
    curve = np.sqrt(np.arange(4096) / 4095) * 4095
    film = read_dicom(dicom(values, bits=12, VOILUTSequence=Sequence([gray_lut(curve, first=65536 - 2048, bits=12)])))
    assert_gray(film.image, stretched(curve.astype(int)[values.astype(int) + 2048]))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_has_no_part_in_the_gray_range(photometric):
    values = stored_values(12, False) // 2 + 1000
    values[:, :10] = 0
    film = read_dicom(dicom(values, bits=12, photometric=photometric, PixelPaddingValue=0))
    assert not film.image[:, :10].any()
    inner = values[:, 12:].astype(float)
    low, high = np.percentile(inner[::4, ::4], (0.1, 99.9))
    expected = np.clip((inner - low) / (high - low) * 255, 0, 255)
    assert_gray(film.image[:, 12:], 255 - expected if photometric == "MONOCHROME1" else expected)


@pytest.mark.parametrize(
    "signed, vr, ends",
    [
        (True, "US", (65536 - 2000,)),
        (False, "SS", (-2000,)),
        (True, "US", (65536 - 2048, 65536 - 1900)),
        (True, "SS", (-1900, -2048)),
    ],
    ids=["unsigned of signed pixels", "signed of unsigned pixels", "unsigned range", "range from above"],
)
def test_padding_of_the_other_sign_and_in_a_range_is_black(signed, vr, ends):
    values = stored_values(12, signed) // 2 + 1000
    inner, values[:, :10] = values[:, 12:].astype(float), -2000 if signed else -2000 & 0xFFF
    film = read_dicom(with_padding(values, vr, *ends))
    assert not film.image[:, :10].any()
    low, high = np.percentile(inner[::4, ::4], (0.1, 99.9))
    assert_gray(film.image[:, 12:], np.clip((inner - low) / (high - low) * 255, 0, 255))


def with_padding(values, vr: str, *ends: int) -> bytes:
    ds = Dataset()
    for name, end in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), ends):
        setattr(ds, name, end)
        ds[name].VR = vr
    return dicom(values, bits=12, elements=ds)


def test_padding_that_would_hide_the_film_is_left_out_with_a_note():
    film = read_dicom(with_padding(stored_values(12, False), "US", 4000, 100))
    assert_gray(film.image, stretched(stored_values(12, False) / 1.0))
    assert film.notes[0] == "padding ignored: it would hide the film"


@pytest.mark.parametrize("name", ["Shutter", "Collimator"])
def test_gray_range_is_that_within_the_shutter(name):
    values = stored_values(12, False) // 4 + 1000
    framed = np.pad(values, 8, constant_values=4095)
    edges = {"UpperHorizontal": 8, "LowerHorizontal": 72, "LeftVertical": 8, "RightVertical": 56}
    film = read_dicom(
        dicom(framed, bits=12, **{f"{name}Shape": "RECTANGULAR"}, **{f"{name}{k}Edge": v for k, v in edges.items()})
    )
    assert_gray(film.image[8:-8, 8:-8], stretched(values.astype(float)))
    assert any(name.lower() in note for note in film.notes)


# --- spacing and remarks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tags, spacing, note",
    [
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.3, 0.3]}, (0.2, 0.1), "spacing from PixelSpacing"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.3]}, (0.3, 0.3), "spacing from ImagerPixelSpacing"),
        ({"ImagerPixelSpacing": [0.3, 0.4]}, (0.3, 0.4), "spacing from ImagerPixelSpacing"),
        (
            {"PixelSpacing": None, "NominalScannedPixelSpacing": [0.175, 0.175]},
            (0.175, 0.175),
            "spacing from NominalScannedPixelSpacing",
        ),
        ({}, None, "no spacing"),
        ({"PixelSpacing": ""}, None, "no spacing"),
        ({"PixelSpacing": [-1, -1]}, None, "no spacing: PixelSpacing is not that of a film"),
    ],
)
def test_spacing_is_rows_then_columns_from_the_best_tag(tags, spacing, note):
    film = read_dicom(dicom(FILM, **{k: v for k, v in tags.items() if v is not None}))
    assert film.spacing_mm == spacing and note in film.notes


@pytest.mark.parametrize(
    "tags, note",
    [
        ({"ViewPosition": "LL"}, "view LL"),
        ({"PatientOrientation": ["R", "F"]}, "mirrored"),
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
    ],
)
def test_what_a_reader_of_the_mask_should_know_is_noted(tags, note):
    assert any(note in text for text in read_dicom(dicom(FILM, **tags)).notes)


@pytest.mark.parametrize(
    "age, years",
    [("045Y", 45), ("018M", 1.5), ("026W", 0.498), ("003D", 0.0082), ("45", None), ("", None), (None, None)],
)
def test_age_is_in_years(age, years):
    assert read_dicom(dicom(FILM, **{"PatientAge": age} if age is not None else {})).age == (
        years and pytest.approx(years, rel=0.01)
    )


@pytest.mark.parametrize(
    "orientation, lie",
    [
        ("L\\F", reader.Lie()),
        ("R\\F", reader.Lie(True)),
        ("F\\L", reader.Lie(True, 1)),
        ("LA\\FP", reader.Lie()),
        ("A\\F", None),
        ("L", None),
        ("LF", None),
        ("R\\L", None),
        ("", None),
    ],
)
def test_lie_is_that_of_patient_orientation_and_the_pixels_stay_where_they_are(orientation, lie):
    film = read_dicom(dicom(FILM, PatientOrientation=orientation.split("\\")))
    assert film.lie == lie
    assert_gray(film.image, FILM, 0)


def test_plain_frontal_film_has_no_other_note():
    tags = {"ViewPosition": "PA", "PatientOrientation": ["L", "F"], "PixelSpacing": [0.1, 0.1]}
    assert read_dicom(dicom(FILM, **tags)).notes == ("spacing from PixelSpacing",)


# --- refusals --------------------------------------------------------------------------------------------------------

REFUSED = {
    "report": (
        dicom(FILM, SOPClassUID=uid.BasicTextSRStorage, PixelData=None),
        "without an image in it .Basic Text SR",
    ),
    "PDF": (
        dicom(FILM, SOPClassUID=uid.EncapsulatedPDFStorage, PixelData=None),
        "without an image in it .Encapsulated PDF",
    ),
    "text of two lines": (
        dicom(FILM, SOPClassUID=uid.BasicTextSRStorage, PixelData=None).replace(
            b"1.2.840.10008.5.1.4.1.1.88", b"1.2.840.10008.5.1.4.1.1\nx|"
        ),
        r"without an image in it .1.2.840.10008.5.1.4.1.1 x\|",
    ),
    "CT": (dicom(FILM, Modality="CT"), "modality CT"),
    "frames": (dicom(FILM, NumberOfFrames=30), "30 frames"),
    "video": (dicom(FILM, uid.MPEG4HP41, frame=b"\0" * 100), "transfer syntax MPEG-4"),
    "segmentation": (
        dicom(FILM, BitsAllocated=1, BitsStored=1, SOPClassUID=uid.SegmentationStorage),
        "1 bits in 1 .Segmentation",
    ),
    "32 bits": (dicom(FILM, BitsAllocated=32, BitsStored=32), "32 bits in 32"),
    "palette": (dicom(FILM, photometric="PALETTE COLOR"), "PALETTE COLOR"),
    "no photometric": (dicom(FILM, PhotometricInterpretation=None), "no photometric"),
    "no size": (dicom(FILM, Rows=None, BitsStored=None), "no valid Rows and no BitsStored"),
    "bomb": (dicom(FILM, Rows=65535, Columns=65535), "65535 x 65535 pixels, more than"),
    "zero": (dicom(FILM, Rows=0), "48 x 0 pixels"),
    "short": (dicom(FILM, Rows=65), "damaged DICOM"),
    "truncated": (dicom(FILM)[:-500], "damaged DICOM"),
    "JPEG 2000 part 2": (
        dicom(FILM, "1.2.840.10008.1.2.4.92", frame=b"\xff\x4f" * 40),
        "JPEG 2000 Part 2 .* is not read: convert it",
    ),
    "deflated": (dicom(FILM, uid.DeflatedExplicitVRLittleEndian), "deflated"),
    "truncated RLE": (dicom(FILM, uid.RLELossless)[:-500], "damaged DICOM: it is truncated"),
    "header alone": (dicom(FILM)[:140], "damaged DICOM"),
    "12-bit extended": (
        dicom(
            stored_values(12, False),
            uid.JPEGExtended12Bit,
            bits=12,
            frame=b"\xff\xd8\xff\xc1\0\x08\x0c\0\x30\0\x40\0\xff\xda\0\x02\xff\xd9",
        ),
        "JPEG Extended of 12 bits: .*pip install pylibjpeg ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_film_is_refused_with_its_file_and_reason(tmp_path, case):
    data, reason = REFUSED[case]
    (tmp_path / "IM0001").write_bytes(data)
    with pytest.raises(ValueError, match=reason) as error:
        files.read_image(tmp_path / "IM0001")
    assert str(tmp_path / "IM0001") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "syntax, frame",
    [
        (uid.JPEGLosslessSV1, b"\xff\xd8\xff\xd9"),
        (uid.RLELossless, b"\0" * 64),
        (uid.JPEG2000Lossless, b"\xff\x4f\xff\x51\xff\xd9"),
    ],
    ids=["JPEG", "RLE", "JPEG 2000"],
)
def test_frame_that_no_decoder_takes_is_an_error(syntax, frame):
    with pytest.raises(ValueError, match="damaged DICOM"):
        read_dicom(dicom(FILM, syntax, frame=frame))


@pytest.mark.parametrize("syntax", ["JPEG lossless SV1", "JPEG-LS", "JPEG 2000"])
def test_truncated_frame_is_not_filled_up(in_process, syntax):
    frame = reader_frame(dicom(FILM, LOSSLESS[syntax]))
    with pytest.raises(ValueError, match="no end mark"):
        read_dicom(dicom(FILM, LOSSLESS[syntax], frame=frame[: len(frame) // 2]))


PADDINGS = {
    "zeros": b"\0" * 200,
    "fill bytes": b"\xff" * 20,
    "spaces": b" " * 50,
    "half of another image": b"\xff\xd8\xff\xe0\0\x10JFIF" * 9,
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    "syntax", ["RLE", "JPEG lossless", "JPEG lossless SV1", "JPEG-LS", "JPEG 2000", "JPEG baseline"]
)
def test_what_lies_behind_the_end_of_an_image_does_not_matter_and_does_not_make_half_an_image_whole(
    in_process, syntax, padding
):
    known = LOSSLESS | {"JPEG baseline": uid.JPEGBaseline8Bit}
    plain = dicom(FILM, known[syntax])
    frame = reader_frame(plain)
    film = read_dicom(dicom(FILM, known[syntax], frame=frame + PADDINGS[padding]))
    np.testing.assert_array_equal(film.image, read_dicom(plain).image)
    with pytest.raises(ValueError, match="damaged DICOM"):
        read_dicom(dicom(FILM, known[syntax], frame=frame[: len(frame) // 2] + PADDINGS[padding]))


def test_end_of_a_thumbnail_is_not_the_images(in_process):
    frame = reader_frame(dicom(FILM, uid.JPEGBaseline8Bit))
    thumbnail = cv2.imencode(".jpg", FILM[::8, ::8])[1].tobytes()
    frame = frame[:2] + b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail + frame[2:]
    assert read_dicom(dicom(FILM, uid.JPEGBaseline8Bit, frame=frame)).image.shape == FILM.shape
    with pytest.raises(ValueError, match="no end mark"):
        read_dicom(dicom(FILM, uid.JPEGBaseline8Bit, frame=frame[: -len(frame) // 4]))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("coded, said", [(16, 12), (14, 12), (12, 16), (12, 14), (10, 12)])
@pytest.mark.parametrize("syntax", ["JPEG lossless", "JPEG lossless SV1", "JPEG-LS", "JPEG 2000"])
def test_bits_of_the_compressed_image_count_where_bits_stored_says_others(in_process, syntax, coded, said, signed):
    values = stored_values(coded, signed)
    film = read_dicom(dicom(values, LOSSLESS[syntax], bits=coded, BitsStored=said, HighBit=said - 1))
    assert_gray(film.image, stretched(values.astype(float)))
    assert f"its image has {coded} bits, though BitsStored says {said}" in film.notes


@pytest.mark.parametrize(
    "run, reason",
    [
        (lambda *a, **k: subprocess.CompletedProcess(a, -11, b"", b""), "its decoder died .status -11"),
        (lambda *a, timeout, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", timeout)), "120 s"),
    ],
    ids=["crash", "hang"],
)
def test_death_of_the_decoder_is_an_error_of_its_file(monkeypatch, run, reason):
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=reason):
        read_dicom(dicom(FILM, uid.JPEGLosslessSV1))


def test_without_pydicom_the_error_says_what_to_install(monkeypatch):
    data = dicom(FILM)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match="pip install pydicom"):
        read_dicom(data)


@pytest.mark.parametrize("name", ["JPEG lossless SV1", "JPEG 2000"])
def test_without_a_decoder_the_error_says_what_to_install(in_process, monkeypatch, name):
    from pydicom.pixels import get_decoder

    data = dicom(FILM, LOSSLESS[name])
    monkeypatch.setattr(get_decoder(LOSSLESS[name]), "_available", {})
    with pytest.raises(ValueError, match="needs a decoder: pip install pydicom python-gdcm"):
        read_dicom(data)


def test_largest_film_fits_and_one_more_row_does_not():
    columns = 10_000
    with pytest.raises(ValueError, match="damaged DICOM"):  # its pixels aren't there
        read_dicom(dicom(FILM, Rows=MAX_PIXELS // columns, Columns=columns))
    with pytest.raises(ValueError, match="too large"):
        read_dicom(dicom(FILM, Rows=MAX_PIXELS // columns + 1, Columns=columns))


# --- files made to cost time or memory: each is refused in a line before it does
# ---------------------------------------

UNDEFINED = b"\xff" * 4
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0" + bytes(4)
SEQUENCE = b"\x28\0\x10\x30SQ\0\0"  # the VOI LUTs


def before_pixels(elements: bytes, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    data = dicom(FILM, syntax)
    at = data.index(b"\xe0\x7f\x10\0")
    return data[:at] + elements + data[at:]


def implicit(tag: bytes, value: bytes) -> bytes:
    return before_pixels(tag + len(value).to_bytes(4, "little") + value, uid.ImplicitVRLittleEndian)


def fragments(count: int) -> bytes:
    data = dicom(FILM, uid.RLELossless)
    return data[: data.index(b"\xe0\x7f\x10\0") + 12] + (ITEM + bytes(4)) * count + END


HOSTILE = {
    "window of 8 MB": (
        lambda: implicit(b"\x28\0\x50\x10", b"1\\" * (4 << 20)),
        r"its element \(0028,1050\) has 8,388,608 bytes, a film's up to 65,536",
    ),
    "character sets": (
        lambda: dicom(FILM, uid.ImplicitVRLittleEndian).replace(
            b"\x08\0\x16\0", b"\x08\0\x05\0\0\0\x10\0" + b"ISO_IR 6" * (1 << 17) + b"\x08\0\x16\0", 1
        ),
        r"\(0008,0005\) has 1,048,576 bytes",
    ),
    "LUT sequence of 8 MB": (
        lambda: before_pixels(SEQUENCE + (8 << 20).to_bytes(4, "little") + (ITEM + bytes(4)) * (1 << 20)),
        r"\(0028,3010\) has 8,388,608 bytes",
    ),
    "a thousand LUTs": (
        lambda: before_pixels(SEQUENCE + (8 * 1001).to_bytes(4, "little") + (ITEM + bytes(4)) * 1001),
        "more than 1,000 items",
    ),
    "LUTs without end": (
        lambda: before_pixels(SEQUENCE + UNDEFINED + (ITEM + bytes(4)) * 60_000 + END),
        "too many elements for a film",
    ),
    "a private sequence without end": (
        lambda: before_pixels(b"\x29\0\x10\x10SQ\0\0" + UNDEFINED + (ITEM + bytes(4)) * 60_000 + END),
        "too many elements",
    ),
    "a hundred thousand nested sequences": (
        lambda: before_pixels((SEQUENCE + UNDEFINED + ITEM + UNDEFINED) * 100_000),
        "its sequences lie too deep within each other",
    ),
    "tiny elements": (
        lambda: before_pixels(b"\x29\0\x10\x10\0\0\0\0" * 60_000, uid.ImplicitVRLittleEndian),
        "too many elements for a film",
    ),
    "nothing but zeros": (lambda: before_pixels(bytes(2 << 20)), "too many elements for a film"),
    "private bytes of unknown length": (
        lambda: before_pixels(b"\x29\0\x10\x10OB\0\0" + UNDEFINED + bytes(20 << 20) + END),
        "more than 16,777,216 bytes before its pixels",
    ),
    "private head": (
        lambda: (lambda d: d[:132] + b"\2\0\2\1OB\0\0" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20) + d[132:])(
            dicom(FILM)
        ),
        r"\(0002,0102\) has 1,048,576",
    ),
    "pixels of another film's size": (
        lambda: dicom(FILM, PixelData=bytes(2 << 20)),
        "more than 1,054,720 bytes of pixels, where 48 x 64 need 3,072",
    ),
    "a billion frames": (lambda: dicom(FILM, NumberOfFrames=10**9), "of 1000000000 frames"),
    "RLE of 1 GB": (
        lambda: dicom(FILM, uid.RLELossless, frame=b"\1\0\0\0\x40" + bytes(59) + b"\x81\0" * (8 << 20)),
        "more than 1,054,720 bytes of pixels",
    ),
    "a million pieces": (lambda: fragments(100_000), "too many elements for a film"),
    "empty pieces": (lambda: fragments(10_001), "more than 10,000 pieces"),
    "larger JPEG": (
        lambda: dicom(
            FILM, uid.JPEGBaseline8Bit, frame=cv2.imencode(".jpg", np.zeros((3000, 3000), np.uint8))[1].tobytes()
        ),
        "its image has 3000 x 3000 x 1 values, its tags say 48 x 64 x 1",
    ),
    "larger JPEG 2000": (
        lambda: dicom(
            FILM, uid.JPEG2000Lossless, frame=cv2.imencode(".jp2", np.zeros((900, 900), np.uint8))[1].tobytes()
        ),
        "its image has 900 x 900 x 1",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_file_that_would_cost_time_or_memory_is_refused_before_it_does(tmp_path, case):
    make, reason = HOSTILE[case]
    (tmp_path / "IM0001").write_bytes(make())
    used = time.process_time()
    with pytest.raises(ValueError, match=f"IM0001: .*{reason}") as error:
        files.read_image(tmp_path / "IM0001")
    assert time.process_time() - used < 5 and "\n" not in str(error.value)


def test_nested_sequences_are_refused_alike_wherever_the_recursion_ends():
    make, reason = HOSTILE["a hundred thousand nested sequences"]
    data = make()

    def called_from(depth):
        return called_from(depth - 1) if depth else read_dicom(data)

    for depth in range(12):  # of calls between two levels of sequences
        with pytest.raises(ValueError, match=reason):
            called_from(depth)


def test_what_is_not_needed_of_a_file_is_not_copied():
    private = b"\x29\0\x10\x10OB\0\0" + (64 << 20).to_bytes(4, "little") + bytes(64 << 20)
    data = before_pixels(private)
    read_dicom(data)  # imports
    tracemalloc.start()
    film = read_dicom(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_gray(film.image, FILM, 0)
    assert peak < 4 << 20


def test_lut_of_more_entries_than_16_bits_can_name_is_left_out():
    item = gray_lut()
    item.LUTData = bytes(3 << 17)
    item["LUTData"].VR = "OW"
    film = read_dicom(dicom(stored_values(12, False), bits=12, VOILUTSequence=Sequence([item])))
    assert_gray(film.image, stretched(stored_values(12, False) / 1.0))
    assert film.notes[0] == "VOI LUT ignored: empty or damaged"


def test_elements_of_a_few_thousand_are_read():
    assert_gray(read_dicom(before_pixels(b"\x29\0\x10\x10\0\0\0\0" * 5000, uid.ImplicitVRLittleEndian)).image, FILM, 0)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1], ids=["JPEG", "JPEG lossless"])
def test_what_a_decoder_says_of_damage_is_in_a_note(syntax):
    data = dicom(phantom(400, 320).image, syntax)
    assert not any(note.startswith("damaged") for note in read_dicom(data).notes)
    damaged = read_dicom(lost_in_the_middle(data, 0.6))
    assert damaged.notes[0].startswith("damaged: ") and "before marker" in damaged.notes[0]
