"""Runs all notebooks in order on built-in films and saves them with their outputs: ``make notebooks``."""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent

if __name__ == "__main__":
    shutil.rmtree(HERE.parent / "runs" / "notebooks", ignore_errors=True)  # as a new user would
    for path in sorted(HERE.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, 4)
        # Times of cells would differ in every commit.
        NotebookClient(notebook, timeout=None, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": HERE}}).execute()
        nbformat.write(notebook, path)
