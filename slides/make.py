"""The talk, and the notebooks as its appendix: two reveal.js decks, each an HTML file that opens without a network.

    python -m slides.make [--talk slides/talk.md] [--notebooks notebooks] [--out runs/slides] [--pdf]

The talk is Markdown: slides are divided by ``---``, a line ``Notes, MINUTES min:`` starts what is said, and its numbers
are those of ``results/`` when the deck is made. In the appendix each notebook is a section. A Markdown heading starts a
slide; a slide shows one code cell with its output, and the text around it (``split`` has the rules). A cell's own
``slideshow.slide_type`` goes before these rules. What is too large for a slide is drawn smaller, or code beside its
output, by ``deck.js`` when the deck opens: only a browser knows sizes.

A picture with ``data-live`` becomes the page that this names, where it was built and the deck comes from a web server.

reveal.js and MathJax are fetched by npm, once, into ``.cache/slides``.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import mimetypes
import os
import re
import shutil
import subprocess
import sys
import tarfile
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote

import nbformat
import pandas as pd
from jinja2 import Template
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE.parent / "README.md", HERE.parent / "results"
CACHE = HERE.parent / ".cache/slides"
# With their sha512: what a registry sends must be what the deck was tested with, whichever registry npm is set to.
REVEAL = "reveal.js-6.0.2", "JYIg5D9aoxoaLeb84O+OvAwsKWdIavVgEDScxtYEXFCT6t6TQrhNtSgogcjdCpdLsWglhJn3zyE3fUOwiH5KEg=="
# The last MathJax with all its glyphs in one file; version 4 asks a server for the rarer ones.
MATHJAX = "mathjax-3.2.2", "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw=="

LETTERS = 18.5  # px, of the smallest in a figure where it is as wide as its slide says
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
NOTES = re.compile(r"^Notes, ([\d.]+) min: ", re.MULTILINE)
LOADS = re.compile(
    r"""(<(?:img|script|link|iframe|video|audio|source|object|embed)\b[^>]*?\s(?:src|href|data)=["']?)(?!data:)([^"'\s>]+)"""
)


# --- decks -----------------------------------------------------------------------------------------------------------


def make_deck(notebooks: str | Path, out: str | Path) -> None:
    """Writes all notebooks of a folder as one deck, in the order of their names, behind a title slide.

    Args:
        notebooks: a folder of ``*.ipynb``, with outputs.
        out: the HTML file.

    Raises:
        FileNotFoundError: no notebook, or no package in the cache and no npm to fetch it.
        OSError: npm fetches nothing.
        ValueError: a notebook or package is damaged, or a slide would load something when it is shown.
    """
    paths = sorted(Path(notebooks).glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"{notebooks}: there is no notebook (*.ipynb) to make slides of")
    shown = [read_notebook(path) for path in paths]
    sections = [to_html(title_slide(shown), README)]
    sections += [to_html(split(notebook), path) for notebook, path in zip(shown, paths, strict=True)]
    write_deck(first_heading(README.read_text(encoding="utf-8"), "slides"), sections, out)


def make_talk(path: str | Path, out: str | Path) -> None:
    """Writes the talk of a Markdown file as a deck, with its speaker's notes.

    Raises:
        FileNotFoundError: no such file, or a table of results that it quotes is missing.
        ValueError: a number isn't in the results, a slide has no notes, or as :func:`make_deck`.
    """
    talk = read_talk(Path(path))
    write_deck(first_heading(talk.cells[0].source, "talk"), [to_html(talk, Path(path))], out)


def write_deck(title: str, sections: list[str], out: str | Path) -> None:
    """Writes slides, with all that shows them, into one HTML file."""
    reveal, mathjax = fetch(*REVEAL), fetch(*MATHJAX)
    page = Template((HERE / "page.html").read_text(encoding="utf-8")).render(
        title=title,
        sections=sections,
        styles=[packed(reveal, "dist/reveal.css"), (HERE / "deck.css").read_text(encoding="utf-8")],
        libraries=[
            ("reveal.js", packed(reveal, "LICENSE"), in_script(packed(reveal, "dist/reveal.js"))),
            ("reveal.js: speaker notes", "as above", in_script(packed(reveal, "dist/plugin/notes.js"))),
            ("MathJax", packed(mathjax, "LICENSE"), in_script(packed(mathjax, "es5/tex-svg-full.js"))),
        ],
        script=(HERE / "deck.js").read_text(encoding="utf-8"),
    )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(page, encoding="utf-8")


def print_pdf(deck: Path, out: Path) -> None:
    """Prints a deck as pictures of its slides, a page each: so it looks as on the screen.

    Raises:
        FileNotFoundError: Playwright or Chromium isn't there.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or find_spec("playwright") is None:
        raise FileNotFoundError("a PDF needs Chromium and Playwright: apt-get install chromium, pip install playwright")
    from playwright.sync_api import sync_playwright

    pages = []
    with sync_playwright() as play, play.chromium.launch(executable_path=browser) as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 720}, device_scale_factor=2)
        page.goto(deck.resolve().as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        for _ in range(page.evaluate("Reveal.getTotalSlides()")):
            pages.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
            page.evaluate("Reveal.next()")
    pages[0].save(out, save_all=True, append_images=pages[1:], resolution=192)


# --- the talk --------------------------------------------------------------------------------------------------------


def read_talk(path: Path) -> NotebookNode:
    """The slides of a talk in Markdown, each followed by its notes, numbers filled in from the results.

    Raises:
        ValueError: a slide has no notes with their minutes.
    """
    text = Template(path.read_text(encoding="utf-8")).render(number=number, quality=quality, address=address())
    cells = []
    for slide in re.split(r"^---$", text, flags=re.MULTILINE):
        parts = NOTES.split(slide)
        if len(parts) != 3:
            raise ValueError(f"{path}: no line 'Notes, MINUTES min: …' below {first_heading(slide, slide[:40])!r}")
        for kind, source in (("slide", parts[0].strip()), ("notes", f"**{parts[1]} min.** {parts[2].strip()}")):
            cells.append(new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}}))
    return new_notebook(cells=cells)


def number(column: str, source: str, protocol: str, digits: int = 3, trained_on: str = "all") -> str:
    """A number of ``results/protocols_summary.csv``, at 256 px.

    Raises:
        ValueError: the table has no such row.
    """
    table = pd.read_csv(RESULTS / "protocols_summary.csv").query("size == 256")
    rows = table[(table["source"] == source) & (table["protocol"] == protocol) & (table["trained_on"] == trained_on)]
    if len(rows) != 1:
        raise ValueError(f"protocols_summary.csv: no row of {trained_on} on {source}, {protocol}")
    return f"{rows[column].iloc[0]:.{digits}f}"


def address() -> str:
    """Of the repository, as ``pyproject.toml`` has it."""
    found = re.search(r'^Repository = "https://(.+)"$', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)
    return found[1] if found else ""


def quality(films: str, column: str) -> str:
    """A number of ``results/quality.json``, of the test."""
    return f"{json.loads((RESULTS / 'quality.json').read_text())['test'][films][column]:.2f}"


# --- cells of notebooks ----------------------------------------------------------------------------------------------


def read_notebook(path: Path) -> NotebookNode:
    """Reads a notebook of any 4.x format.

    Raises:
        ValueError: it isn't one; says which file.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, TypeError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{path}: not a notebook, or a damaged one: {str(error).splitlines()[0][:80]}") from error


def title_slide(talk: list[NotebookNode]) -> NotebookNode:
    """The README's top, up to its first second-level heading, without badges, and links to the notebooks' sections."""
    top = re.sub(r"^\[!\[.*\n", "", README.read_text(encoding="utf-8").split("\n## ")[0], flags=re.MULTILINE)
    titles = [
        first_heading("\n".join(cell.source for cell in filter(is_text, notebook.cells)), "Notebook")
        for notebook in talk
    ]
    agenda = "\n".join(f"- [{title}](#/{n})" for n, title in enumerate(titles, 1))
    return new_notebook(cells=[new_markdown_cell(f"{top}\n\n{agenda}", metadata={"tags": ["title"]})])


def split(notebook: NotebookNode) -> NotebookNode:
    """Says in each cell's metadata which cells start a slide; a slide without a heading repeats the last one.

    A slide starts at a heading, in the middle of a cell too; at code, if the slide has code already or is the
    notebook's first; and at the text before such code, if it follows other text or ends in a colon or a question mark:
    then it introduces the code rather than ends the slide.
    """
    cells, heading, full = [], None, False
    shown = [cell for cell in notebook.cells if slide_type(cell) != "skip" and cell.source.strip()]
    parts = [part for cell in shown for part in at_headings(cell)]
    for before, cell, after in zip([None, *parts], parts, [*parts[1:], None]):
        own = HEADING.match(cell.source.lstrip()) if is_text(cell) else None
        starts = own or (full and (not is_text(cell) or introduces(before, cell, after)))
        kind = slide_type(cell) or ("subslide" if starts else "-")
        if kind in ("slide", "subslide"):
            full = False
            if heading and not own:
                again = {"slideshow": {"slide_type": kind}, "tags": ["again"]}
                cells.append(new_markdown_cell(f"## {heading}", metadata=again))
                kind = "-"
        cell.metadata["slideshow"] = {"slide_type": kind}
        if own:
            heading = own[1]
        if not is_text(cell) or (own and own[0].startswith("# ")):
            full = True
        cells.append(cell)
    return new_notebook(cells=cells, metadata=notebook.metadata)


def is_text(cell: NotebookNode | None) -> bool:
    return cell is not None and cell.cell_type == "markdown"


def introduces(before: NotebookNode | None, cell: NotebookNode, after: NotebookNode | None) -> bool:
    """Whether a text between two cells belongs to the code after it."""
    if before is None or after is None or is_text(after):
        return False
    return is_text(before) or cell.source.rstrip().endswith((":", "?"))


def at_headings(cell: NotebookNode) -> list[NotebookNode]:
    """A Markdown cell cut before each heading; whole if it is code, or says its ``slide_type`` itself."""
    if not is_text(cell) or slide_type(cell):
        return [cell]
    parts, fenced = [""], False
    for line in cell.source.splitlines(keepends=True):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if HEADING.match(line) and not fenced and parts[-1].strip():
            parts.append("")
        parts[-1] += line
    kept = {key: cell[key] for key in ("metadata", "attachments") if key in cell}
    return [new_markdown_cell(part, **deepcopy(kept)) for part in parts]


def slide_type(cell: NotebookNode) -> str | None:
    """What a cell says itself: slide, subslide, fragment, notes, skip or - (goes on); None if nothing."""
    return cell.metadata.get("slideshow", {}).get("slide_type") or None


def first_heading(markdown: str, otherwise: str) -> str:
    found = HEADING.search(markdown)
    return found[1] if found else otherwise


def to_html(notebook: NotebookNode, path: Path) -> str:
    """The slides of a notebook, pictures in them, as a ``<section>`` of ``<section>``s.

    Raises:
        ValueError: nothing to show, or something that a browser would load from elsewhere.
    """
    exporter = SlidesExporter(
        template_name="cells",
        extra_template_basedirs=[str(HERE)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    exporter.log.setLevel("ERROR")  # else a warning for each figure without a text alternative
    if all(slide_type(cell) == "notes" for cell in notebook.cells):
        raise ValueError(f"{path}: no cell to show; all are empty, or have the slide_type skip or notes")
    stem = re.sub("[^a-zA-Z0-9]", "-", path.stem)[:40]
    for n, cell in enumerate(notebook.cells):
        cell["id"] = f"{stem}-{n}"  # unique in the deck, and the same in each build
    return LOADS.sub(lambda found: found[1] + embedded(found[2], path), exporter.from_notebook_node(notebook)[0])


def embedded(source: str, notebook: Path) -> str:
    """A picture beside a notebook as a ``data:`` address: nbconvert's ``embed_images`` finds none in ``../images``.

    ``NOTEBOOK.ipynb#3`` is the third figure of a notebook, ``RECORDING.webp#LEFT,TOP,RIGHT,BOTTOM`` a part of the last
    picture of a moving one, in px, and ``CHART.png#900`` a chart of the same results for 900 px of a slide, whose
    letters can be read from the last row.
    """
    file, _, place = unquote(source).partition("#")
    if "," in place:
        part = last_of(notebook.parent / file, tuple(map(int, place.split(","))))
        return f"data:image/png;base64,{base64.b64encode(part).decode()}"
    if file.endswith(".ipynb") and place.isdecimal():
        return f"data:image/png;base64,{figure_of(notebook.parent / file, int(place))}"
    if place.isdecimal():
        return f"data:image/png;base64,{base64.b64encode(draw_large(Path(file).name, int(place))).decode()}"
    picture, kind = notebook.parent / unquote(source), mimetypes.guess_type(source)[0] or ""
    if not kind.startswith("image/") or "://" in source or not picture.is_file():
        raise ValueError(
            f"{notebook}: its slides would load {source}, and a deck opens without a network: "
            "name a picture on the disk, or give the cell the slide_type skip"
        )
    return f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"


def draw_large(name: str, width: int) -> bytes:
    """A figure of ``images/`` drawn for a slide, as a PNG: its letters are larger, its lines are not.

    Args:
        name: of the figure.
        width: px, how wide the slide shows it, or wider.
    """
    from matplotlib.text import Text

    from kaggle_utils.plots import CHARTS, PICTURES
    from kaggle_utils.plots.style import letters

    figure = {**PICTURES, **CHARTS}[name]()
    figure.draw_without_rendering()  # numbers of an axis are made then
    inches = figure.get_size_inches()[0]
    times = max(1, LETTERS * 72 * inches / width / letters(figure))
    for text in figure.findobj(Text):
        text.set_fontsize(times * text.get_fontsize())
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):  # those that are made when it is drawn again
            axis.set_tick_params(labelsize=max((label.get_fontsize() for label in axis.get_ticklabels()), default=10))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=2 * width / inches, bbox_inches="tight")
    return png.getvalue()


def last_of(recording: Path, part: tuple[int, ...]) -> bytes:
    """A part of the last picture of a moving one, in px from the left and the top, as a PNG."""
    png = io.BytesIO()
    with Image.open(recording) as pictures:
        pictures.seek(pictures.n_frames - 1)
        pictures.convert("RGB").crop(part).save(png, "PNG")
    return png.getvalue()


def figure_of(path: Path, place: int) -> str:
    """A notebook's figure by its place, from 1, as a PNG in base64.

    Raises:
        ValueError: it has fewer.
    """
    outputs = [output for cell in read_notebook(path).cells for output in cell.get("outputs", ())]
    figures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if not 0 < place <= len(figures):
        raise ValueError(f"{path}: figure {place} of {len(figures)}")
    return figures[place - 1].strip().replace("\n", "")


# --- libraries of the deck -------------------------------------------------------------------------------------------


def fetch(name: str, sha512: str, cache: str | Path = CACHE) -> Path:
    """The archive of a package, from the cache, else by npm from the registry that it is set to.

    Args:
        name: of the archive without its ending, ``package-version``.
        sha512: of the archive, in base64.
        cache: a folder, made if it isn't there.

    Raises:
        FileNotFoundError: neither in the cache nor an npm to fetch it.
        OSError: npm fetches nothing.
        ValueError: an archive with another sha512.
    """
    kept = Path(cache) / f"{name}.tgz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as scratch:  # npm's own cache, too: nothing is left in the home folder
            package = "@".join(name.rsplit("-", 1))
            run_npm("pack", package, "--silent", "--pack-destination", scratch, "--cache", scratch)
            check(Path(scratch) / kept.name, sha512)
            os.replace(Path(scratch) / kept.name, kept)
    check(kept, sha512)
    return kept


def run_npm(*arguments: str) -> None:
    what = f"npm {' '.join(arguments[:2])}"
    try:
        subprocess.run(["npm", *arguments], capture_output=True, text=True, timeout=300, check=True)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            "npm is missing, which fetches reveal.js and MathJax: install Node.js (apt-get install npm)"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{what} took more than {error.timeout:.0f} s: is there a network?") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or "is there a network?"
        raise OSError(f"{what} failed: {said.splitlines()[-1]}") from error


def check(archive: Path, sha512: str) -> None:
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != sha512:
        raise ValueError(
            f"{archive}: its sha512 is {found[:12]}…, expected {sha512[:12]}…; delete it to fetch it again"
        )


def packed(archive: Path, name: str) -> str:
    """A text file of a package."""
    with tarfile.open(archive) as package:
        return package.extractfile(f"package/{name}").read().decode("utf-8")


def in_script(source: str) -> str:
    """JavaScript that may stand in a ``<script>``: what would end or nest one is escaped."""
    return source.replace("</script", r"<\/script").replace("<!--", r"\x3c!--")


def main(argv: list[str] | None = None) -> int:
    """Makes both decks; what a user can mend is one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m slides.make", description=__doc__.splitlines()[0])
    parser.add_argument("--talk", default=HERE / "talk.md", type=Path, help="Markdown (default: %(default)s)")
    parser.add_argument("--notebooks", default="notebooks", help="their folder (default: %(default)s)")
    parser.add_argument("--out", default="runs/slides", type=Path, help="folder of the decks (default: %(default)s)")
    parser.add_argument("--pdf", action="store_true", help="print the talk too; needs Chromium and Playwright")
    parser.add_argument("--fetch", action="store_true", help="only fetch reveal.js and MathJax")
    args = parser.parse_args(argv)
    talk, appendix = args.out / "unet-lung.html", args.out / "notebooks.html"
    try:
        if args.fetch:
            fetch(*REVEAL), fetch(*MATHJAX)
            return 0
        make_deck(args.notebooks, appendix)
        make_talk(args.talk, talk)
        if args.pdf:
            print_pdf(talk, talk.with_suffix(".pdf"))
    except (ValueError, OSError) as error:
        print(f"slides: {error}", file=sys.stderr)
        return 1
    print(f"{talk}: the talk; S opens its notes, F fills the screen")
    if args.pdf:
        print(f"{talk.with_suffix('.pdf')}: its slides as a PDF")
    print(f"{appendix}: the notebooks as its appendix")
    if (args.out.parent / "web/index.html").exists():
        serve = f"python -m http.server -b 127.0.0.1 -d {args.out.parent}"
        print(f"with the page live: {serve}, and open http://127.0.0.1:8000/{args.out.name}/{talk.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
