"""What is read of a DICOM file: the few elements that films need, bounded in number and length, and their pixels.

Whatever else a file holds is passed over without a copy; but pydicom parses sequences of undefined length to find their
end.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from io import BytesIO
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.tag import BaseTag

INSTALL = "pip install pydicom python-gdcm"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_CHARACTER_SET, _PIXELS = 0x00080005, (0x7FE00010, 0x7FE00009, 0x7FE00008)  # of whole numbers; the others of fractions
_UNDEFINED = 0xFFFFFFFF  # as a length
# An element takes one to three reads, one that is passed over too. A radiograph has some hundred of them, with a
# device's own thousands.
_MOST_READS = 50_000
_MOST_BYTES = 16 << 20  # of all that is read before the pixels
_MOST_VALUE = 1 << 16  # bytes of an element; where its type is spelt out, it can't have more
_MOST_TABLES = 2 << 20  # bytes of a sequence of LUTs, which have 131,072 each
_MOST_ITEMS = 1000  # of such a sequence
_ITEM = b"\xfe\xff\x00\xe0"


class NotAFilm(ValueError):
    """The file is as it should be, but not a film that is read here."""


class DicomFile(BytesIO):
    """A file's bytes, of which only so much can be read as films need.

    Attributes:
        data: the bytes.
        refusal: why no more can be read, empty where it can; pydicom makes another error of it within sequences.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self.data, self.refusal = data, ""
        self.allow(_MOST_BYTES, "before its pixels")

    def allow(self, most: int, where: str) -> None:
        """From now on so many bytes may be read; ``where`` says in which part of the file, for the error."""
        self._bytes, self._reads, self._where = most, _MOST_READS, f"more than {most:,} bytes {where}"

    def read(self, size: int | None = -1) -> bytes:
        """As any file's.

        Raises:
            ValueError: it is more than is allowed.
        """
        left = max(0, len(self.data) - self.tell())
        self._reads -= 1
        self._bytes -= left if size is None or size < 0 else min(size, left)
        if self._reads < 0:
            self.refusal = f"it has too many elements for a film: they take more than {_MOST_READS:,} reads"
        elif self._bytes < 0:
            self.refusal = f"it has {self._where}: no film"
        if self.refusal:
            raise ValueError(self.refusal)
        return super().read(size)


def import_pydicom() -> ModuleType:
    """pydicom, silent about what it tolerates, as is highdicom: what they say quotes names of patients.

    Raises:
        ImportError: it is not installed; the message says how to.
    """
    try:
        import pydicom
    except ImportError:
        raise ImportError(f"DICOM files need pydicom: {INSTALL}") from None
    for package in ("pydicom", "highdicom"):
        warnings.filterwarnings("ignore", module=package)
        logging.getLogger(package).setLevel(logging.CRITICAL)
    return pydicom


def read_tags(data: bytes, names: Iterable[str]) -> tuple[Dataset, DicomFile]:
    """Some elements of a file, those of its head and its SpecificCharacterSet, as pydicom reads them.

    Args:
        data: the whole file, with or without preamble.
        names: keywords of the elements.

    Returns:
        The elements, and the file, at its pixels where it has some.

    Raises:
        ValueError: damaged, deflated, or more than a film has.
        Exception: of a dozen kinds, by pydicom at a damaged file.
    """
    from pydicom import uid
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset, read_partial

    file = DicomFile(data)
    wanted: list[BaseTag | int] = [tag for tag in map(tag_for_keyword, names) if tag is not None]

    def at_pixels(tag: BaseTag, _: str | None, length: int) -> bool:
        _check_length(tag, length, tag.group == 2 or tag in (_CHARACTER_SET, *wanted))
        return tag in _PIXELS

    def after_head(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag.group != 2 or at_pixels(tag, vr, length)

    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(file, False, True, stop_when=after_head)
    if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:  # pydicom would inflate it without a limit
        raise NotAFilm("a deflated DICOM data set is not read: convert it (dcmconv +te)")
    file.seek(0)
    try:
        ds = read_partial(file, at_pixels, force=True, specific_tags=wanted)
    except (OSError, RecursionError) as error:
        if RecursionError in (type(error), type(error.__context__)):  # the second where it was to read an item's tag
            raise ValueError("its sequences lie too deep within each other") from None
        raise ValueError(file.refusal or str(error)) from None
    if not len(ds):  # as pydicom leaves it where an element ends beyond the file's end
        raise ValueError("it is truncated, or no data set follows its head")
    for element in ds.values():
        if isinstance(element.value, bytes) and element.value.count(_ITEM) > _MOST_ITEMS:
            raise ValueError(f"it has a sequence of more than {_MOST_ITEMS:,} items")
    if "TransferSyntaxUID" not in ds.file_meta:
        implicit, little = ds.original_encoding
        if implicit:
            ds.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
        elif little:
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        else:
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    return ds, file


def has_pixels(ds: Dataset, file: DicomFile) -> bool:
    """Says whether a file that :func:`read_tags` has read goes on with an image."""
    little = ds.original_encoding[1]
    return file.data[file.tell() : file.tell() + 4] == (b"\xe0\x7f\x10\0" if little else b"\x7f\xe0\0\x10")


def read_pixels(ds: Dataset, file: DicomFile) -> None:
    """Adds the pixel data of a film, which has one frame and a valid size, to its elements.

    Raises:
        ValueError: truncated, or much more than the film's size needs.
    """
    from pydicom.filereader import read_dataset

    need = ds.Rows * ds.Columns * ds.SamplesPerPixel * ds.BitsAllocated // 8
    file.allow(2 * need + (1 << 20), f"of pixels, where {ds.Columns} x {ds.Rows} need {need:,}")
    implicit, little = ds.original_encoding
    found = read_dataset(
        file, bool(implicit), bool(little), specific_tags=[_PIXELS[0]], stop_when=lambda tag, _, __: tag != _PIXELS[0]
    )
    if _PIXELS[0] not in found:  # as pydicom leaves it where an element ends beyond the file's end
        raise ValueError("it is truncated")
    ds[_PIXELS[0]] = found[_PIXELS[0]]


def _check_length(tag: BaseTag, length: int, wanted: bool) -> None:
    """Raises ValueError where an element that would be read is longer than any film's."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    if not wanted or length == _UNDEFINED:
        return
    most = _MOST_TABLES if dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ" else _MOST_VALUE
    if length > most:
        raise ValueError(f"its element {tag} has {length:,} bytes, a film's up to {most:,}")
