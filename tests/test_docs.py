"""docs/: the site builds without a warning, has every module's page, and asks no other machine for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the extra docs isn't installed")
CLONE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; its build fails at a dead link, a lost anchor, a docstring that can't be read."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=CLONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_on_the_site(site):
    pages = {page.parent.name for page in site.rglob("index.html")}
    assert {path.stem for path in (CLONE / "docs").glob("*.md")} - {"index"} < pages


@pytest.mark.slow
def test_every_module_is_on_a_page_of_the_api(site):
    shown = set(
        re.findall(r'id="(kaggle_utils[\w.]*)"', "".join(p.read_text() for p in (site / "api").rglob("*.html")))
    )
    files = [path.relative_to(CLONE).with_suffix("") for path in (CLONE / "kaggle_utils").rglob("*.py")]
    modules = {".".join(path.parts) for path in files if not path.name.startswith("__")}
    assert modules - shown == {"kaggle_utils.cli"} - shown
    assert {"kaggle_utils.infer.LungSegmenter", "kaggle_utils.loss.DiceLoss"} <= shown
    assert ":func:`" not in (site / "api/core/index.html").read_text()


@pytest.mark.slow
def test_a_page_shows_its_tables_and_pictures_and_leads_to_the_repository(site):
    page, source = (site / "results/index.html").read_text(), (CLONE / "docs/results.md").read_text()
    assert (
        page.count("<table>") == source.count("| --- |\n")
        and "../images/robustness.png" in page
        and (site / "images/robustness.png").exists()
    )
    assert "/blob/main/results/protocols_summary.csv" in page and "](" not in page


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site):
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\"> ]+)|<link[^>]*rel=\"?stylesheet[^>]*href=\"?([^\"> ]+)"
    )
    named = [one for path in site.rglob("*.html") for pair in loads.findall(path.read_text()) for one in pair if one]
    assert len(named) > 50 and not [name for name in named if re.match(r"(?:https?:)?//", name)]
    assert 'data-md-component="source"' not in (site / "index.html").read_text()  # it asks GitHub for stars
