"""benchmarks: what all have, and what common says of a machine and writes of results."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import common, fit_checks, tb, two_hosts

SHARED = ("__init__", "common", "numbers", "tables")
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


DEV_ONLY = {"boto3", "monai", "moto", "nncf", "onnx", "onnxruntime", "openvino", "psutil", "pydicom", "ray", "skimage"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_help_needs_no_package_of_the_dev_extra(path):
    body = ast.parse(path.read_text()).body
    imported = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in body if isinstance(node, ast.ImportFrom)]
    assert not DEV_ONLY & {name.split(".")[0] for name in imported}


def test_needed_package_that_is_missing_is_named():
    common.need("json", "pytest")
    with pytest.raises(ModuleNotFoundError) as error:
        common.need("json", "no_such_package")
    assert error.value.name == "no_such_package"


def test_two_hosts_says_what_is_not_installed_before_it_starts(monkeypatch):
    monkeypatch.setattr("sys.argv", ["two_hosts.py"])
    monkeypatch.setattr(common, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as error:
        two_hosts.main()
    assert error.value.name == "moto"


def test_what_a_user_can_mend_is_a_line():
    code = "import benchmarks; open('nowhere')"
    done = subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "[Errno 2] No such file or directory: 'nowhere'\n"


def test_clinic_s_thousand_adds_up():
    point = {"trained_on": "a", "tested_on": "b", "standardised": "training", "fixed_at": 0.9}
    seen = tb.clinic(pd.DataFrame([point | {"sensitivity": 0.9, "specificity": 0.7}])).set_index("prevalence").loc[0.05]
    assert seen["found"] == 45 and seen["missed"] == 5 and seen["called"] == 45 + 285
    assert seen["called_and_sick"] == pytest.approx(45 / 330, abs=1e-3)


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


def test_checks_are_fitted_to_as_many_adults_as_children():
    frame = pd.DataFrame({"source": ["montgomery"] * 3 + ["shenzhen"] * 4 + ["kermany"] * 20, "name": range(27)})
    drawn = fit_checks.evenly(frame)
    assert drawn["source"].eq("kermany").sum() == 7 and set(range(7)) < set(drawn["name"])
