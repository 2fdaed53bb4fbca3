"""Runs all notebooks in order on synthetic radiographs and saves them with their outputs: ``make notebooks``.

Numbers are computed in float32, so that every machine comes to the same ones. No time is saved: it would be this
machine's, and of how busy it was. Tags of cells: ``timing``, its output is shown and not saved; ``varies``, its numbers
depend on the machine (a training's, say), and ``make test`` compares only the text between them.
"""

import os
import re
import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMES = re.compile(r", \d+ films/s, \d+ s$|(?<=epochs) in [\d.]+ min", re.M)  # in what a training says


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
    shutil.rmtree(HERE.parent / "runs" / "notebooks", ignore_errors=True)  # as a new user would
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, 4)
        run(notebook, HERE)
        nbformat.write(notebook, path)
