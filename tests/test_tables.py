"""tables.py: what a stranger's file is called does nothing to a spreadsheet, and comes back as it was."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from kaggle_utils.data import parse_manifest
from kaggle_utils.tables import read_csv, to_csv

NAMES = [
    "=1+1",
    "@SUM(A1)",
    "+49",
    "-1",
    "'=a",
    "''-b",
    "\tx",
    "NA",
    "nan",
    "null",
    "None",
    "007",
    "1e5",
    "True",
    "film 1",
    "O'Brien",
    "'quoted'",
    'a,"b"',
    "ä",
]


def test_every_name_comes_back_and_none_is_a_formula():
    table = pd.DataFrame({"name": NAMES, "size": [256] * len(NAMES), "error": [""] * len(NAMES)})
    data = to_csv(table)
    for row in csv.DictReader(io.StringIO(data.decode())):
        assert row["name"][0] not in "=+-@\t\r"
    found = read_csv(io.BytesIO(data))
    assert list(found["name"]) == NAMES and found["size"].dtype == np.int64 and found["error"].isna().all()


def test_ordinary_names_and_numbers_stand_as_they_are():
    table = pd.DataFrame({"name": ["a", "O'Brien"], "tilt": [-1.5, np.nan], "n": pd.array([-2, None], dtype="Int64")})
    assert to_csv(table) == table.to_csv(index=False).encode()


@pytest.mark.parametrize("word", ["NA", "nan", ""])
def test_missing_number_is_missing_however_it_is_written(word):
    assert read_csv(io.BytesIO(f"name,tb\na,{word}\nb,1\n".encode()))["tb"].isna().tolist() == [True, False]


def test_film_called_na_and_one_called_as_a_formula_are_read_from_a_manifest(tmp_path):
    table = pd.DataFrame(
        {
            "name": ["NA", "=1+1", "007"],
            "source": "own",
            "split": "val",
            "tb": [0, 1, None],
            "pixels": ["1", "2e3", "03"],
        }
    )
    (tmp_path / "manifest.csv").write_bytes(to_csv(table))
    found = parse_manifest(tmp_path / "manifest.csv", "manifest.csv")
    assert list(found["name"]) == ["NA", "=1+1", "007"] and list(found["pixels"]) == ["1", "2e3", "03"]
