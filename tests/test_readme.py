"""README.md: its pictures are drawn by code, its links lead somewhere, and its numbers are those of results/."""

import json
import random
import re
from functools import cache
from pathlib import Path

import pandas as pd

from benchmarks.readme import MARK, RESULTS, fill
from kaggle_utils.plots import CHARTS, PICTURES
from kaggle_utils.tuning.studies import summarise_runs

CLONE = Path(__file__).parents[1]
README = (CLONE / "README.md").read_text()
TEXT = " ".join(MARK.sub("", README).split())  # without the tables that benchmarks/readme.py writes
NUMBER = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)")
# A row a number: the words around it, the number in braces, and where it is from. Without a file it is no measurement,
# and ``row`` says what it is.
NUMBERS = pd.read_csv(Path(__file__).with_name("readme_numbers.csv"), keep_default_na=False)


read = cache(pd.read_csv)


@cache
def measured(file: str, row: str, column: str) -> float:
    """One number of results/.

    Args:
        file: a CSV or JSON file there; of ``tuning/`` the mean over the seeds after the last epoch.
        row: ``column=value; …`` of the only row that has them; or two such, ``A minus B``, for their difference. Empty
            for JSON.
        column: of that row; ``max column`` and ``min column`` are those of all epochs. In JSON the keys, ``a/b``.
    """
    if file.endswith(".json"):
        value = json.loads((RESULTS / file).read_text())
        for key in column.split("/"):
            value = value[key]
        return value
    if " minus " in row:
        one, other = row.split(" minus ")
        return measured(file, one, column) - measured(file, other, column)
    table, (*extreme, column) = read(RESULTS / file), column.split()
    if file.startswith("tuning/") and not extreme:
        table = summarise_runs(table)
    for name, _, wanted in (condition.partition("=") for condition in row.split("; ")):
        table = table[table[name].map(str).isin({wanted, f"{wanted}.0"})]
    if extreme:
        return getattr(table[column], extreme[0])()
    assert len(table) == 1, f"{file}: {len(table)} rows with {row}"
    return float(table[column].iloc[0])


def split(text: str) -> tuple[str, str, str]:
    """What stands before a number, the number, and what stands after it."""
    before, number, after = re.fullmatch(r"(.*)\{([\d.]+)\}(.*)", text).groups()
    return before, number, after


def says(number: str, after: str, value: float) -> bool:
    """Whether a number as written is the measured one without its sign, in percent or millions where that follows,
    rounded to its digits."""
    unit = 100 if after.startswith(" %") else 1e-6 if after.startswith("M") else 1
    return abs(abs(value) * unit - float(number)) <= 0.5 * 10 ** -len(number.split(".")[1]) * (1 + 1e-6)


def wrong(text: str) -> list[str]:
    """The numbers of a text that aren't what results/ says, and those whose place nobody named."""
    bad, found = [], set()
    for row in NUMBERS.itertuples():
        before, number, after = split(row.text)
        places = [match.start() + len(before) for match in re.finditer(re.escape(before + number + after), text)]
        if len(places) != 1 or row.file and not says(number, after, measured(row.file, row.row, row.column)):
            bad.append(row.text)
        found |= set(places)
    prose = re.sub(r"```.*?```|\]\([^)]*\)|`[^`]*`", lambda code: " " * len(code[0]), text)
    return bad + [text[max(0, m.start() - 30) : m.end() + 10] for m in NUMBER.finditer(prose) if m.start() not in found]


def test_each_number_is_measured_or_says_what_else_it_is():
    assert not wrong(TEXT)
    assert all(NUMBERS["row"].astype(bool) | NUMBERS["file"].str.endswith(".json"))


def test_tables_are_what_results_say():
    assert len(MARK.findall(README)) >= 9
    assert fill(README) == README, "run `python -m benchmarks.readme`"


def test_a_number_that_is_changed_in_its_place_is_noticed():
    for row in NUMBERS.sample(3, random_state=0).itertuples():
        before, number, after = split(row.text)
        changed = TEXT.replace(before + number + after, before + number[:-1] + str((int(number[-1]) + 1) % 10) + after)
        assert row.text in wrong(changed)
    assert len(wrong(TEXT + " It is 0.951 there.")) == 1
    found = MARK.search(README)
    assert fill(README.replace(found[3], found[3].replace("1 |", "2 |"))) == README


def test_a_random_decimal_is_not_what_was_measured():
    """Even where the words around it are changed with it."""
    chance, accepted, tried = random.Random(0), 0, 0
    for row in NUMBERS[NUMBERS["file"] != ""].itertuples():
        value, after = measured(row.file, row.row, row.column), split(row.text)[2]
        accepted += sum(says(f"0.{chance.randrange(1000):03d}", after, value) for _ in range(50))
        tried += 50
    assert accepted / tried < 0.005


def test_pictures_are_those_that_code_draws():
    pictures = set(re.findall(r"!\[[^\]]*\]\(images/([^)]+)\)", README))
    drawn = {*PICTURES, *CHARTS}
    assert pictures <= drawn and {path.name for path in (CLONE / "images").iterdir()} == drawn
    assert all((CLONE / "images" / name).stat().st_size > 5000 for name in pictures)


def test_links_lead_somewhere():
    files, sections = re.findall(r"\]\((?!http)([^)#]+)\)", README), re.findall(r"\]\(#([^)]+)\)", README)
    assert not [name for name in files if not (CLONE / name).exists()]
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert files and set(sections) <= headings


def test_commands_exist():
    from kaggle_utils.cli import build_parser

    commands = set(re.findall(r"python -m kaggle_utils ([a-z][\w-]*)", README))
    known = next(action for action in build_parser()._actions if action.choices).choices
    assert len(commands) > 8 and commands <= set(known)
    targets = set(re.findall(r"^\s*make (\w+)|`make (\w+)", README, re.M))
    makefile = (CLONE / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", makefile, re.M) for pair in targets for name in pair if name)
