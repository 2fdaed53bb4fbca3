"""benchmarks: what all have, and what common says of a machine and writes of results."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import common

SHARED = ("__init__", "common")
FILES = [path for path in sorted(Path(common.__file__).parent.glob("*.py")) if path.stem not in SHARED]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_benchmark_has_help_and_runs_only_when_told(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) and "make_parser(__doc__" in path.read_text()
    *_, last = tree.body
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"


@pytest.mark.parametrize("package", ["benchmarks", "slides"])
def test_a_package_that_is_missing_is_told_in_a_line(package):
    code = f"import {package}, no_such_package"
    done = subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == 'no_such_package is not installed: pip install -e ".[dev]"\n'


def test_parts_of_results_are_kept_beside_each_other(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert common.read_json(path) == {}
    common.add_json(path, "one", {"n": 1})
    common.add_json(path, "two", {"n": 2})
    common.add_json(path, "one", {"n": 3})
    assert json.loads(path.read_text()) == {"one": {"n": 3}, "two": {"n": 2}}
    assert '"n": 3' in capsys.readouterr().out


def test_the_machine_is_told_with_the_packages_that_count():
    assert " cores" in common.machine() and common.machine("torch").startswith(f"{common.machine()}, torch ")
