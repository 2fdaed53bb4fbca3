"""Masks as DICOM segmentation objects that refer to their radiograph.

Segments are the patient's lungs: the right one is 1, on the image's left; the left one is 2.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import write_bytes
from ..pictures.decode import unpack
from ..pictures.header import HEAD, check_size, is_dicom
from .tags import import_pydicom, read_tags
from .windows import joined, listed

if TYPE_CHECKING:
    from pydicom import Dataset

_LUNGS = {"right lung": "3341006", "left lung": "44029006"}  # SNOMED CT, as DICOM PS3.16 prefers
# What a segmentation object has of its film's patient and study. The first may be empty, by the standard (type 2) and
# in many a film that was made anonymous; the others may be missing.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_MAY_BE_MISSING = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "PatientOrientation",
)
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_VALIDATED = ("AS", "CS", "DA", "DS", "TM")  # VRs whose form counts; texts of any length are handed on as they are
_ALLOWED = {"PatientSex": ("F", "M", "O"), "LossyImageCompression": ("00", "01")}
_UID = r"[0-9.]{1,64}"  # leniently: one with a leading zero is no valid one, but does name a film


def write_dicom_seg(
    path: str | Path, lungs: tuple[np.ndarray, np.ndarray], source: str | Path, *, version: str
) -> tuple[str, ...]:
    """Writes a DICOM segmentation object of a film that is a DICOM file: a segment per lung, pixel on pixel.

    It carries the film's patient and study, in a series of its own, and refers to the film's instance. An element of
    these that no valid object can hold (a birth date "ANON") is left empty. A radiograph is a projection: it has no
    place and no plane in the patient, so there is no frame of reference and no spacing either, and a viewer lays the
    segments on the film that they refer to. A lung that is missing is a segment without pixels.

    Args:
        path: file to write.
        lungs: right and left, ``uint8 (H, W)`` in {0, 1}, of the film's rows and columns.
        source: the film's file.
        version: of the weights, as the object's AlgorithmVersion.

    Returns:
        A note on the elements that were left empty, if any.

    Raises:
        ValueError: the film is no DICOM file, or lacks what such an object has to refer to.
        OSError: a file can't be read or written.
        Exception: of a dozen kinds, by pydicom at a damaged file.

    Source: DICOM PS3.3 A.51, Segmentation IOD; C.7.4.1 is needed only where no source image is referred to.
    """
    import_pydicom()
    film, kind, emptied = _read_tags(source, lungs[0].shape)
    try:
        data = _segmentation(film, kind, lungs, version)
    except MemoryError:
        raise
    except Exception as error:  # of any kind, whose text may quote the patient's name
        raise ValueError(f"highdicom can't take the film's elements ({type(error).__name__})") from None
    write_bytes(path, data)
    if not emptied:
        return ()
    return (f"DICOM-SEG without {', '.join(emptied)}: not valid in the film",)


def _segmentation(film: Dataset, kind: str, lungs: tuple[np.ndarray, np.ndarray], version: str) -> bytes:
    """The object's bytes; ``film`` and ``kind`` are of :func:`_read_tags`."""
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    algorithm = hd.AlgorithmIdentificationSequence(
        "unet-lung", family=codes.cid7162.ArtificialIntelligence, version=version
    )
    segments = [
        SegmentDescription(
            number,
            label,
            codes.cid7150.AnatomicalStructure,
            Code(code, "SCT", label.capitalize()),
            SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
        )
        for number, (label, code) in enumerate(_LUNGS.items(), 1)
    ]
    # Frames without a pixel stay: both segments are told of, and an object needs a frame.
    segmentation = Segmentation(
        [film],
        np.stack(lungs, -1)[None],
        SegmentationTypeValues.BINARY,
        segments,
        hd.UID(),
        300,
        hd.UID(),
        1,
        "unet-lung",
        "unet-lung",
        version,
        "none",
        omit_empty_frames=False,
        content_label="LUNGS",
        content_description="Lungs of a chest radiograph",
    )
    segmentation.SeriesDescription = "Lungs"
    # Required, if empty, where there is no place in the patient.
    segmentation.PatientOrientation = film.get("PatientOrientation")
    for element in segmentation.iterall():
        if element.keyword == "ReferencedSOPClassUID":
            element.value = kind
    buffer = BytesIO()
    segmentation.save_as(buffer)
    return buffer.getvalue()


def _read_tags(source: str | Path, shape: tuple[int, int]) -> tuple[Dataset, str, list[str]]:
    """What a segmentation object copies and refers to, its film's SOP class, and the names of what can't be copied."""
    from pydicom import Dataset, uid

    data = unpack(Path(source).read_bytes())
    if not is_dicom(data[:HEAD]):
        raise ValueError("the film is no DICOM file")
    film, _ = read_tags(data, _REQUIRED + _MAY_BE_EMPTY + _MAY_BE_MISSING)
    uids = {name: joined(film, name, "\\") for name in _REQUIRED}
    missing = [name for name, text in uids.items() if not re.fullmatch(_UID, text)]
    if missing:
        raise ValueError(f"the film has no valid {' and no valid '.join(missing)}")
    tags, emptied = Dataset(), []
    tags.Rows, tags.Columns = shape
    tags.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, whatever the film has; pydicom decodes that
    for name, text in uids.items():
        setattr(tags, name, text)
    # highdicom copies the elements that it knows a class to have.
    tags.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    for name in _MAY_BE_EMPTY + _MAY_BE_MISSING:
        try:
            value = _usable(film, name)
        except Exception:  # pydicom meets a damaged element with exceptions of a dozen kinds
            value = None
            emptied.append(name)
        if value is not None or name in _MAY_BE_EMPTY:
            setattr(tags, name, value)
    return tags, uids["SOPClassUID"], emptied


def _usable(film: Dataset, name: str) -> str | list[str] | None:
    """An element's text, or texts, where a valid object can hold it; None where it is missing or empty.

    Raises:
        Exception: of a dozen kinds, where none can.
    """
    from pydicom.charset import python_encoding
    from pydicom.datadict import dictionary_VM, dictionary_VR
    from pydicom.valuerep import PersonName

    values = listed(film, name)
    texts = [str(value) for value in values]
    if not any(texts):
        return None
    number = dictionary_VM(name)  # of values: "1", "2", "1-n"
    if number.isdigit() and len(values) != int(number):
        raise TypeError(f"{name} has {len(values)} values")
    if not all(isinstance(value, (str, PersonName, float)) for value in values):
        raise TypeError(f"{name} is not text")
    known = all(str(charset) in python_encoding for charset in listed(film, "SpecificCharacterSet"))
    for text in texts:
        text.encode("utf-8" if known else "ascii")
        _check_text(text, dictionary_VR(name))
    if name in _ALLOWED and texts[0] not in _ALLOWED[name]:
        raise ValueError(f"{name} is {texts}")
    return texts[0] if number == "1" else texts


def _check_text(text: str, vr: str) -> None:
    """Raises ValueError unless a text is one of its value representation."""
    from pydicom import config
    from pydicom.valuerep import DA, TM, validate_value

    if vr in _VALIDATED:
        validate_value(vr, text, config.RAISE)
    if vr == "DA":
        DA(text)  # no 30th of February, and no span of days
    if vr == "TM":
        TM(text)
    if "\ufffd" in text or "\\" in text:
        raise ValueError("it was written in another character set, or is two texts")


def read_seg(data: bytes) -> np.ndarray:
    """The lungs of a DICOM segmentation, ``uint8 (H, W)`` in {0, 1}: the segments called so, or all if none is.

    Raises:
        ImportError: pydicom is missing.
        ValueError: it is no segmentation, is damaged, or is larger than a film.
    """
    pydicom = import_pydicom()
    try:
        ds = pydicom.dcmread(BytesIO(data))
        segments = ds.SegmentSequence
        frames, rows, columns = int(ds.get("NumberOfFrames", 1)), int(ds.Rows), int(ds.Columns)
        check_size(rows, columns, frames)
        pixels = ds.pixel_array.reshape(frames, rows, columns)
        shown = [
            f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in ds.PerFrameFunctionalGroupsSequence
        ]
        lungs = {s.SegmentNumber for s in segments if "lung" in s.SegmentLabel.lower()}
        half = int(ds.get("MaximumFractionalValue", 1)) / 2  # a binary segment is 0 or 1
    except Exception as error:  # pydicom meets damage with exceptions of a dozen kinds
        raise ValueError(f"no DICOM segmentation ({type(error).__name__}: {error})") from None
    chosen = [number in lungs or not lungs for number in shown]
    return (pixels[chosen] > half).any(axis=0).astype(np.uint8)
