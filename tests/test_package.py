"""The package: what a wheel holds, and what its metadata say."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kaggle_utils

ROOT = Path(__file__).parents[1]


def test_the_version_is_told(capsys):
    from kaggle_utils.cli import main

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"unet-lung {kaggle_utils.__version__}\n"
    assert f"version: {kaggle_utils.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {kaggle_utils.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_a_wheel_holds_every_room_the_weights_the_assets_the_lists_and_the_results(tmp_path):
    """Built as pip does, but with the setuptools that is there: tests fetch nothing."""
    pytest.importorskip("setuptools", "77")
    files = subprocess.run(
        ["git", "ls-files", "kaggle_utils", "results", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-w",
            str(tmp_path),
            ".",
        ],
        cwd=tmp_path / "clone",
        check=True,
    )
    (wheel,) = tmp_path.glob("unet_lung-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in files if name.startswith("kaggle_utils/")} <= inside
    tables = {name for name in files if name.startswith("results/") and name.endswith(".csv")}
    assert tables <= {name.partition(".data/data/share/unet-lung/")[2] for name in inside}
    entry = next(name for name in inside if name.endswith("entry_points.txt"))
    assert b"unet-lung = kaggle_utils.cli:main" in zipfile.ZipFile(wheel).read(entry)
