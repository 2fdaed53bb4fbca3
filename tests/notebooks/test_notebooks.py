"""Every notebook is run again, and its cells must print what was committed, but for what ``sanitize.cfg`` names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from kaggle_utils.synthetic import write_raw

CLONE = Path(__file__).parents[2]
NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def lay_out(root: Path) -> Path:
    """A clone in which notebooks can run without leaving anything in ours."""
    (root / "notebooks").mkdir(parents=True)
    for name in ("kaggle_utils", "results"):
        (root / name).symlink_to(CLONE / name)
    return root


def check_again(path: Path, clone: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs a notebook by nbval in a clone's folder of notebooks."""
    copy = clone / "notebooks" / path.name
    if copy != path:
        shutil.copy(path, copy)
    env = {**os.environ, "IPYTHONDIR": str(clone / "ipython"), "JUPYTER_RUNTIME_DIR": str(clone / "jupyter"), "PYTHONDONTWRITEBYTECODE": "1"}
    env.pop("UNET_LUNG_INPUT", None)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=900", "--color=no",
               "--nbval-kernel-startup-timeout=300", "-p", "no:cacheprovider", "--nbval-sanitize-with", CLONE / "tests/notebooks/sanitize.cfg",
               "--rootdir", clone, copy]
    return subprocess.run(command, env=env | environment, cwd=clone, capture_output=True, text=True)


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("clone"))


@by_name
def test_a_notebook_prints_what_was_committed(path, clone):
    run = check_again(path, clone)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def test_there_are_notebooks_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)] and len(NOTEBOOKS) >= 4


@by_name
def test_outputs_and_pictures_are_there(path):
    """nbval passes cells without stored outputs unchecked, and doesn't compare pictures."""
    cells = code_cells(path)
    assert all(cell.execution_count for cell in cells), "run `make notebooks`"
    assert sum(bool(cell.outputs) for cell in cells) >= 5
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 2
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


@by_name
def test_cells_are_short_and_define_nothing(path):
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 10 and not re.search(r"^\s*(class|def|!|%pip)\b|pip install(?!\s+onnx)", cell.source, re.M), cell.source


@by_name
def test_the_first_cell_asks_and_the_last_one_knows(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].cell_type == cells[-1].cell_type == "markdown"
    assert "**" in cells[0].source and "?" in cells[0].source and "| reads |" in cells[0].source and "| writes |" in cells[0].source
    assert "## What we now know" in cells[-1].source


@by_name
def test_it_names_a_kernel_and_no_folder_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, 4)
    assert notebook.metadata.kernelspec.name == "python3"  # Kaggle refuses a notebook without one
    assert str(CLONE) not in path.read_text() and not re.search(r"/(home|root|tmp|Users)/", path.read_text())


def beginning(path: Path, cells: int, to: Path) -> Path:
    """The notebook's first code cells and what lies between them, as a notebook of its own."""
    notebook = nbformat.read(path, 4)
    ends = [k for k, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    notebook.cells = notebook.cells[: ends[cells - 1] + 1]
    to.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, to)
    return to


@pytest.fixture(scope="session")
def first_cells(tmp_path_factory):
    return beginning(NOTEBOOKS[0], 5, tmp_path_factory.mktemp("first") / "01_prep.ipynb")


def test_a_number_changed_in_the_stored_output_is_noticed(first_cells, clone, tmp_path):
    text = first_cells.read_text()
    changed = re.sub(r"(\d+),(\d{3}) px of lung", lambda found: f"{found[1]},{int(found[2]) ^ 1:03d} px of lung", text)
    assert changed != text
    (tmp_path / "01_prep.ipynb").write_text(changed)
    run = check_again(tmp_path / "01_prep.ipynb", clone)
    assert run.returncode == 1 and "px of lung" in run.stdout and "1 failed" in run.stdout, run.stdout


def test_a_changed_function_of_the_library_is_noticed(first_cells, clone, tmp_path):
    """The same cells with masks combined by a sum that wraps round, as they were once."""
    root = tmp_path / "clone"
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(CLONE / "kaggle_utils", root / "kaggle_utils", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "runs").symlink_to(clone / "runs")
    prep = root / "kaggle_utils" / "prep.py"
    right = "return np.bitwise_or.reduce(masks)"
    assert right in prep.read_text()
    prep.write_text(prep.read_text().replace(right, "return masks[0]"))
    run = check_again(first_cells, root)
    assert run.returncode == 1 and "px of lung" in run.stdout, run.stdout
    assert check_again(first_cells, clone).returncode == 0


def test_the_first_notebook_finds_sets_in_kaggles_old_and_nested_layouts(tmp_path):
    attached, drawn = tmp_path / "kaggle" / "input", tmp_path / "drawn"
    write_raw(drawn, 24, seed=3, size=64)
    chest = "pulmonary-chest-xray-abnormalities"
    for made, mounted in ((f"{chest}/Montgomery", f"{chest}/Montgomery"), (f"{chest}/ChinaSet_AllFiles", f"datasets/kmader/{chest}/ChinaSet_AllFiles"),
                          ("shcxr-lung-mask", "datasets/yoctoman/shcxr-lung-mask")):
        shutil.copytree(drawn / made, attached / mounted)
    clone = lay_out(tmp_path / "clone")
    shutil.copy(NOTEBOOKS[0], clone / "notebooks")
    env = {**os.environ, "UNET_LUNG_INPUT": str(attached), "IPYTHONDIR": str(clone / "ipython")}
    run = subprocess.run([sys.executable, "-m", "jupyter", "execute", "--inplace", clone / "notebooks" / "01_prep.ipynb"], env=env,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    text = (clone / "notebooks" / "01_prep.ipynb").read_text()
    assert "24 films prepared, 0 could not be used" in text
    assert list((clone / "runs" / "notebooks").glob("input-*/segmentation/manifest.csv"))
