"""The first cell finds the library wherever a notebook runs: each situation as a tree of folders, in a new environment.

That environment sees the packages of this one, but not the clone that is installed here in place.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from test_notebooks import CLONE, NOTEBOOKS, code_cells, run_notebooks

SHIPPED = ("kaggle_utils", "benchmarks", "results", "LICENSE")  # what `kaggle publish` puts into the dataset
SAYS = """
import kaggle_utils
from kaggle_utils.plots import RESULTS
print(kaggle_utils.__file__, RESULTS / "tuning" / "loss.csv", sep="\\n")
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_the_one_first_cell(path):
    assert code_cells(path)[0].source == run_notebooks.FIRST_CELL, "run `python notebooks/run.py --first-cells`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_links_to_itself_on_kaggle_below_its_title(path):
    notebook = nbformat.read(path, 4)
    (line,) = [line for line in notebook.cells[0].source.splitlines() if "kaggle.com" in line]
    address = f"{run_notebooks.ADDRESS}/blob/main/notebooks/{path.name}"
    assert line == f"[Open in Kaggle](https://www.kaggle.com/kernels/welcome?src={address})"
    assert notebook.cells[0].source.splitlines()[2] == line
    before = notebook.cells[0].source
    run_notebooks.put_link(notebook, path.name)
    assert notebook.cells[0].source == before


def test_the_address_of_the_repository_stands_in_one_place_and_gets_into_every_notebook(monkeypatch):
    address = run_notebooks.REPOSITORY.removeprefix("git+")
    assert f'Repository = "{address}"' in (CLONE / "pyproject.toml").read_text()
    assert run_notebooks.FIRST_CELL.count(address) == 1 and address not in Path(run_notebooks.__file__).read_text()
    notebook = nbformat.read(NOTEBOOKS[0], 4)
    monkeypatch.setattr(run_notebooks, "FIRST_CELL", "import this")
    run_notebooks.put_first_cell(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].source == "import this" and cells[1].source != "import this"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A git repository of what is tracked here and makes a wheel."""
    pytest.importorskip("setuptools", "77")
    root = tmp_path_factory.mktemp("repository") / "unet-lung"
    wanted = [*SHIPPED, "pyproject.toml", "requirements.txt", "README.md"]
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *wanted]
    for name in subprocess.run(listed, cwd=CLONE, capture_output=True, text=True, check=True).stdout.split():
        if (CLONE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CLONE / name, root / name)
    somebody = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
    for step in (["init", "-q"], ["add", "."], [*somebody, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *step], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), "."]
    subprocess.run([sys.executable, "-m", *command], cwd=clone, check=True)
    return next(folder.glob("unet_lung-*.whl"))


@pytest.fixture
def new_python(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "new"], check=True)
    site = next((tmp_path / "new").glob("lib/python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # a .pth file below that is not read
    return tmp_path / "new" / "bin" / "python"


def begin(python: Path, kaggle: Path, at: Path, repository: str = "no-such-repository") -> list[Path]:
    """Runs the first cell in a folder; where the library and a table of results were found."""
    cell = re.sub(r"(?m)^ +%.*$", "    pass", run_notebooks.FIRST_CELL)
    offline = '"install", "--no-index", "--no-build-isolation", "--no-deps", "--ignore-installed"'
    for old, new in (
        ("/kaggle/", f"{kaggle}/"),
        (run_notebooks.REPOSITORY, repository),
        ('"install"', offline),  # a test fetches nothing, and finds the clone's metadata installed
    ):
        assert old in cell
        cell = cell.replace(old, new)
    for name in ("input", "working"):
        (kaggle / name).mkdir(parents=True, exist_ok=True)
    at.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([python, "-c", cell + SAYS], cwd=at, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


def copy_code(clone: Path, to: Path) -> None:
    for name in SHIPPED:
        copy = shutil.copytree if (clone / name).is_dir() else shutil.copy
        to.mkdir(parents=True, exist_ok=True)
        copy(clone / name, to / name)


@pytest.mark.slow
@pytest.mark.parametrize("mount", ["input/lung-unet-code", "input/datasets/nobody/lung-unet-code", "working/unet-lung"])
def test_attached_code_and_a_repository_in_the_working_folder(mount, clone, new_python, tmp_path):
    copy_code(clone, tmp_path / "kaggle" / mount)
    found = begin(new_python, tmp_path / "kaggle", tmp_path / "kaggle" / "working")
    assert all(path.is_relative_to(tmp_path / "kaggle" / mount) and path.is_file() for path in found)


@pytest.mark.slow
def test_a_local_clone_is_taken_before_what_is_attached(clone, new_python, tmp_path):
    copy_code(clone, tmp_path / "kaggle" / "input" / "lung-unet-code")
    found = begin(new_python, tmp_path / "kaggle", clone / "notebooks")
    assert all(path.is_relative_to(clone) and path.is_file() for path in found)


@pytest.mark.slow
@pytest.mark.parametrize("mount", ["lung-unet-code", "datasets/nobody/lung-unet-code"])
def test_an_attached_wheel_is_installed_with_its_results(mount, wheel, new_python, tmp_path):
    (tmp_path / "kaggle" / "input" / mount).mkdir(parents=True)
    shutil.copy(wheel, tmp_path / "kaggle" / "input" / mount)
    found = begin(new_python, tmp_path / "kaggle", tmp_path / "kaggle" / "working")
    assert all(path.is_relative_to(tmp_path / "new") and path.is_file() for path in found)


@pytest.mark.slow
def test_with_the_internet_on_it_comes_from_the_repository(clone, new_python, tmp_path):
    found = begin(new_python, tmp_path / "kaggle", tmp_path / "kaggle" / "working", f"git+file://{clone}")
    assert all(path.is_relative_to(tmp_path / "new") and path.is_file() for path in found)


def test_the_second_notebook_measures_a_card_where_all_is_there_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    (source,) = (cell.source for cell in code_cells(NOTEBOOKS[1]) if "benchmarks.gpu" in cell.source)
    source, ran = source.replace("/kaggle/input", str(tmp_path)), []
    here = {
        "Path": Path,
        "torch": SimpleNamespace(cuda=torch.cuda),
        "sys": sys,
        "place": SimpleNamespace(work=tmp_path),
    }
    here["subprocess"] = SimpleNamespace(run=lambda command, **options: ran.append((command, options["cwd"])))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    exec(source, here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    exec(source, here)
    said = capsys.readouterr().out.splitlines()
    assert "want of a GPU;" in said[0] and "want of the dataset unet-lung-pack;" in said[1] and not ran
    (tmp_path / "datasets" / "somebody" / "unet-lung-pack").mkdir(parents=True)
    exec(source, here)
    ((command, folder),) = ran
    assert command[1:3] == ["-m", "benchmarks.gpu"] and Path(command[4]).name == "unet-lung-pack"
    assert (folder / "benchmarks" / "gpu.py").is_file() and command[-1] == str(tmp_path / "gpu.json")
