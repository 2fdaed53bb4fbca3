"""README, docs, notebooks' text and talk: numbers are of results/, pictures drawn by code, links and commands work."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import nbformat
import pytest

from benchmarks.numbers import CUT, PAGES, measured, read_page, read_rows, refresh, rewritten, says, split, write_page
from benchmarks.readme import ADDRESS, MARK, TABLES, fill, renew, repository, site_of
from kaggle_utils.plots import CHARTS, PICTURES

CLONE = Path(__file__).parents[1]
TEXTS = {name: read_page(path) for name, path in PAGES.items()}
README = TEXTS["README.md"]
ROWS = read_rows()
NUMBER = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)")
each_page = pytest.mark.parametrize("page", PAGES)


def flat(text: str) -> str:
    """A page on one line, without the tables that benchmarks/readme.py writes."""
    return " ".join(MARK.sub("", text).split())


@cache
def rows_of(page: str) -> list[dict[str, str]]:
    return [row for row in ROWS if row["page"] == page]


def wrong(page: str, text: str) -> list[str]:
    """The numbers of a page that aren't what results/ says, and those whose place nobody named."""
    bad, found = [], set()
    for row in rows_of(page):
        before, number, after = split(row["text"])
        places = [match.start() + len(before) for match in re.finditer(re.escape(before + number + after), text)]
        right = not row["file"] or says(number, after, measured(row["file"], row["row"], row["column"]))
        if len(places) != 1 or not right:
            bad.append(row["text"])
        found |= set(places)
    prose = re.sub(r"```.*?```|\]\([^)]*\)|`[^`]*`", lambda code: " " * len(code[0]), text)
    return bad + [text[max(0, m.start() - 30) : m.end() + 10] for m in NUMBER.finditer(prose) if m.start() not in found]


@each_page
def test_each_number_is_measured_or_says_what_else_it_is(page):
    assert not wrong(page, flat(TEXTS[page]))
    assert all(row["row"] or row["file"].endswith(".json") for row in rows_of(page))


def test_every_row_is_of_a_page():
    assert {row["page"] for row in ROWS} <= set(PAGES) and len(ROWS) > 100


def test_pages_are_what_results_say():
    assert sum(len(MARK.findall(text)) for text in TEXTS.values()) >= len(TABLES) == 28
    assert {found[1] for text in TEXTS.values() for found in MARK.findall(text)} == set(TABLES)
    stale = [name for name, text in renew(TEXTS, ROWS)[0].items() if text != TEXTS[name]]
    assert not stale, "run `python -m benchmarks.readme`, and read the sentences around what it prints"


def test_a_number_that_is_changed_in_its_place_is_noticed():
    for row in random.Random(0).sample(ROWS, 5):
        before, number, after = split(row["text"])
        other, text = number[:-1] + str((int(number[-1]) + 1) % 10), flat(TEXTS[row["page"]])
        assert row["text"] in wrong(row["page"], text.replace(before + number + after, before + other + after))
    assert len(wrong("README.md", flat(README) + " It is 0.951 there.")) == 1
    found = MARK.search(README)
    assert fill(README.replace(found[3], found[3].replace("1 |", "2 |"))) == README


def test_a_random_decimal_is_not_what_was_measured():
    """Even where the words around it are changed with it."""
    chance, accepted, tried = random.Random(0), 0, 0
    for row in (row for row in ROWS if row["file"]):
        value, after = measured(row["file"], row["row"], row["column"]), split(row["text"])[2]
        accepted += sum(says(f"0.{chance.randrange(1000):03d}", after, value) for _ in range(50))
        tried += 50
    assert accepted / tried < 0.005


def test_what_was_measured_again_is_written_into_the_text_and_its_row(monkeypatch):
    now = {"old": 0.98149, "share": 0.1806, "difference": -0.0042}
    monkeypatch.setattr("benchmarks.numbers.measured", lambda file, row, column: now[column])
    texts = ["Dice {0.975} of", "0.975 of 18.2, {.004} less", "of {18.2} %", "in {1.25} minutes"]
    rows = [{"text": text, "file": "x.csv", "row": "", "column": column} for text, column in zip(texts, now)]
    rows[1]["text"], rows[2]["text"] = "it is {18.2} % and", "% and {.003} less"
    rows[1]["column"], rows[2]["column"] = "share", "difference"
    rows.append({"text": texts[3], "file": "", "row": "a budget", "column": ""})
    text, rows = refresh("page", "A Dice\n0.975 of 1; it is 18.2 % and\n.003 less, in 1.25 minutes.", rows)
    assert text == "A Dice\n0.981 of 1; it is 18.1 % and\n.004 less, in 1.25 minutes."
    told = ["Dice {0.981} of", "it is {18.1} % and", "% and {.004} less", "in {1.25} minutes"]
    assert [row["text"] for row in rows] == told
    with pytest.raises(ValueError, match="2 times"):
        refresh("page", "it is 18.1 % and it is 18.1 % and", rows[1:2])


def test_a_number_keeps_its_form():
    assert rewritten("60", " % of", 0.6034) == "60" and rewritten("60", " % of", 0.556) == "56"
    assert rewritten(".95", "", 0.9549) == ".95" and rewritten(".95", "", 0.96) == ".96"
    assert rewritten("0.45", "M", 1_234_567) == "1.23" and rewritten("18.1", " %", 0.2) == "20.0"


def test_a_notebook_is_a_page_of_its_texts_and_keeps_the_rest(tmp_path):
    path, cells = tmp_path / "n.ipynb", [nbformat.v4.new_markdown_cell("Dice .91"), nbformat.v4.new_code_cell("1 + 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_markdown_cell("of 60 %.\n")]), path)
    assert read_page(path).split(CUT) == ["Dice .91", "of 60 %.\n"] and flat(read_page(path)) == "Dice .91 of 60 %."
    write_page(path, read_page(path).replace(".91", ".92").replace("60", "61"))
    assert [cell.source for cell in nbformat.read(path, 4).cells] == ["Dice .92", "1 + 1", "of 61 %.\n"]


def test_readme_is_short_and_its_table_fits_a_screen():
    assert len(README.encode()) <= 12 * 1024
    table, records = (found[2].splitlines() for found in MARK.findall(README))
    assert len(table) <= 2 + 8 and all(row.count("|") <= 7 and len(row) <= 110 for row in table)
    assert len(records) <= 2 + 8 and all(row.count("|") <= 7 for row in records)


def test_records_of_the_speedrun_are_a_table_and_what_is_none_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    page = "<!-- table speedrun: python -m benchmarks.readme -->\n\nMore"
    assert fill(page) == page
    one = {"machine": "two cores", "changed": "first", "films": 900, "seconds": 21.04, "dice": 0.9512}
    one |= {"worst_dice": 0.9501, "record": True}
    others = [one | {"seconds": 18.96, "changed": "Muon"}, one | {"seconds": 9, "record": False}]
    (tmp_path / "speedrun.json").write_text(json.dumps([one, *others]))
    _, _, *rows = fill(page).split("\n\n")[0].splitlines()[1:]
    first = "| **19.0** | 0.9512 | 0.9501 | 900 | two cores | Muon |"
    assert rows == [first, first.replace("19.0", "21.0").replace("Muon", "first")]


def test_measured_cards_are_a_table_with_what_they_lack_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    page = "<!-- table cards: python -m benchmarks.readme -->\n\nMore"
    assert fill(page) == page
    rates = [(256, 90.2), (256, 120.4), (256, None), (384, 50.0)]
    t4 = {
        "card": {"card": "T4", "precision": "fp16"},
        "speeds": {"rows": [{"size": size, "images_per_s": rate} for size, rate in rates], "failed": "in the end"},
        "classic": {"rows": [{"images_per_s": 19.6}]},
        "inference": {"images_per_s": {"batch 1": 100.0, "batch 8": 300.2}},
        "time_to_dice": {"runs": [{"seconds": {"pooled": seconds}} for seconds in (9.0, 8.0, 10.0)]},
    }
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "a.json").write_text(json.dumps(t4))
    (tmp_path / "gpu" / "b.json").write_text(json.dumps({"card": t4["card"], "inference": {"failed": "no kernel"}}))
    _, _, _, whole, part = fill(page).split("\n\n")[0].splitlines()
    assert whole == "| T4, fp16 | 120 | 50 | 20 | 300 | 9.0 |" and part == "| T4, fp16 | | | | | |"


def test_the_address_is_that_of_pyproject():
    assert ADDRESS.findall(README) == [repository()] and f"git clone {repository()} " in README
    opened = re.findall(r"https://www\.kaggle\.com/kernels/welcome\?src=([^)]+)", README)
    notebooks = [f"{repository()}/blob/main/notebooks/{path.name}" for path in (CLONE / "notebooks").glob("*.ipynb")]
    assert set(opened) == set(notebooks)
    elsewhere = README.replace(repository(), "https://example.org/mine/unet-lung")
    assert elsewhere.count("example.org") >= 4
    elsewhere = elsewhere.replace(site_of(repository()), "https://mine.github.io/unet-lung/")
    assert elsewhere.count("mine.github.io") == 2 and fill(elsewhere) == README


def test_pictures_are_those_that_code_draws():
    pictures = {
        name for text in TEXTS.values() for name in re.findall(r"!\[[^\]]*\]\((?:\.\./)?images/([^)#]+)[^)]*\)", text)
    }
    drawn = {*PICTURES, *CHARTS, "web.webp"}  # the last is recorded by benchmarks.web
    assert pictures == drawn == {path.name for path in (CLONE / "images").iterdir()}
    assert all((CLONE / "images" / name).stat().st_size > 5000 for name in pictures)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", TEXTS[page])
    folder = PAGES[page].parent
    assert not [name for name, _ in links if not (folder / name).exists()]
    targets = [(folder / name if name else PAGES[page], anchor) for name, anchor in links if anchor]
    assert not [anchor for path, anchor in targets if path.suffix == ".md" and anchor not in anchors(path)]
    assert links or page == "docs/own_data.md"


def test_readme_leads_to_every_page():
    pages = {name for name in PAGES if not name.startswith(("notebooks/", "slides/"))} - {"README.md", "docs/index.md"}
    assert set(re.findall(r"\]\((\w+/[\w./]+\.md)", README)) == pages


def test_commands_exist():
    from kaggle_utils.cli import build_parser

    everything = "\n".join(TEXTS.values())
    commands = set(re.findall(r"(?:^|\$ |`)(?:python -m kaggle_utils|unet-lung) ([a-z][\w-]*)", everything, re.M))
    known = next(action for action in build_parser()._actions if action.choices).choices
    assert len(commands) > 12 and commands <= set(known)
    targets = set(re.findall(r"^\s*make ([\w-]+)|`make ([\w-]+)", everything, re.M))
    makefile = (CLONE / "Makefile").read_text()
    assert all(re.search(rf"^{name}:", makefile, re.M) for pair in targets for name in pair if name)
    modules = set(re.findall(r"python -m ((?:benchmarks|tests)\.[a-z0-9_]+)", everything))
    assert len(modules) > 12 and all((CLONE / f"{name.replace('.', '/')}.py").exists() for name in modules)


def test_readme_runs_the_command_that_runs_the_tests():
    assert re.search(r"^make test\b", README, re.M) and re.search(
        r"\bmake test$", (CLONE / ".ci/run").read_text(), re.M
    )


@pytest.mark.parametrize("data", ["", "DATA=films"])
def test_make_run_and_make_demo_write_into_runs_alone(data):
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/run.stamp", "demo", "run", *filter(None, [data])],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=True,
    )
    outs = re.findall(r"--out (\S+)", done.stdout)
    assert len(outs) == (7 if not data else 6) and all(out.startswith("runs/") for out in outs)
    ignored = subprocess.run(["git", "check-ignore", *outs], cwd=CLONE, capture_output=True, text=True)
    assert ignored.stdout.split() == outs or not (CLONE / ".git").exists()


def test_make_help_names_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (CLONE / "Makefile").read_text(), re.M)[1].split()
    said = subprocess.run(["make", "help"], cwd=CLONE, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([\w-]+)", said, re.M)) == set(targets) - {"help"}


def alike(said: str, told: str) -> bool:
    """Whether two texts are the same within three units of their numbers' last digits, which a processor decides."""
    numbers = r"\d+(?:\.\d+)?"
    if re.sub(numbers, "#", said) != re.sub(numbers, "#", told):
        return False
    return all(map(near, re.findall(numbers, said), re.findall(numbers, told)))


def near(said: str, told: str) -> bool:
    decimals = len(told.partition(".")[2])
    return abs(float(said) - float(told)) <= (3.1 if decimals else 1) / 10**decimals


@pytest.mark.slow
def test_the_python_on_the_first_screen_prints_what_it_says():
    code, told = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", README, re.S).groups()
    done = subprocess.run([sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True, check=True)
    assert len([line for line in code.splitlines() if line]) == 3 and alike(done.stdout, told), done.stdout


@pytest.mark.slow
def test_the_shell_on_the_first_screen_prints_what_it_says(tmp_path):
    (console,) = re.findall(r"```console\n(.*?)```", README, re.S)
    lines, told = re.findall(r"^\$ (.*)$", console, re.M), re.sub(r"^\$ .*\n", "", console, flags=re.M)
    assert len(lines) == 2
    (tmp_path / "kaggle_utils").symlink_to(CLONE / "kaggle_utils")
    command = f'unet-lung() {{ {shlex.quote(sys.executable)} -m kaggle_utils "$@"; }}\n' + "\n".join(lines)
    env = os.environ | {"PYTHONPATH": str(CLONE)}
    done = subprocess.run(["bash", "-ec", command], cwd=tmp_path, capture_output=True, text=True, check=True, env=env)
    assert alike(done.stdout, textwrap.dedent(told)), done.stdout
