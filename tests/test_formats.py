"""dicom.seg, dicom.coco: masks as pycocotools, a Parquet reader, pydicom and highdicom read them back."""

import errno
import gzip
import logging
import subprocess
import warnings
from io import BytesIO
from shutil import which

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from dicoms import dicom
from phantoms import phantom
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.uid import DigitalXRayImageStorageForPresentation as DX
from test_infer import DarkIsLung

from kaggle_utils import image as files
from kaggle_utils import predictions
from kaggle_utils.dicom.coco import annotate, write_coco
from kaggle_utils.dicom.seg import write_dicom_seg
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.metrics import confusion, overlap
from kaggle_utils.model import UNet, save_weights
from kaggle_utils.predictions import FORMATS, check_formats, predict
from kaggle_utils.quality.flags import REASONS
from kaggle_utils.quality.measurements import split_lungs
from kaggle_utils.synthetic.model import AppearanceModel

STUDY = {
    "SOPInstanceUID": "1.2.826.1.7",
    "StudyInstanceUID": "1.2.826.1.1",
    "SeriesInstanceUID": "1.2.826.1.2",
    "PatientID": "none",
    "PatientName": "Nobody^Phantom",
    "ImagerPixelSpacing": [0.2, 0.2],
    "FrameOfReferenceUID": "1.2.826.1.3",
}


@pytest.fixture
def segmenter(tmp_path) -> LungSegmenter:
    fit = {"bias": 3.6, "features": {name: [0.0, 1.0] for name in REASONS}}
    save_weights(
        tmp_path / "w.safetensors",
        UNet(base_channels=2, depth=2),
        {"size": 32, "sources": ["montgomery"], "quality": fit},
    )
    segmenter = LungSegmenter(tmp_path / "w.safetensors", device="cpu")
    segmenter.model, segmenter.dtype = DarkIsLung(), None
    return segmenter


@pytest.fixture
def film_file(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom(phantom(50, 70).image, **STUDY))
    return path


# --- COCO ------------------------------------------------------------------------------------------------------------


def test_coco_is_read_back_by_pycocotools_as_a_data_set(tmp_path):
    pytest.importorskip("pycocotools")
    parquet = pytest.importorskip("pyarrow.parquet")
    from pycocotools.coco import COCO

    pair, other = phantom(50, 70), phantom(33, 47, 1)
    empty = np.zeros_like(other.right)
    rows = (
        annotate((pair.right, pair.left), "a", "x/a.png")
        + annotate((empty, empty), "b", "x/b.png")
        + annotate((empty, other.left), "c", "c.png")
    )
    write_coco(tmp_path / "coco.parquet", rows)
    found = parquet.read_table(tmp_path / "coco.parquet").to_pylist()
    assert [(r["id"], r["image_id"], r["name"], r["category_id"], r["category"]) for r in found] == [
        (1, 1, "a", 1, "right lung"),
        (2, 1, "a", 2, "left lung"),
        (3, 2, "c", 2, "left lung"),
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": r["image_id"], "height": r["height"], "width": r["width"]} for r in found],
        "annotations": found,
        "categories": [{"id": 1, "name": "right lung"}, {"id": 2, "name": "left lung"}],
    }
    coco.createIndex()
    for row, lung in zip(found, (pair.right, pair.left, other.left)):
        np.testing.assert_array_equal(coco.annToMask(row), lung)
        ys, xs = np.nonzero(lung)
        assert row["area"] == lung.sum() and row["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]


def test_coco_opens_in_pandas_and_its_rows_are_run_lengths(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    pytest.importorskip("pyarrow")
    film = phantom(50, 70)
    write_coco(tmp_path / "coco.parquet", annotate((film.right, film.left), "a", "a.png"))
    for row, lung in zip(pd.read_parquet(tmp_path / "coco.parquet").itertuples(), (film.right, film.left), strict=True):
        np.testing.assert_array_equal(coco.decode(row.segmentation), lung)


def test_no_lung_at_all_is_a_table_without_rows(tmp_path):
    pytest.importorskip("pyarrow")
    write_coco(tmp_path / "coco.parquet", [])
    table = pd.read_parquet(tmp_path / "coco.parquet")
    assert not len(table) and "segmentation" in table


# --- DICOM-SEG -------------------------------------------------------------------------------------------------------


def test_dicom_seg_has_the_lungs_pixels_and_refers_to_its_film(tmp_path, film_file):
    seg = pytest.importorskip("highdicom.seg")
    film = phantom(50, 70)
    write_dicom_seg(tmp_path / "seg.dcm", (film.right, film.left), film_file, version="7")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(ds.pixel_array, [film.right, film.left])
    assert (ds.Modality, ds.SegmentationType, ds.Rows, ds.Columns, ds.SegmentsOverlap) == (
        "SEG",
        "BINARY",
        50,
        70,
        "NO",
    )
    assert (ds.StudyInstanceUID, ds.PatientID, str(ds.PatientName)) == (
        STUDY["StudyInstanceUID"],
        "none",
        "Nobody^Phantom",
    )
    assert ds.SeriesInstanceUID != STUDY["SeriesInstanceUID"] and ds.SOPInstanceUID != STUDY["SOPInstanceUID"]
    assert [
        (s.SegmentNumber, s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeValue, s.SegmentAlgorithmType)
        for s in ds.SegmentSequence
    ] == [(1, "right lung", "3341006", "AUTOMATIC"), (2, "left lung", "44029006", "AUTOMATIC")]
    for frame in ds.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert (source.ReferencedSOPInstanceUID, source.SpatialLocationsPreserved) == (STUDY["SOPInstanceUID"], "YES")
    assert ds.ReferencedSeriesSequence[0].SeriesInstanceUID == STUDY["SeriesInstanceUID"]
    read = seg.segread(tmp_path / "seg.dcm").get_pixels_by_source_instance([STUDY["SOPInstanceUID"]])
    np.testing.assert_array_equal(np.moveaxis(read[0], -1, 0), [film.right, film.left])


def test_a_projection_is_given_no_place_in_the_patient(tmp_path, film_file):
    pytest.importorskip("highdicom")
    film = phantom(50, 70)
    write_dicom_seg(tmp_path / "seg.dcm", (film.right, film.left), film_file, version="7")
    tags = {element.keyword for element in pydicom.dcmread(tmp_path / "seg.dcm").iterall()}
    assert not tags & {
        "FrameOfReferenceUID",
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelSpacing",
    }


def test_dicom_seg_has_every_attribute_that_the_standard_asks_for(tmp_path, film_file):
    pytest.importorskip("highdicom")
    if not which("dciodvfy"):
        pytest.skip("dciodvfy is not installed (Debian's dicom3tools)")
    film = phantom(50, 70)
    write_dicom_seg(tmp_path / "seg.dcm", (film.right, film.left), film_file, version="7")
    (tmp_path / "odd.dcm").write_bytes(
        dicom(
            film.image,
            **STUDY,
            SpecificCharacterSet=["", "ISO 2022 IR 87"],
            PatientSex="f",
            StudyTime="10:10:10",
            PatientOrientation=["R", "F"],
        )
    )
    write_dicom_seg(tmp_path / "odd_seg.dcm", (film.right, film.left), tmp_path / "odd.dcm", version="7")
    for name in ("seg", "odd_seg"):
        said = subprocess.run(["dciodvfy", tmp_path / f"{name}.dcm"], capture_output=True, text=True).stderr
        assert "Segmentation" in said and "Error" not in said


def test_a_lung_that_is_missing_is_a_segment_without_pixels(tmp_path, film_file):
    pytest.importorskip("highdicom")
    film = phantom(50, 70)
    empty = np.zeros_like(film.left)
    for lungs in ((film.right, empty), (empty, empty)):
        write_dicom_seg(tmp_path / "seg.dcm", lungs, film_file, version="7")
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
        np.testing.assert_array_equal(ds.pixel_array, lungs)
        assert len(ds.SegmentSequence) == 2


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x89PNG and so on", "no DICOM file"),
        (dicom(phantom().image, SeriesInstanceUID="1.2.3"), "the film has no valid StudyInstanceUID"),
        (
            dicom(phantom().image, preamble=False),
            "the film has no valid StudyInstanceUID and no valid SeriesInstanceUID",
        ),
    ],
    ids=["PNG", "no study", "no preamble"],
)
def test_film_that_cannot_be_referred_to_says_why(tmp_path, data, message):
    pytest.importorskip("highdicom")
    (tmp_path / "film").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        write_dicom_seg(tmp_path / "seg.dcm", (phantom().right, phantom().left), tmp_path / "film", version="7")
    assert not (tmp_path / "seg.dcm").exists()


# --- predict ---------------------------------------------------------------------------------------------------------


def test_predict_writes_the_formats_that_it_is_asked_for(tmp_path, segmenter, film_file):
    coco = pytest.importorskip("pycocotools.mask")
    pytest.importorskip("pyarrow"), pytest.importorskip("highdicom")
    files.write_image(tmp_path / "plain.png", phantom(64, 48, 1).image)
    (tmp_path / "broken.png").write_bytes(b"")
    out = tmp_path / "out"
    table = predict(
        [film_file, tmp_path / "plain.png", tmp_path / "broken.png"],
        out,
        segmenter,
        force=True,
        formats=("png", "coco", "dicom-seg"),
    )
    table = table.set_index("name")
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*") if p.is_file()) == [
        "coco.parquet",
        "contact.png",
        "dicom-seg/film.dcm",
        "masks/film.png",
        "masks/plain.png",
        "measurements.csv",
        "overlays/film.png",
        "overlays/plain.png",
        "predictions.csv",
        "predictions.jsonl",
    ]
    assert (
        table.notes["plain"].endswith("; no DICOM-SEG: the film is no DICOM file")
        and "DICOM-SEG" not in table.notes["film"]
    )
    annotations = pd.read_parquet(out / "coco.parquet")
    for name in ("film", "plain"):
        lungs = split_lungs(files.read_mask(out / "masks" / f"{name}.png"))
        rows = annotations[annotations.name == name]
        np.testing.assert_array_equal([coco.decode(s) for s in rows.segmentation], lungs)
        assert rows.category_id.tolist() == [1, 2]
    ds = pydicom.dcmread(out / "dicom-seg" / "film.dcm")
    np.testing.assert_array_equal(ds.pixel_array, split_lungs(files.read_mask(out / "masks" / "film.png")))
    assert (
        ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == segmenter.version != ""
    )


def test_film_that_lay_on_its_side_has_its_lungs_where_they_lie_and_by_their_right_names(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    pytest.importorskip("pyarrow"), pytest.importorskip("highdicom")
    film = AppearanceModel.load().film(1, 2, size=256, tb=0)
    segmenter = LungSegmenter(device="cpu")
    (tmp_path / "upright.dcm").write_bytes(dicom(film.image, **STUDY))
    (tmp_path / "turned.dcm").write_bytes(dicom(np.rot90(film.image), **STUDY | {"SOPInstanceUID": "1.2.826.1.8"}))
    table = predict([tmp_path], tmp_path / "out", segmenter, formats=("coco", "dicom-seg")).set_index("name")
    assert "lay on its side" in table.notes["turned"]
    lungs = {
        name: pydicom.dcmread(tmp_path / "out/dicom-seg" / f"{name}.dcm").pixel_array for name in ("upright", "turned")
    }
    np.testing.assert_array_equal(lungs["turned"], np.rot90(lungs["upright"], axes=(1, 2)))
    assert overlap(confusion(lungs["upright"][0], film.right))["dice"] > 0.9  # segment 1 is the patient's right lung
    rows = pd.read_parquet(tmp_path / "out/coco.parquet").query("name == 'turned'")
    np.testing.assert_array_equal([coco.decode(s) for s in rows.segmentation], lungs["turned"])


LIES = {
    "L\\F": files.Lie(),
    "H\\L": files.Lie(False, 1),
    "R\\H": files.Lie(False, 2),
    "F\\R": files.Lie(False, 3),
    "R\\F": files.Lie(True),
    "F\\L": files.Lie(True, 1),
    "L\\H": files.Lie(True, 2),
    "H\\R": files.Lie(True, 3),
}


@pytest.fixture(scope="module")
def chest() -> tuple[np.ndarray, np.ndarray]:
    """A film narrower than it is high, whose heart is plainly on the left, and its right lung."""
    film = AppearanceModel.load().film(5, 9, size=256, tb=0)
    return film.image[:, 6:-10], film.right[:, 6:-10]


def test_film_of_any_patient_orientation_has_its_masks_as_it_lies_and_its_lungs_by_their_right_names(tmp_path, chest):
    coco = pytest.importorskip("pycocotools.mask")
    pytest.importorskip("pyarrow"), pytest.importorskip("highdicom")
    image, right = chest
    for orientation, lie in LIES.items():
        tags = STUDY | {
            "PixelSpacing": [0.7, 1.4][:: -1 if lie.quarters % 2 else 1],
            "PatientOrientation": orientation.split("\\"),
        }
        (tmp_path / f"{orientation.replace(chr(92), '')}.dcm").write_bytes(dicom(lie.undo(image), **tags))
    out = tmp_path / "out"
    table = predict([tmp_path], out, LungSegmenter(device="cpu"), formats=("png", "coco", "dicom-seg")).set_index(
        "name"
    )
    plain = files.read_mask(out / "masks" / "LF.png")
    lungs = split_lungs(plain)
    assert overlap(confusion(lungs[0], right))["dice"] > 0.9
    annotations = pd.read_parquet(out / "coco.parquet").set_index(["name", "category"])
    measured = pd.read_csv(out / "measurements.csv").set_index("name")
    for orientation, lie in LIES.items():
        name = orientation.replace("\\", "")
        np.testing.assert_array_equal(files.read_mask(out / "masks" / f"{name}.png"), lie.undo(plain))
        expected = [lie.undo(lung) for lung in lungs]
        np.testing.assert_array_equal(
            [coco.decode(annotations.segmentation[name, f"{side} lung"]) for side in ("right", "left")], expected
        )
        ds = pydicom.dcmread(out / "dicom-seg" / f"{name}.dcm")
        np.testing.assert_array_equal(ds.pixel_array, expected)
        assert [(s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for s in ds.SegmentSequence] == [
            ("right lung", "Right lung"),
            ("left lung", "Left lung"),
        ]
        assert list(ds.PatientOrientation) == orientation.split("\\")
        pd.testing.assert_series_equal(measured.loc[name], measured.loc["LF"], check_names=False)
        notes = table.notes[name].split("; ")
        assert (
            (f"stored {lie} (PatientOrientation {orientation})" in notes)
            == ("put right as its file says" in notes)
            == (name != "LF")
        )
    assert "mirrored and upside down" in table.notes["LH"] and measured.right_width_mm["LF"] == pytest.approx(
        1.4 * measured.right_width_px["LF"]
    )


@pytest.mark.parametrize(
    "said, lies, written, note",
    [
        (None, files.Lie(True), False, "mirrored, or the heart is on the right"),  # only the network suspects it
        (["L", "F"], files.Lie(True), False, "mirrored, or the heart is on the right"),
        (["R", "F"], files.Lie(), False, "mirrored, or the heart is on the right"),
        (["L", "F"], files.Lie(False, 2), True, "upside down: turned by 180°"),
        (["R", "H"], files.Lie(), True, "doesn't lie as its file says"),
        (["F", "R"], files.Lie(False, 2), True, "doesn't lie as its file says"),
        (
            ["L", "H"],
            files.Lie(),
            False,
            "doesn't lie as its file says",
        ),  # of a tag that is wrong on one thing, the other can't be taken
        (["P", "F"], files.Lie(), True, "not that of a frontal film"),
        (["L"], files.Lie(), True, "not that of a frontal film"),
    ],
)
def test_what_is_seen_of_a_films_lie_counts_and_its_sides_are_named_only_where_they_are_certain(
    tmp_path, chest, said, lies, written, note
):
    pytest.importorskip("highdicom")
    image, right = chest
    (tmp_path / "film.dcm").write_bytes(
        dicom(lies.undo(image), **STUDY, **{"PatientOrientation": said} if said else {})
    )
    table = predict([tmp_path / "film.dcm"], tmp_path / "out", LungSegmenter(device="cpu"), formats=("dicom-seg",))
    assert note in table.notes[0] and (tmp_path / "out/dicom-seg/film.dcm").exists() == written
    assert ("no DICOM-SEG: which of the lungs is the right one is not certain" in table.notes[0]) != written
    if written:
        found = pydicom.dcmread(tmp_path / "out/dicom-seg/film.dcm").pixel_array[0]
        assert overlap(confusion(found, lies.undo(right)))["dice"] > 0.9


ODD = {  # elements of a film, and those that its segmentation object is without
    "Japanese": (
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"},
        "",
    ),
    "Japanese, half width": (
        {
            "SpecificCharacterSet": ["ISO 2022 IR 13", "ISO 2022 IR 87"],
            "PatientName": "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
        },
        "",
    ),
    "Korean": ({"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞=홍^길동"}, ""),
    "Latin 1": ({"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"}, ""),
    "character set of no one": ({"SpecificCharacterSet": "FOO", "PatientName": "A^B"}, ""),
    "birth date ANON": ({"PatientBirthDate": "ANON"}, "PatientBirthDate"),
    "birth date of zeros": ({"PatientBirthDate": "00000000"}, "PatientBirthDate"),
    "30th of February": ({"PatientBirthDate": "20000230"}, "PatientBirthDate"),
    "date with dashes": ({"StudyDate": "2020-01-01"}, "StudyDate"),
    "span of dates": ({"StudyDate": "20200101-20210101"}, "StudyDate"),
    "time with colons": ({"StudyTime": "10:10:10"}, "StudyTime"),
    "25 o'clock": ({"StudyTime": "250000", "StudyDate": "20200101"}, "StudyTime"),
    "sex in lower case": ({"PatientSex": "f"}, "PatientSex"),
    "sex of no kind": ({"PatientSex": "UNKNOWN"}, "PatientSex"),
    "two sexes": ({"PatientSex": ["M", "F"]}, "PatientSex"),
    "name as a number": ({"PatientName": ("US", 7)}, "PatientName"),
    "name as bytes": ({"PatientName": ("OB", b"Nobody")}, "PatientName"),
    "name as a text": ({"PatientName": ("LO", "Nobody^Phantom")}, ""),
    "name of two": ({"PatientName": ("LO", ["A^B", "C^D"])}, "PatientName"),
    "identifier as a list": ({"PatientID": ["a", "b"]}, "PatientID"),
    "referring physician as a sequence": (
        {"ReferringPhysicianName": ("SQ", [pydicom.dcmread(BytesIO(dicom(phantom().image)))])},
        "ReferringPhysicianName",
    ),
    "age in words": ({"PatientAge": "forty"}, "PatientAge"),
    "one direction": ({"PatientOrientation": "L"}, "PatientOrientation"),
    "unknown class": ({"SOPClassUID": "1.2.3.4.5.6"}, ""),
    "UID with a leading zero": ({"StudyInstanceUID": "1.02.3"}, ""),
    "compression of no kind": ({"LossyImageCompression": "YES"}, "LossyImageCompression"),
    "lossy": (
        {
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "8.5",
            "LossyImageCompressionMethod": "ISO_10918_1",
        },
        "",
    ),
    "place in the patient": ({"ImageOrientationPatient": "1", "FrameOfReferenceUID": "ANON"}, ""),
}


@pytest.mark.parametrize("case", ODD)
def test_element_that_no_valid_object_can_hold_is_left_empty_and_named(tmp_path, case):
    pytest.importorskip("highdicom")
    tags, emptied = ODD[case]
    film, odd = phantom(50, 70), Dataset()
    with pydicom.config.disable_value_validation():
        for name, value in tags.items():
            vr, value = value if isinstance(value, tuple) else (dictionary_VR(name), value)
            odd.add_new(name, vr, value)
        (tmp_path / "film.dcm").write_bytes(
            dicom(film.image, **{k: v for k, v in STUDY.items() if k not in tags}, elements=odd)
        )
    notes = write_dicom_seg(tmp_path / "seg.dcm", (film.right, film.left), tmp_path / "film.dcm", version="7")
    assert notes == ((f"DICOM-SEG without {emptied}: not valid in the film",) if emptied else ())
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(ds.pixel_array, [film.right, film.left])
    for name, expected in (STUDY | {"SOPClassUID": DX} | tags).items():
        expected = expected[1] if isinstance(expected, tuple) else expected
        if name in ("SOPInstanceUID", "SOPClassUID"):
            source = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
            assert source[f"Referenced{name}"].value == expected
        elif name == emptied:
            assert not ds.get(name) or name == "LossyImageCompression"
        elif name in ("PatientName", "StudyInstanceUID", "StudyDate", "LossyImageCompression"):
            assert str(ds[name].value) == expected


LOUD = {
    "one component": {"PatientName": "SECRET"},
    "long": {"PatientName": "SECRET^" + "X" * 200, "PatientID": "SECRET" * 20},
    "no dates": {"PatientBirthDate": "SECRET", "StudyDate": "SECRET", "StudyTime": "SECRET"},
    "no age": {"PatientAge": "SECRET", "PatientSex": "SECRET"},
    "long texts": {
        name: "SECRET" * 20
        for name in ("AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName", "IssuerOfPatientID")
    },
    "another character set": {"SpecificCharacterSet": "SECRET"},
    "not in its character set": {"PatientName": "SECRET\u00e4", "SpecificCharacterSet": "ISO_IR 100"},
    "backslash": {"PatientName": ["SECRET", "SECRET"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", LOUD)
def test_nothing_of_the_patient_is_printed_or_logged(tmp_path, segmenter, capfd, caplog, case):
    pytest.importorskip("highdicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "film.dcm").write_bytes(dicom(phantom(80, 80).image, **STUDY | LOUD[case]))
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as said, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        table = predict([tmp_path / "film.dcm"], tmp_path / "out", segmenter, force=True, formats=("png", "dicom-seg"))
    assert table.error[0] == ""
    quoted = [*(str(warning.message) for warning in said), caplog.text, *capfd.readouterr()]
    assert not [text for text in quoted if "SECRET" in text]
    assert "SECRET" not in table.notes[0]


def test_what_highdicom_refuses_is_a_note_without_its_text(tmp_path, segmenter, film_file, monkeypatch):
    highdicom_seg = pytest.importorskip("highdicom.seg")

    def refuses(*args, **kwargs):
        raise ValueError("no such patient: Nobody^Phantom")

    monkeypatch.setattr(highdicom_seg, "Segmentation", refuses)
    notes = predict([film_file], tmp_path / "out", segmenter, force=True, formats=("png", "dicom-seg")).notes[0]
    assert "no DICOM-SEG: highdicom can't take the film's elements (ValueError)" in notes and "Nobody" not in notes


@pytest.mark.parametrize(
    "spacing", [(0, 0), ("nan", "nan"), (-1, -1), ("1e9", "1e9"), (0.2, 0), ("inf", 1), (0.2,)], ids=str
)
def test_a_spacing_that_no_film_has_is_neither_copied_nor_measured_by(tmp_path, segmenter, spacing):
    pytest.importorskip("highdicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        film = dicom(phantom(80, 80).image, **STUDY | {"ImagerPixelSpacing": "", "PixelSpacing": list(spacing)})
    (tmp_path / "film.dcm").write_bytes(film)
    table = predict([tmp_path / "film.dcm"], tmp_path / "out", segmenter, force=True, formats=("png", "dicom-seg"))
    assert "no spacing: PixelSpacing is not that of a film" in table.notes[0].split("; ")
    measured = pd.read_csv(tmp_path / "out" / "measurements.csv")
    assert measured.filter(like="_mm").isna().all(axis=None)
    written = pydicom.dcmread(tmp_path / "out" / "dicom-seg" / "film.dcm")
    assert not [element for element in written.iterall() if element.keyword.endswith("PixelSpacing")]


def test_film_named_by_no_uid_has_no_object_and_gzipped_film_has_one(tmp_path, film_file):
    pytest.importorskip("highdicom")
    film = phantom(50, 70)
    (tmp_path / "film.dcm.gz").write_bytes(gzip.compress(film_file.read_bytes()))
    write_dicom_seg(tmp_path / "seg.dcm", (film.right, film.left), tmp_path / "film.dcm.gz", version="7")
    assert pydicom.dcmread(tmp_path / "seg.dcm").StudyInstanceUID == STUDY["StudyInstanceUID"]
    film_file.write_bytes(film_file.read_bytes().replace(b"1.2.826.1.1\0", b"1.2.ANON.1\0\0"))
    with pytest.raises(ValueError, match="the film has no valid StudyInstanceUID"):
        write_dicom_seg(tmp_path / "none.dcm", (film.right, film.left), film_file, version="7")


@pytest.mark.parametrize(
    "error",
    [
        TypeError("a list; of\ntwo"),
        KeyError("1.2.3"),
        AttributeError("x"),
        RecursionError(),
        OSError(36, "File name too long"),
    ],
)
@pytest.mark.parametrize(
    "broken, name", [("write_dicom_seg", "DICOM-SEG"), ("annotate", "COCO"), ("write_mask", "PNG")]
)
def test_no_format_ends_a_run_whatever_it_raises(tmp_path, segmenter, film_file, monkeypatch, broken, name, error):
    pytest.importorskip("pycocotools"), pytest.importorskip("pyarrow"), pytest.importorskip("highdicom")

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(predictions, broken, fails)
    table = predict([film_file], tmp_path / "out", segmenter, force=True, formats=tuple(FORMATS))
    notes = [note for note in table.notes[0].split("; ") if note.startswith("no ") and note != "no spacing"]
    assert len(notes) == 1 and notes[0].startswith(f"no {name}: ") and "\n" not in notes[0]
    assert len(pd.read_csv(tmp_path / "out" / "measurements.csv")) == 1 and table.error[0] == ""
    assert table["mask"].isna()[0] == (name == "PNG")


@pytest.mark.parametrize("broken", ["write_dicom_seg", "write_mask"])
def test_full_disk_is_no_films_failure_and_ends_the_run(tmp_path, segmenter, film_file, monkeypatch, broken):
    pytest.importorskip("highdicom")

    def fails(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictions, broken, fails)
    with pytest.raises(OSError, match="No space left"):
        predict([film_file], tmp_path / "out", segmenter, force=True, formats=("png", "dicom-seg"))


def test_predict_without_png_leaves_no_picture(tmp_path, segmenter, film_file):
    pytest.importorskip("pycocotools"), pytest.importorskip("pyarrow")
    table = predict([film_file], tmp_path / "out", segmenter, force=True, formats=("coco",))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "coco.parquet",
        "measurements.csv",
        "predictions.csv",
        "predictions.jsonl",
    }
    assert table["mask"].isna().all() and table.lung_px[0] > 0


def test_other_weights_are_another_version(tmp_path):
    versions = set()
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        save_weights(
            tmp_path / "w.safetensors", UNet(base_channels=2, depth=2), {"size": 32, "sources": ["montgomery"]}
        )
        versions.add(LungSegmenter(tmp_path / "w.safetensors", device="cpu").version)
    assert len(versions) == 2


def test_format_is_refused_before_the_work_begins(tmp_path, segmenter, film_file, monkeypatch):
    with pytest.raises(ValueError, match="no format 'nifti': choose from png, coco, dicom-seg"):
        predict([film_file], tmp_path / "out", segmenter, formats=("png", "nifti"))
    monkeypatch.setattr(predictions, "find_spec", lambda name: None if name == "highdicom" else name)
    check_formats(("png", "coco"))
    with pytest.raises(ImportError, match="format dicom-seg needs highdicom: pip install highdicom"):
        predict([film_file], tmp_path / "out", segmenter, formats=("dicom-seg",))
    assert not (tmp_path / "out").exists()


def test_the_command_line_offers_every_format():
    from kaggle_utils.cli import build_parser

    assert build_parser().parse_args(["predict", "x", "--out", "o", "--format", *FORMATS]).format == list(FORMATS)
    assert build_parser().parse_args(["predict", "x", "--out", "o"]).format == ["png"]
