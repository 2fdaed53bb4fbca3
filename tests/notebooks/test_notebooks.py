"""Every notebook is run again, and its cells must print what was saved, within the limits of ``compare.py``."""

import ast
import importlib.util
import re
import shutil
from base64 import b64decode
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import nbformat
import pytest
from compare import ABSOLUTE, RELATIVE, differences, text_differences
from PIL import Image

from kaggle_utils.synthetic.model import write_raw

CLONE = Path(__file__).parents[2]
NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
spec = importlib.util.spec_from_file_location("run_notebooks", CLONE / "notebooks" / "run.py")
spec.loader.exec_module(run_notebooks := importlib.util.module_from_spec(spec))


@pytest.fixture(autouse=True, scope="module")
def own_folders(tmp_path_factory):
    """Kernels write below the home folder otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.delenv("JUPYTER_RUNTIME_DIR", raising=False)
        patch.delenv("UNET_LUNG_INPUT", raising=False)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        yield


def lay_out(root: Path) -> Path:
    """A clone in which notebooks can run without leaving anything in ours."""
    (root / "notebooks").mkdir(parents=True)
    for name in ("kaggle_utils", "results"):
        (root / name).symlink_to(CLONE / name)
    return root


def again(path: Path, clone: Path, cells: int | None = None) -> tuple[nbformat.NotebookNode, nbformat.NotebookNode]:
    """A notebook as it was saved and as it is when it is run in a clone; of both the first code cells, or all."""
    saved = nbformat.read(path, 4)
    ends = [k for k, cell in enumerate(saved.cells) if cell.cell_type == "code"]
    saved.cells = saved.cells[: ends[cells - 1] + 1] if cells else saved.cells
    new = deepcopy(saved)
    run_notebooks.run(new, clone / "notebooks")
    return saved, new


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("clone"))


@pytest.mark.slow
@by_name
def test_a_notebook_prints_what_was_saved(path, clone):
    assert not differences(*again(path, clone))


FROM_RESULTS = re.compile(r"\bRESULTS / |\bread_study\(")
IMPORTS = """\
import json
import pandas as pd
from kaggle_utils.plots import RESULTS, show_table
from kaggle_utils.plots.tuning import read_study"""


@pytest.mark.parametrize("path", NOTEBOOKS[2:], ids=lambda path: path.stem)
def test_tables_of_measured_results_are_those_of_today(path, clone):
    """Without the training that the notebook needs for the rest."""
    saved = nbformat.read(path, 4)
    saved.cells = [cell for cell in saved.cells if cell.cell_type == "code" and FROM_RESULTS.search(cell.source)]
    new = deepcopy(saved)
    new.cells.insert(0, nbformat.v4.new_code_cell(IMPORTS))
    run_notebooks.run(new, clone / "notebooks")
    del new.cells[0]
    assert saved.cells and not differences(saved, new)


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_the_second_notebook_shows_the_loop_of_the_speedrun():
    speedrun = (CLONE / "speedrun.py").read_text()
    (learn,) = (node for node in ast.parse(speedrun).body if getattr(node, "name", "") == "learn")
    shown = [cell.source for cell in nbformat.read(NOTEBOOKS[1], 4).cells if "speedrun.py" in cell.source]
    assert f"```python\n{ast.get_source_segment(speedrun, learn)}\n```" in "".join(shown)


def test_there_are_notebooks_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)] and len(
        NOTEBOOKS
    ) >= 4


@by_name
def test_outputs_and_pictures_are_there(path):
    """Pictures are not compared."""
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells), "run `make notebooks`"
    assert sum(bool(cell.outputs) for cell in cells) >= 5
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 2
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@by_name
def test_letters_of_figures_can_be_read(path):
    """Each figure of the library says in its PNG how large its smallest letters are, in points."""
    outputs = [output.get("data", {}) for cell in code_cells(path) for output in cell.outputs]
    pictures = [b64decode(data["image/png"]) for data in outputs if "image/png" in data]
    letters = [float(Image.open(BytesIO(png)).text.get("Letters", "nan")) for png in pictures]
    assert not [points for points in letters if 0 < points < 9]  # films may have no titles
    assert sum(points > 0 for points in letters) >= len(letters) - 1


@by_name
def test_it_opens_with_a_picture_and_a_sentence(path):
    """Before any work: the picture is all that the first code cells show, and a sentence stands above or below it."""
    cells = nbformat.read(path, 4).cells
    code = [k for k, cell in enumerate(cells) if cell.cell_type == "code"]
    assert [list(output.get("data", {})) for output in cells[code[1]].outputs] == [["image/png", "text/plain"]]
    around = [cell.source for cell in cells[code[0] + 1 : code[2]] if cell.cell_type == "markdown"]
    assert not cells[code[0]].outputs and any(re.search(r"\w\.($|\s)", text) for text in around)


@by_name
def test_cells_are_short_and_define_nothing(path):
    for cell in code_cells(path)[1:]:  # the first one is not to be read, see run.py
        if "plain" in cell.metadata.get("tags", ()):  # the whole of it is the point: what the library does, written out
            assert len(cell.source.splitlines()) <= 40
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 10 and not re.search(
            r"^\s*(class|def|!|%pip)\b|pip install(?!\s+onnx)", cell.source, re.M
        ), cell.source


@by_name
def test_the_first_cell_asks_and_the_last_one_knows(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    assert (
        "**" in cells[0].source
        and "?" in cells[0].source
        and "| reads |" in cells[0].source
        and "| writes |" in cells[0].source
    )
    assert "## What we now know" in cells[-1].source


@by_name
def test_it_names_a_kernel_and_no_folder_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.kernelspec.name == "python3"  # Kaggle refuses a notebook without one
    assert str(CLONE) not in path.read_text() and not re.search(r"/(home|root|tmp|Users)/", path.read_text())


# --- the comparison notices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new",
    [
        ("mean Dice 0.91", "mean Dice 0.92"),
        ("-0.0", "0.0"),
        ("20,944 px", "20,950 px"),
        ("a  9.99  b", "a  10.00  b"),
        ("1e-5", "2e-5"),
        ("[0.1, 0.2]", "[0.1,  0.2]"),
    ],
)
def test_numbers_within_the_limit_are_the_same(old, new):
    assert not list(text_differences(old, new))


@pytest.mark.parametrize(
    "old, new",
    [
        ("mean Dice 0.91", "mean Dice 0.93"),
        ("mean Dice 0.91", "mean IoU 0.91"),
        ("0.5", "-0.5"),
        ("20,944 px", "21,200 px"),
        ("60 films", "61 films"),
        ("MCUCXR_0001_0", "MCUCXR_0002_0"),
        ("1.0", "nan"),
        ("[0.1]", "[0.1, 0.1]"),
        ("256x256", "256x255"),
        ("1 failed", ""),
    ],
)
def test_another_text_or_number_is_noticed(old, new):
    assert len(list(text_differences(old, new))) == 1


def test_of_what_varies_the_text_is_compared_and_of_what_is_timed_nothing():
    def printed(text, *tags):
        cell = nbformat.v4.new_code_cell(
            "", metadata={"tags": [*tags]}, outputs=[nbformat.v4.new_output("stream", text=text)]
        )
        return nbformat.v4.new_notebook(cells=[cell])

    assert not differences(printed("loss 0.1", "varies"), printed("loss 0.9", "varies"))
    assert differences(printed("loss 0.1", "varies"), printed("Dice 0.1", "varies"))
    assert not differences(printed("3 ms", "timing"), printed("a while", "timing"))
    sizes = (printed(f"<Figure size {width}x340 with 1 Axes>") for width in ("733", "731.5"))
    assert not differences(*sizes) and differences(printed("Figure size 733 with 1"), printed("Figure size 733 with 2"))


def test_a_number_changed_in_a_saved_output_is_noticed():
    saved = nbformat.read(NOTEBOOKS[0], 4)
    changed = deepcopy(saved)
    cell = next(cell for cell in changed.cells if "px of lung" in str(cell.get("outputs")))
    number = re.search(r"[\d,]+(?= px of lung)", cell.outputs[0].text)[0]
    cell.outputs[0].text = cell.outputs[0].text.replace(
        number, f"{int(number.replace(',', '')) * (1 + 2 * RELATIVE) + ABSOLUTE:,.0f}"
    )
    assert not differences(saved, saved)
    assert [line.split("\n")[0].split(": ")[1].split()[0] for line in differences(saved, changed)] == [number]


@pytest.mark.slow
def test_a_changed_function_of_the_library_is_noticed(clone, tmp_path):
    """The first cells with a mask that is one lung alone."""
    root = tmp_path / "clone"
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(CLONE / "kaggle_utils", root / "kaggle_utils", ignore=shutil.ignore_patterns("__pycache__"))
    film = root / "kaggle_utils" / "sets" / "film.py"
    right = "both |= mask"
    assert right in film.read_text()
    film.write_text(film.read_text().replace(right, "both = mask"))
    found = differences(*again(NOTEBOOKS[0], root, cells=6))
    assert len(found) == 1 and "px of lung" in found[0]


@pytest.mark.slow
def test_the_first_notebook_finds_sets_in_kaggles_old_and_nested_layouts(tmp_path, monkeypatch):
    attached, drawn = tmp_path / "kaggle" / "input", tmp_path / "drawn"
    write_raw(drawn, 24, seed=3, size=64)
    chest = "pulmonary-chest-xray-abnormalities"
    for made, mounted in (
        (f"{chest}/Montgomery", f"{chest}/Montgomery"),
        (f"{chest}/ChinaSet_AllFiles", f"datasets/kmader/{chest}/ChinaSet_AllFiles"),
        ("shcxr-lung-mask", "datasets/yoctoman/shcxr-lung-mask"),
    ):
        shutil.copytree(drawn / made, attached / mounted)
    monkeypatch.setenv("UNET_LUNG_INPUT", str(attached))
    clone = lay_out(tmp_path / "clone")
    _, new = again(NOTEBOOKS[0], clone)
    assert "24 films prepared, 0 could not be used" in str([cell.get("outputs") for cell in new.cells])
    assert list((clone / "runs" / "notebooks").glob("input-*/segmentation/manifest.csv"))
