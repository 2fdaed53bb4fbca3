"""README.md: its pictures are drawn by code, its links lead somewhere, and its numbers are those of results/."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from kaggle_utils.plot import FIGURES
from kaggle_utils.tune import summarise_runs

CLONE = Path(__file__).parents[1]
README = (CLONE / "README.md").read_text()
PROSE = re.sub(r"```.*?```|\]\([^)]*\)|`[^`]*`", " ", README, flags=re.S)  # what is neither code nor a link's target
# Numbers that are others', definitions or sizes: each with where it is from.
QUOTED = {
    "bob.ip.binseg's table, U-Net and M2U-Net at 256 px": (".982", ".955", ".973", ".942", ".964", ".967", ".970", ".945", "0.55", "25.8"),
    "bob.med.tb's table, Pasa and DenseNet-121; Pasa's parameters in millions": (".870", ".893", ".948", ".946", ".576", ".607", ".814", "0.2"),
    "the classifier's parameters in millions, and the AUC hoped for": ("0.29", ".92", ".75"),
    "HybridGNet's notebooks": (".954", ".935"),
    "sizes in MB": ("0.9", "1.8", "3.9", "7.2"),
    "the budget in minutes of benchmarks/time_to_dice.py": ("1.25",),
    "the first version's reports, and what they allow": (".7", ".80", ".90", "78.32"),
    "rms distance of unrelated films, by definition of the measure": ("1.4",),
    "steps between Dice of the Pareto study, as differences of its table": (".0003", ".004", ".005", ".002", ".001"),
    "versions of Python and torch": ("3.10", "3.11", "2.13"),
    "the digit to which six runtimes' Dice agree": ("0.0001",),
}


def numbers(value) -> list[float]:
    """Every number of a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.fixture(scope="module")
def measured() -> list[float]:
    """The numbers of results/, but for tables of single films or epochs, where any number could be found."""
    found = [number for path in (CLONE / "results").glob("*.json") for number in numbers(json.loads(path.read_text()))]
    tables = [pd.read_csv(path) for path in (CLONE / "results").glob("*.csv") if path.stem not in ("protocols", "tb_films", "time_to_dice")]
    studies = [pd.read_csv(path) for path in (CLONE / "results/tuning").glob("*.csv")]
    tables += [summarise_runs(table) for table in studies]
    tables += [table.groupby("run")[["val_dice", "reported", "val_accuracy"]].agg(["min", "max"]) for table in studies]
    return found + [float(number) for table in tables for number in table.select_dtypes("number").to_numpy().flat]


def is_backed(text: str, measured: list[float]) -> bool:
    """Whether a number as written is a measured one without its sign, in percent or in millions, rounded to as many digits."""
    half = 0.5 * 10 ** -len(text.split(".")[1])
    return any(abs(abs(number) * unit - float(text)) <= half * (1 + 1e-6) for number in measured for unit in (1, 100, 1e-6))


def test_numbers_are_measured_or_quoted(measured):
    written = set(re.findall(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)", PROSE))
    quoted = {number for numbers in QUOTED.values() for number in numbers}
    assert len(written) > 100
    assert not sorted(number for number in written - quoted if not is_backed(number, measured))


def test_no_number_is_quoted_that_is_not_written():
    gone = {number for numbers in QUOTED.values() for number in numbers if not re.search(rf"(?<![\w.]){re.escape(number)}(?!\d)", PROSE)}
    assert not gone


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading it is."""
    lines = README[README.index(f"| {heading} |"):].splitlines()
    table = lines[:next(k for k, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_protocols_table_is_the_summarys():
    summary = pd.read_csv(CLONE / "results/protocols_summary.csv").set_index(["trained_on", "source", "protocol", "size"])
    rows = rows_of("trained on | tested on | n")
    assert len(rows) == 15
    for trained, tested, *cells, peer in rows:
        source, protocol = tested.replace(",", "").lower().split()
        key = "both" if "+" in trained else trained.lower()
        at_256, own = summary.loc[(key, source, protocol, 256)], summary.loc[(key, source, protocol, 0)]
        assert cells == [str(int(at_256.n)), f"{at_256.dice:.4f}", f"{at_256.low:.4f}-{at_256.high:.4f}", f"{at_256.sd:.4f}",
                         f"{at_256.worst:.4f}", f"{at_256.hd95:.2f}", f"{at_256.assd:.2f}", f"{own.dice:.4f}"], (trained, tested)


def test_pictures_are_those_that_code_draws():
    pictures = set(re.findall(r"!\[[^\]]*\]\(images/([^)]+)\)", README))
    assert pictures <= set(FIGURES) and {path.name for path in (CLONE / "images").iterdir()} == set(FIGURES)
    assert all((CLONE / "images" / name).stat().st_size > 5000 for name in pictures)


def test_links_lead_somewhere():
    files, sections = re.findall(r"\]\((?!http)([^)#]+)\)", README), re.findall(r"\]\(#([^)]+)\)", README)
    assert not [name for name in files if not (CLONE / name).exists()]
    headings = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.M)}
    assert files and set(sections) <= headings


def test_commands_exist():
    from kaggle_utils.__main__ import build_parser
    commands = set(re.findall(r"python -m kaggle_utils ([a-z][\w-]*)", README))
    known = next(action for action in build_parser()._actions if action.choices).choices
    assert len(commands) > 8 and commands <= set(known)
    targets = set(re.findall(r"^\s*make (\w+)|`make (\w+)", README, re.M))
    makefile = (CLONE / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", makefile, re.M) for pair in targets for name in pair if name)
