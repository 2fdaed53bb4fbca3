"""DICOM files made from arrays, by pydicom and the encoders of the development requirements."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

LOSSLESS = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}


def dicom(
    pixels: np.ndarray,
    syntax: str = uid.ExplicitVRLittleEndian,
    *,
    bits: int | None = None,
    photometric: str = "MONOCHROME2",
    frame: bytes | None = None,
    preamble: bool = True,
    elements: Dataset | None = None,
    **tags: object,
) -> bytes:
    """A file's bytes.

    Args:
        pixels: the stored values, ``(H, W)`` of (u)int8 or (u)int16, or ``(H, W, 3)`` of uint8.
        syntax: the transfer syntax, which says how they are encoded.
        bits: BitsStored, those of the type if None.
        photometric: its interpretation.
        frame: the encoded pixels, where they are encoded already.
        preamble: False leaves out the preamble, "DICM" and the file meta information.
        elements: added as they are, with their own VR.
        tags: elements to set by their keywords; None takes one out.
    """
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3.4"
    ds.Modality = "DX"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape[:2], 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    encapsulated = ds.file_meta.TransferSyntaxUID.is_encapsulated
    if encapsulated:
        frame = frame or _encode(pixels, ds)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    ds.PixelData = encapsulate([frame]) if encapsulated else pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    ds["PixelData"].VR = "OB" if encapsulated or ds.BitsAllocated == 8 else "OW"
    for name, value in tags.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    ds.update(elements or {})
    file = BytesIO()
    if preamble:
        ds.save_as(file, enforce_file_format=True)
    else:
        del ds.file_meta
        ds.save_as(file, implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=True)
    return file.getvalue()


def gray_lut(values: np.ndarray | None = None, first: int = 0, bits: int = 16) -> Dataset:
    """An item of a Modality or VOI LUT sequence: what is shown for the values from ``first`` on."""
    values = np.arange(4096) if values is None else values
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(values), first, bits], [int(value) for value in values]
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    return item


def _encode(pixels: np.ndarray, ds: Dataset) -> bytes:
    from imagecodecs import ljpeg_encode
    from pydicom.pixels import get_encoder

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax == uid.JPEGBaseline8Bit:
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        words = pixels.view(f"u{pixels.dtype.itemsize}") & np.array(
            (1 << ds.BitsStored) - 1, f"u{pixels.dtype.itemsize}"
        )
        return ljpeg_encode(words, bitspersample=ds.BitsStored)
    return get_encoder(syntax).encode(
        pixels,
        rows=ds.Rows,
        columns=ds.Columns,
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=ds.BitsAllocated,
        bits_stored=ds.BitsStored,
        pixel_representation=ds.PixelRepresentation,
        photometric_interpretation=ds.PhotometricInterpretation,
    )
