"""Imports go one way, downwards in this table; modules on one row don't import each other."""

import ast
from pathlib import Path

import pytest

import kaggle_utils

ROWS = {
    8: ["__main__"],
    7: ["kaggle", "cluster", "app"],
    6: ["tune", "tb", "plot", "protocol"],
    5: ["train"],
    4: ["infer", "workspace"],
    3: ["export", "formats", "quality_fit", "shards", "prep"],
    2: ["model", "loss", "metrics", "measure", "data", "synthetic", "checks", "calibrate"],
    1: ["quality", "damages"],
    0: ["image", "outline", "hardware", "config", "distributed", "s3", "__init__"],
    -1: ["journal"],
    -2: ["files", "tables"],
    -3: ["header"],
}
# One module in several files, from its face down to its depths: a file may import those to its right.
CHAPTERS = {"image": ["image", "picture", "dicom", "dicom_gray", "dicom_tags", "gray"], "synthetic": ["synthetic", "acquire", "appearance"],
            "tune": ["tune", "search", "mistakes", "study"], "plot": ["plot", "plot_robustness", "plot_tb", "plot_tuning", "plot_films", "plot_unet", "figure"],
            "infer": ["infer", "segmenter", "film"], "model": ["model", "model_header"], "kaggle": ["kaggle", "kaggle_metadata"], "s3": ["s3", "s3_zip", "s3_client"],
            "cluster": ["cluster", "cluster_work"], "app": ["app", "app_uploads"], "tb": ["tb", "tb_train", "tb_net", "tb_data"]}

ROW = {name: row for row, names in ROWS.items() for name in names}
FACE = {chapter: face for face, chapters in CHAPTERS.items() for chapter in chapters}
PACKAGE = Path(kaggle_utils.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def imports_of(source: str) -> set[str]:
    """Modules of the package that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("kaggle_utils.")}
        elif isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level == 0 and path[0] == "kaggle_utils":
                path = path[1:]
            elif node.level != 1:
                continue
            found |= {path[0]} if path and path[0] else {alias.name for alias in node.names}
    return found & set(MODULES)


def is_allowed(importer: str, imported: str) -> bool:
    above, below = FACE.get(importer, importer), FACE.get(imported, imported)
    if above == below:
        order = CHAPTERS.get(above, [])
        return importer in order and order.index(importer) < order.index(imported)
    return imported == below and ROW[below] < ROW[above]  # from outside, only a module's face is seen


@pytest.mark.parametrize("source, expected", [
    ("from .image import read_mask", {"image"}), ("from . import image, loss", {"image", "loss"}), ("import kaggle_utils.data", {"data"}),
    ("from kaggle_utils import data as d", {"data"}), ("from kaggle_utils.data import normalise", {"data"}),
    ("def f():\n    from .loss import make_loss", {"loss"}), ("import image", set()), ("from image import x", set())])
def test_imports_are_found_however_they_are_written(source, expected):
    assert imports_of(source) == expected


@pytest.mark.parametrize("module", MODULES)
def test_module_has_a_row(module):
    assert FACE.get(module, module) in ROW


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_rows_below(module):
    wrong = [other for other in imports_of((PACKAGE / f"{module}.py").read_text()) if not is_allowed(module, other)]
    assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_only_the_image_module_knows_file_formats():
    users = [m for m in MODULES if any(call in (PACKAGE / f"{m}.py").read_text() for call in ("imread(", "imdecode(", "imwrite(", "imencode("))]
    assert set(users) <= {*CHAPTERS["image"], "damages"}  # JPEG as a damage to a film, and no file


def test_only_the_data_module_knows_albumentations():
    assert [m for m in MODULES if "import albumentations" in (PACKAGE / f"{m}.py").read_text()] == ["data"]
