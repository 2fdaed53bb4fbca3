"""Runs all notebooks in order on synthetic radiographs and saves them with their outputs: ``make notebooks``.

    python notebooks/run.py [--first-cells]

``--first-cells`` runs nothing: it only gives every notebook the link to Kaggle and the first cell from here, with a new
address of the repository in pyproject.toml, say.

Numbers are computed in float32, so that every machine comes to the same ones. No time is saved: it would be this
machine's, and of how busy it was. Tags of cells: ``timing``, its output is shown and not saved; ``varies``, its numbers
depend on the machine (a training's, say), and ``make test`` compares only the text between them; ``plain``, it shows in
full what the library does, and may be long and define what it needs.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
# pyproject.toml is the one place that has the address.
ADDRESS = re.search(r'^Repository = "(.+)"$', (HERE.parent / "pyproject.toml").read_text(), re.M)[1]
REPOSITORY = f"git+{ADDRESS}"  # as pip takes it
LINK = re.compile(r"^\[Open in Kaggle\].*\n\n", re.M)
# A notebook that runs on Kaggle has nothing beside it: what finds the library can't be in the library.
FIRST_CELL = f"""\
import subprocess, sys
from importlib.util import find_spec
from pathlib import Path

from IPython import version_info

if version_info >= (8,):  # Kaggle's IPython 7 can't reload with Python 3.12
    %load_ext autoreload
    %autoreload 2

# The library is in the clone around this notebook; on Kaggle in /kaggle/working, in an attached dataset, or in a wheel
# there; where it is nowhere, it comes from the internet.
places = (Path("/kaggle/working"), Path("/kaggle/input"))
attached = [path.parents[1] for place in places for path in sorted(place.glob("**/kaggle_utils/__init__.py"))]
sys.path[:0] = map(str, [Path.cwd(), Path.cwd().parent, *attached])
if not find_spec("kaggle_utils"):
    wheels = sorted(places[1].glob("**/unet_lung-*.whl"))
    offline = ["--no-index", "--no-deps", "--find-links", str(wheels[-1].parent), "unet-lung"] if wheels else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *(offline or ["{REPOSITORY}"])], check=True)"""
TIMES = re.compile(
    r", \d+ films/s, \d+ s(, (about \d+|under 1) min left)?$|(?<=epochs) in [\d.]+ min", re.M
)  # in what a training says


def put_first_cell(notebook: nbformat.NotebookNode) -> None:
    """Gives a notebook the first code cell from here."""
    next(cell for cell in notebook.cells if cell.cell_type == "code").source = FIRST_CELL


def put_link(notebook: nbformat.NotebookNode, name: str) -> None:
    """Links below a notebook's title to Kaggle, which opens the one on GitHub."""
    title, _, text = LINK.sub("", notebook.cells[0].source).partition("\n\n")
    source = f"https://www.kaggle.com/kernels/welcome?src={ADDRESS}/blob/main/notebooks/{name}"
    notebook.cells[0].source = f"{title}\n\n[Open in Kaggle]({source})\n\n{text}"


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs a notebook in a folder; its cells have the new outputs then, without times and progress bars."""
    settings = {"metadata": {"path": folder}}
    # Of the first start after an installation: a cold disk took more than a minute.
    client = NotebookClient(
        notebook, timeout=None, startup_timeout=600, record_timing=False, coalesce_streams=True, resources=settings
    )
    client.execute(env={**os.environ, "UNET_LUNG_PRECISION": "fp32"})
    for cell in notebook.cells:
        if "timing" in cell.metadata.get("tags", ()):
            cell.outputs = []
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = TIMES.sub("", output.text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-cells", action="store_true", help="run nothing, only put link and first cell in")
    only_cells = parser.parse_args().first_cells
    if not only_cells:
        shutil.rmtree(HERE.parent / "runs" / "notebooks", ignore_errors=True)  # as a new user would
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, 4)
        put_link(notebook, path.name)
        put_first_cell(notebook)
        if not only_cells:
            run(notebook, HERE)
        nbformat.write(notebook, path)
