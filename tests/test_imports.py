"""Who may import whom: the core lies flat, everything else is a room behind a door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kaggle_utils

PACKAGE = Path(kaggle_utils.__file__).parent
CORE = {path.stem for path in PACKAGE.glob("*.py")}
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

# The rules. A room imports itself, and what stands here; the rooms that are listed for the core are below it.
BELOW = {"core", "augment", "pictures", "dicom", "quality", "sets", "splits"}
MAY = {
    "core": BELOW,
    "trainer": BELOW | {"training"},
    "training": {"core", "augment", "scale", "splits"},  # a set may be streamed from shards
    "cli": {"core", *ROOMS},
    "commands": {"core", *ROOMS},
    "__init__": {"core"},
    "splits": set(),
    "augment": set(),
    "pictures": {"core"},
    "dicom": {"core", "pictures"},
    "sets": {"core", "pictures", "splits"},
    "quality": {"core"},
    "tb": {"core", "pictures", "quality", "splits"},
    "synthetic": {"core", "quality", "splits"},  # outlines
    "tuning": {"core", "augment", "quality", "synthetic", "splits", "training"},
    "scale": {"core", "augment", "dicom", "pictures", "quality"},  # a cluster measures, and writes COCO annotations
    "kaggle": {"core", "sets", "synthetic", "splits"},
    "page": BELOW | {"sets", "synthetic", "tb"},  # screens radiographs, and shows examples
    "plots": {"core", *ROOMS},
}


def imports_of(path: Path) -> set[str]:
    """What of the package a file imports, anywhere in it: ``image``, or ``quality.measurements``."""
    here, found = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            assert not (
                isinstance(node, ast.Import) and any(a.name.split(".")[0] == "kaggle_utils" for a in node.names)
            ), path
            continue
        if not node.level:
            continue
        base = (
            [*here[: len(here) + 1 - node.level], *(node.module or "").split(".")]
            if node.module
            else [*here[: len(here) + 1 - node.level]]
        )
        for alias in node.names:
            whole = [*base, alias.name]
            found.add(
                ".".join(
                    whole
                    if (PACKAGE.joinpath(*whole).with_suffix(".py").exists() or whole[0] in ROOMS and len(whole) == 1)
                    else base
                )
            )
    return {name for name in found if name}


def place(name: str) -> str:
    return name.split(".")[0] if name.split(".")[0] in ROOMS else "core"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_what_its_room_may(path):
    room = path.parent.name if path.parent != PACKAGE else path.stem if path.stem in MAY else "core"
    wrong = {name for name in imports_of(path) if place(name) not in {*MAY[room], room}}
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_a_face_shows_is_taken_from_the_face(path):
    faces = {
        room: set(getattr(sys.modules[f"kaggle_utils.{room}"], "__all__", ()))
        for room in ROOMS
        if f"kaggle_utils.{room}" in sys.modules
    }
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            room, _, leaf = node.module.partition(".")
            if leaf and room in faces and room != path.parent.name:
                assert not {alias.name for alias in node.names} & faces[room], f"{path}, line {node.lineno}"


def test_the_core_is_small_enough_to_be_seen_at_once():
    assert len(CORE) <= 18 and CORE.isdisjoint(ROOMS)


def test_every_room_says_what_is_in_it():
    for room in ROOMS:
        text = (PACKAGE / room / "__init__.py").read_text()
        for path in (PACKAGE / room).glob("*.py"):
            assert path.stem == "__init__" or f"``{path.stem}``" in text, (
                f"{room}/__init__.py doesn't speak of {path.stem}"
            )


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "albumentations", "scipy", "cv2", "numpy", "pandas"}
    code = f"import sys, kaggle_utils; print({heavy} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True).stdout.strip()
        == "set()"
    )


def test_a_segmenter_needs_neither_albumentations_nor_statistics():
    code = (
        "import sys; from kaggle_utils import LungSegmenter; "
        "print({'albumentations', 'scipy.stats'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True).stdout.strip()
        == "set()"
    )


@pytest.mark.parametrize("name", kaggle_utils.__all__)
def test_the_face_of_the_package_holds_what_it_lists(name):
    assert callable(getattr(kaggle_utils, name))


def test_only_the_image_module_knows_file_formats():
    calls = ("imread(", "imdecode(", "imwrite(", "imencode(")
    users = {str(path.relative_to(PACKAGE)) for path in FILES if any(call in path.read_text() for call in calls)}
    assert users <= {"image.py", "pictures/decode.py", "quality/damages.py"}  # JPEG as a damage to a film, and no file


def test_only_the_presets_know_albumentations():
    assert [path.name for path in FILES if "import albumentations" in path.read_text()] == ["presets.py"]
