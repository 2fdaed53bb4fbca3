"""slides/: which cells share a slide, and the deck in a browser: no network, nothing wider or higher than a slide."""

import base64
import hashlib
import io
import os
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from kaggle_utils.plots import CHARTS
from kaggle_utils.plots.style import styled
from slides import make
from slides.make import CACHE, MATHJAX, REVEAL, embedded, fetch, make_deck, split, to_html

NOTEBOOKS = make.README.parent / "notebooks"
LEGIBLE = 0.5  # of the usual text size; code is then 14 px high on a screen of 1080
LAST_ROW = 18  # px of 1280 × 720, what can be read from there
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What a slide shows, and what of it lies outside its slide or is clipped: by the browser, not by deck.js.
REPORT = """() => {
  const slide = Reveal.getCurrentSlide(), box = slide.getBoundingClientRect(),
    inside = [...slide.querySelectorAll(":not(aside, aside *, svg *)")];
  const outside = e => {
    const r = e.getBoundingClientRect();
    return r.left < box.left - 1 || r.top < box.top - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1;
  };
  const clipped = e => e.matches("pre, div, td, th, table, p, li, section") && e.scrollWidth > e.clientWidth + 1;
  const figure = slide.querySelector("img");
  return {text: slide.innerText, heading: slide.querySelector("h1, h2, h3")?.innerText,
    scale: +slide.style.getPropertyValue("--scale"),
    beside: slide.classList.contains("columns"),
    figure: figure ? [figure.clientWidth, figure.clientHeight] : null, last: Reveal.isLastSlide(),
    figures: [...slide.querySelectorAll("img:not([data-live])")].map(e => [e.src, e.clientWidth, e.naturalWidth]),
    letters: [...inside, ...document.querySelectorAll(".where, .slide-number")].filter(
      e => [...e.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim())).map(
      e => [parseFloat(getComputedStyle(e).fontSize), e.textContent.trim().slice(0, 40)]),
    wrong: inside.filter(e => outside(e) || clipped(e)).map(e => e.outerHTML.slice(0, 120)),
    formulas: slide.querySelectorAll("mjx-container > svg").length,
    bad: slide.querySelectorAll("[data-mjx-error]").length};
}"""


def markdown(text: str, slide_type: str | None = None):
    return new_markdown_cell(text, metadata={"slideshow": {"slide_type": slide_type}} if slide_type else {})


def code(text: str, *outputs, slide_type: str | None = None):
    return new_code_cell(
        text, outputs=list(outputs), metadata={"slideshow": {"slide_type": slide_type}} if slide_type else {}
    )


def printed(text: str, name: str = "stdout"):
    return new_output("stream", name=name, text=text)


def table(rows: int):
    frame = pd.DataFrame(
        {metric: [0.9] * rows for metric in ("dice", "iou", "hd95", "assd")},
        index=[f"film_{row}" for row in range(rows)],
    )
    return new_output("execute_result", {"text/html": frame.to_html(), "text/plain": str(frame)}, execution_count=1)


def png(width: float, height: float) -> bytes:
    with matplotlib.rc_context({"backend": "agg"}):
        figure, axes = plt.subplots(figsize=(width, height))
    axes.plot([0, 1], [0, 1])
    figure.savefig(buffer := io.BytesIO(), dpi=100)
    plt.close(figure)
    return buffer.getvalue()


def drawn(width: float, height: float):
    return new_output("display_data", {"image/png": base64.b64encode(png(width, height)).decode()})


def starts(*cells) -> list[list[str]]:
    """The cells' text, slide by slide."""
    slides = []
    for cell in split(new_notebook(cells=list(cells))).cells:
        if cell.metadata.slideshow.slide_type in ("slide", "subslide") or not slides:
            slides.append([])
        slides[-1].append(cell.source)
    return slides


# --- cells to slides -------------------------------------------------------------------------------------------------


def test_heading_starts_a_slide_and_code_stays_with_the_text_around_it():
    assert starts(
        markdown("# Prep"), markdown("## Films?"), code("a"), markdown("So it is."), markdown("## Masks?"), code("b")
    ) == [["# Prep"], ["## Films?", "a", "So it is."], ["## Masks?", "b"]]


def test_heading_in_the_middle_of_a_cell_starts_a_slide_but_none_in_a_fence():
    assert starts(
        code("a"), markdown("So it is.\n\n## Masks?\n\n```\n# no heading\n```\n### Left\nand right"), code("b")
    ) == [["a", "So it is.\n\n"], ["## Masks?\n\n```\n# no heading\n```\n"], ["### Left\nand right", "b"]]


def test_notebooks_first_slide_has_no_code():
    assert starts(markdown("# Prep\n\nReads films."), code("a"))[0] == ["# Prep\n\nReads films."]
    assert starts(markdown("# Prep"), markdown("Where are we?"), code("a")) == [
        ["# Prep"],
        ["## Prep", "Where are we?", "a"],
    ]


def test_second_code_cell_starts_a_slide_that_repeats_the_heading():
    assert starts(markdown("## Films?"), code("a"), code("b")) == [["## Films?", "a"], ["## Films?", "b"]]


@pytest.mark.parametrize("before, together", [("And the masks?", "b"), ("The masks:", "b")])
def test_text_that_introduces_code_goes_with_it(before, together):
    assert starts(markdown("## Films?"), code("a"), markdown(before), code("b")) == [
        ["## Films?", "a"],
        ["## Films?", before, together],
    ]
    assert starts(markdown("## Films?"), code("a"), markdown("So it is."), markdown("Next"), code("b"))[1] == [
        "## Films?",
        "Next",
        "b",
    ]


def test_text_that_ends_a_slide_stays_on_it():
    assert starts(markdown("## Films?"), code("a"), markdown("So it is."), code("b")) == [
        ["## Films?", "a", "So it is."],
        ["## Films?", "b"],
    ]


def test_cells_own_slide_type_goes_first():
    assert starts(
        markdown("## Films?"),
        code("a"),
        code("b", slide_type="-"),
        markdown("c", "subslide"),
        code("setup", slide_type="skip"),
        markdown("## Masks?", "-"),
    ) == [["## Films?", "a", "b"], ["## Films?", "c", "## Masks?"]]


def test_slides_of_own_pictures_carry_them_and_those_of_a_server_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a b.png").write_bytes(png(1, 1))
    path = tmp_path / "notebooks/01.ipynb"
    path.parent.mkdir()
    assert base64.b64decode(embedded("../images/a%20b.png", path).removeprefix("data:image/png;base64,")) == png(1, 1)
    html = to_html(
        split(new_notebook(cells=[markdown("![x](<../images/a b.png>)\n\n<img alt='y' src='../images/a%20b.png'>")])),
        path,
    )
    assert html.count("data:image/png;base64,") == 2 and "../images" not in html
    for source in ("https://example.org/badge.png", "../images/none.png"):
        with pytest.raises(ValueError, match=f"01.ipynb: its slides would load {source}"):
            to_html(split(new_notebook(cells=[markdown(f"![x]({source})")])), path)


def test_notebooks_folder_that_is_empty_is_one_line(tmp_path, capsys):
    assert make.main(["--notebooks", str(tmp_path), "--out", str(tmp_path / "decks")]) == 1
    assert capsys.readouterr().err == f"slides: {tmp_path}: there is no notebook (*.ipynb) to make slides of\n"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 1}'])
def test_damaged_notebook_is_named(tmp_path, content):
    (tmp_path / "01.ipynb").write_text(content)
    with pytest.raises(ValueError, match="01.ipynb: not a notebook"):
        make_deck(tmp_path, tmp_path / "deck.html")


def test_notebook_with_nothing_to_show_is_named(tmp_path):
    for cells in ([], [code("setup", slide_type="skip")], [markdown("say this", "notes")]):
        with pytest.raises(ValueError, match="01.ipynb: no cell to show"):
            to_html(split(new_notebook(cells=cells)), tmp_path / "01.ipynb")


# --- npm -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that packs ``b"package"`` whatever it is asked for."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/npm").write_text('#!/bin/sh\nprintf package > "$5/$(echo "$2" | tr @ -).tgz"\n')
    (tmp_path / "bin/npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def sha512(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def test_package_is_fetched_once(npm, tmp_path, monkeypatch):
    assert fetch("deck.js-1.2", sha512(b"package"), tmp_path / "cache").read_bytes() == b"package"
    monkeypatch.setenv("PATH", "")
    assert fetch("deck.js-1.2", sha512(b"package"), tmp_path / "cache") == tmp_path / "cache/deck.js-1.2.tgz"
    assert os.listdir(tmp_path / "cache") == ["deck.js-1.2.tgz"]


def test_another_package_than_the_tested_is_refused_and_not_kept(npm, tmp_path):
    with pytest.raises(ValueError, match="deck.js-1.2.tgz: its sha512 is"):
        fetch("deck.js-1.2", sha512(b"tested"), tmp_path / "cache")
    assert not os.listdir(tmp_path / "cache")


def test_damaged_cache_is_named(tmp_path):
    (tmp_path / "deck.js-1.2.tgz").write_bytes(b"half")
    with pytest.raises(ValueError, match="delete it to fetch it again"):
        fetch("deck.js-1.2", sha512(b"package"), tmp_path)


def test_missing_npm_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="npm is missing.*install Node.js"):
        fetch("deck.js-1.2", sha512(b"package"), tmp_path)


def test_failing_npm_is_one_line(npm, tmp_path):
    (tmp_path / "bin/npm").write_text("#!/bin/sh\necho error code E404 >&2\necho error last >&2\nexit 1\n")
    with pytest.raises(OSError, match="^npm pack deck.js@1.2 failed: error last$"):
        fetch("deck.js-1.2", sha512(b"package"), tmp_path)


# --- the deck in a browser -------------------------------------------------------------------------------------------

PREP = [
    markdown("# Prep\n\nRaw sets become one folder.\n\n- reads `raw/`\n- writes `segmentation/`"),
    code("import sys", slide_type="skip"),
    markdown("## What lies there?\n\nSets are known by their layout."),
    code("sets = find_sets(folder)\nlen(sets)", printed("3 sets cost $5 and $6\n"), printed("  9%|#   \n", "stderr")),
    markdown("Three of them. [How they are used](02_training.ipynb)."),
    code("manifest.head(3)", table(3)),
    markdown("speak slowly", "notes"),
]
TRAINING = [
    markdown("# Training"),
    markdown(
        "## Why Dice?\n\nWith $p = \\sigma(z)$:\n\n$$1 - \\frac{2\\sum_i p_i y_i}{\\sum_i p_i + \\sum_i y_i}, \\quad "
        "\\mathbb{R} \\ni z, "
        "\\boldsymbol{y}, \\mathcal{L}, \\mathfrak{B}$$"
    ),
    markdown("## Figure"),
    code("curves(history)", drawn(9, 3)),
    markdown("## Tall figure"),
    code("\n".join(f"axis.plot(history[{n}])" for n in range(12)), drawn(5, 9)),
    markdown("Taller than a slide."),
    markdown("## Long code"),
    code("\n".join(f"setting_{n} = {n}  # px" for n in range(28)), printed("\n".join(f"epoch {n}" for n in range(28)))),
    markdown("## Wide code"),
    code("call(" + ", ".join(f"argument_{n}={n}" for n in range(9)) + ")"),
    markdown("## Long table"),
    code("worst", table(18)),
]
HEADINGS = [
    "Prep",
    "What lies there?",
    "What lies there?",
    "Training",
    "Why Dice?",
    "Figure",
    "Tall figure",
    "Long code",
    "Wide code",
    "Long table",
]


def watch(deck: Path, shots: Path) -> dict:
    """Steps through a deck in a browser without a network: slides' reports, requests, errors. Saves screenshots."""
    from playwright.sync_api import sync_playwright

    shots.mkdir()
    asked, errors, slides = [], [], []
    with sync_playwright() as play, play.chromium.launch(executable_path=CHROMIUM, timeout=120_000) as browser:
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 720}).new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(deck.as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        while not slides or not slides[-1]["last"]:
            if slides:
                page.evaluate("Reveal.next()")
            slides.append(page.evaluate(REPORT))
            page.screenshot(path=shots / f"{len(slides):03d}.png")
            assert len(slides) < 1000
        return {
            "slides": slides,
            "errors": errors,
            "asked": [url for url in asked if not url.startswith("data:") and url.split("#")[0] != deck.as_uri()],
            "notes": page.evaluate("[...document.querySelectorAll('aside.notes')].map(e => e.textContent.trim())"),
            "links": page.evaluate(
                "[...document.querySelectorAll('.slides a[href]')].map(a => a.getAttribute('href'))"
            ),
        }


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """``watch``, where there is all that it takes."""
    pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM:
        pytest.skip("no browser: apt-get install chromium")
    if not all((CACHE / f"{name}.tgz").exists() for name, _ in (REVEAL, MATHJAX)):
        pytest.skip("reveal.js and MathJax are not there: python -m slides.make --fetch")
    return watch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    for name, cells in (("01_prep", PREP), ("02_training", TRAINING)):
        nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def seen(viewer, folder):
    make_deck(folder, folder / "deck/unet-lung.html")
    return viewer(folder / "deck/unet-lung.html", folder / "shots")


def test_deck_asks_nothing_of_a_network_and_has_no_errors(seen):
    assert seen["asked"] == [] and seen["errors"] == []


def test_deck_has_all_slides_in_order(seen):
    assert [slide["heading"] for slide in seen["slides"][1:]] == HEADINGS
    assert seen["slides"][0]["text"].split()[:1] == ["unet-lung"]
    # The title's, and README's to the web; a link to a notebook's file would lead nowhere.
    assert [link for link in seen["links"] if not link.startswith("https://")] == ["#/1", "#/2"]


def test_nothing_is_outside_its_slide_or_clipped(seen):
    assert {n: slide["wrong"] for n, slide in enumerate(seen["slides"]) if slide["wrong"]} == {}


def test_text_is_legible_and_figures_are_large(seen):
    slides = {slide["heading"]: slide for slide in seen["slides"]}
    assert all(slide["scale"] >= LEGIBLE for slide in slides.values()), slides
    assert all(slides[heading]["scale"] == 1 for heading in ("Prep", "Why Dice?", "Figure"))
    assert slides["Long code"]["beside"] and slides["Tall figure"]["beside"] and not slides["Figure"]["beside"]
    assert slides["Figure"]["figure"] == [900, 300] and slides["Tall figure"]["figure"][1] > 400


def test_formulas_are_set_in_text_alone(seen):
    slides = {slide["heading"]: slide for slide in seen["slides"][3:]}
    assert slides["Why Dice?"]["formulas"] == 2 and sum(slide["bad"] for slide in seen["slides"]) == 0
    assert "$" not in slides["Why Dice?"]["text"] and "3 sets cost $5 and $6" in seen["slides"][2]["text"]


def test_setup_notes_and_warnings_are_not_shown(seen):
    text = "\n".join(slide["text"] for slide in seen["slides"])
    assert "import sys" not in text and "9%" not in text and "speak slowly" not in text
    assert seen["notes"] == ["speak slowly"]


def test_deck_is_the_same_in_each_build(seen, folder):
    make_deck(folder, folder / "again.html")
    assert (folder / "again.html").read_bytes() == (folder / "deck/unet-lung.html").read_bytes()


def test_licences_are_in_the_deck(seen, folder):
    deck = (folder / "deck/unet-lung.html").read_text(encoding="utf-8")
    assert "Permission is hereby granted, free of charge" in deck and "Hakim El Hattab" in deck
    assert "Apache License" in deck and "END OF TERMS AND CONDITIONS" in deck


@pytest.mark.skipif(not list(NOTEBOOKS.glob("*.ipynb")), reason="no notebooks yet")
def test_committed_notebooks_make_a_deck_that_can_be_read(viewer, tmp_path):
    make_deck(NOTEBOOKS, tmp_path / "unet-lung.html")
    seen = viewer(tmp_path / "unet-lung.html", tmp_path / "shots")
    assert seen["asked"] == [] and seen["errors"] == []
    small = {
        f"{n}: {slide['heading']}": slide["scale"]
        for n, slide in enumerate(seen["slides"], 1)
        if slide["scale"] < LEGIBLE
    }
    assert not small, f"too much for one slide, split these cells or take lines out: {small}"
    assert {n: slide["wrong"] for n, slide in enumerate(seen["slides"], 1) if slide["wrong"]} == {}


# --- the talk --------------------------------------------------------------------------------------------------------


def talk(tmp_path, text: str):
    (tmp_path / "talk.md").write_text(text, encoding="utf-8")
    return make.read_talk(tmp_path / "talk.md")


def test_a_talk_has_a_slide_and_its_notes_by_turns(tmp_path):
    cells = talk(tmp_path, "# One\n\nNotes, 0.5 min: Say this.\n\n---\n\n## Two\n\n- a\n\nNotes, 1 min: That.\n").cells
    assert [make.slide_type(cell) for cell in cells] == ["slide", "notes"] * 2
    assert [cell.source for cell in cells] == ["# One", "**0.5 min.** Say this.", "## Two\n\n- a", "**1 min.** That."]


def test_a_talks_numbers_are_those_of_the_results(tmp_path):
    table = pd.read_csv(make.RESULTS / "protocols_summary.csv").query(
        "size == 256 and trained_on == 'all' and source == 'jsrt' and protocol == 'all'"
    )
    shown = talk(tmp_path, '# {{ number("dice", "jsrt", "all") }}\n\nNotes, 1 min: -').cells[0].source
    assert shown == f"# {table['dice'].iloc[0]:.3f}"
    with pytest.raises(ValueError, match="no row of all on moon"):
        talk(tmp_path, '# {{ number("dice", "moon", "all") }}\n\nNotes, 1 min: -')


def test_a_slide_without_notes_is_named(tmp_path):
    with pytest.raises(ValueError, match="no line 'Notes, MINUTES min: …' below 'Two'"):
        talk(tmp_path, "# One\n\nNotes, 1 min: -\n\n---\n\n## Two\n")


def test_a_figure_of_a_notebook_is_taken_by_its_place(tmp_path):
    nbformat.write(
        new_notebook(cells=[markdown("a"), code("b", drawn(2, 1)), code("c", drawn(1, 2))]), tmp_path / "n.ipynb"
    )
    sizes = []
    for place in (1, 2):
        address = embedded(f"n.ipynb#{place}", tmp_path / "talk.md")
        sizes.append(plt.imread(io.BytesIO(base64.b64decode(address.split(",")[1]))).shape[:2])
    assert sizes[0][0] < sizes[0][1] and sizes[1][0] > sizes[1][1]
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:], lossless=True)
    last = Image.open(io.BytesIO(base64.b64decode(embedded("moves.webp#0,0,4,4", tmp_path / "talk.md").split(",")[1])))
    assert last.getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(ValueError, match="figure 3 of 2"):
        embedded("n.ipynb#3", tmp_path / "talk.md")


@pytest.mark.slow
def test_the_talk_takes_twenty_minutes_and_can_be_read_from_the_last_row(viewer, tmp_path):
    make.make_talk(make.HERE / "talk.md", tmp_path / "talk.html")
    seen = viewer(tmp_path / "talk.html", tmp_path / "shots")
    assert not seen["errors"] and not seen["asked"]
    assert not [wrong for slide in seen["slides"] for wrong in slide["wrong"]]
    minutes = [float(notes.split(" min.")[0]) for notes in seen["notes"]]
    assert 20 <= len(seen["slides"]) <= 22 and len(minutes) == len(seen["slides"]) and 18 <= sum(minutes) <= 22
    small = [said for slide in seen["slides"] for said in slide["letters"] if said[0] < LAST_ROW]
    assert not small and len([said for slide in seen["slides"] for said in slide["letters"]]) > 100
    figures = [figure for slide in seen["slides"] for figure in slide["figures"]]
    sizes = {source[-40:]: px_of_letters(source, width, own) for source, width, own in figures}
    assert len(sizes) >= 12 and not {source: px for source, px in sizes.items() if px < LAST_ROW}, sizes


def px_of_letters(source: str, width: int, own_width: int) -> float:
    """How large the smallest letters of a PNG in a ``data:`` address are where it is shown as wide as ``width`` px."""
    png = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    return float(png.text["Letters"]) / 72 * png.info["dpi"][0] * width / own_width


def test_a_figure_says_how_large_its_smallest_letters_are():
    @styled
    def two_sizes():
        figure, ax = plt.subplots(figsize=(4, 3))
        ax.set_title("a title", fontsize=20)
        ax.tick_params(labelsize=7)
        return figure

    png = io.BytesIO()
    two_sizes().canvas.print_figure(png, format="png", dpi=144)  # as a notebook does
    source = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    assert px_of_letters(source, 576, 576) == pytest.approx(14, abs=0.01)
    assert px_of_letters(source, 288, 576) == pytest.approx(7, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
def test_a_slide_shows_a_page_where_it_is_built_and_served_and_else_its_picture(viewer, tmp_path, built):
    from playwright.sync_api import sync_playwright

    text = (
        '# One\n\nNotes, 1 min: -\n\n---\n\n## Live\n\n<img src="still.png" alt="a page" data-live="../web/index.html">'
    )
    (tmp_path / "talk.md").write_text(f"{text}\n\nNotes, 1 min: -\n", encoding="utf-8")
    plt.imsave(tmp_path / "still.png", np.eye(9))
    make.make_talk(tmp_path / "talk.md", tmp_path / "runs/slides/talk.html")
    if built:
        (tmp_path / "runs/web").mkdir()
        (tmp_path / "runs/web/index.html").write_text("<p>the page</p>")
    on_disk = viewer(tmp_path / "runs/slides/talk.html", tmp_path / "shots")
    assert not on_disk["errors"] and on_disk["slides"][1]["figure"]
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "runs")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as play:
        Thread(target=server.serve_forever, daemon=True).start()
        with play.chromium.launch(executable_path=CHROMIUM, timeout=120_000) as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/slides/talk.html#/1")
            page.wait_for_function("window.Reveal?.isReady()", timeout=120_000)
            if built:
                assert page.frame_locator("iframe").locator("p").inner_text(timeout=60_000) == "the page"
            assert page.locator("iframe").count() == built and page.locator(".slides img").count() == (not built)
        server.shutdown()


def test_a_chart_of_the_talk_is_drawn_for_its_width(monkeypatch, tmp_path):
    @styled
    def chart():
        figure, ax = plt.subplots(figsize=(8, 3))
        ax.set(xlabel="share")
        ax.set_title("a title", fontsize=20)
        ax.tick_params(labelsize=7)
        return figure

    monkeypatch.setitem(CHARTS, "pareto.png", chart)
    for width in (400, 900):
        source = embedded(f"../images/pareto.png#{width}", tmp_path / "talk.md")
        png = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert px_of_letters(source, width, 2 * width) == pytest.approx(make.LETTERS, rel=0.01)
        assert png.width == pytest.approx(2 * width, rel=0.1)
