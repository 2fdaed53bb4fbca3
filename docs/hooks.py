"""What ``make docs`` does beyond mkdocs: links that lead out of docs/, and the API's pages, made of docstrings.

A page says ``../images/unet.png`` or ``../kaggle_utils/model.py``, which GitHub follows in the clone. On the site a
picture is copied beside the page, and other files are those of the repository, whose address is pyproject's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.readme import repository  # noqa: E402 (the clone's folder is where mkdocs.yml lies)

ROOT = Path(__file__).parents[1]
CORE = ["config", "data", "model", "loss", "metrics", "trainer", "infer", "predictions", "prep", "image"]
BESIDE = ["files", "hardware", "distributed", "export", "tables", "cli"]
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")
ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")
OPTIONS = "    options: {members: false, show_root_heading: false, show_root_toc_entry: false}\n"


class PlainRoles(griffe.Extension):
    """Docstrings say ``:func:`name```, which Markdown doesn't know: the name is left."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    # Not repo_url: with that a page would ask GitHub for the number of stars.
    config.extra["repository"] = repository()
    api = [{name.removesuffix(".md"): f"api/{name}"} for name in api_pages()]
    config.nav = [*config.nav, {"API": api}, {"Repository": config.extra["repository"]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for picture in sorted((ROOT / "images").iterdir()):
        files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    for name, text in api_pages().items():
        files.append(File.generated(config, f"api/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def followed(link: re.Match) -> str:
        target, anchor = link[1], link[2] or ""
        if target.startswith("images/"):
            return f"]({target})"
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{target}{anchor})"

    return OUTSIDE.sub(followed, markdown.replace("-->\n|", "-->\n\n|"))


def api_pages() -> dict[str, str]:
    """Names and texts of the API's pages: the package's face, the core, what is beside it, and each room."""
    package = ROOT / "kaggle_utils"
    pages = {"core.md": _page("core", CORE), "beside.md": _page("beside", BESIDE)}
    for face in sorted(package.glob("*/__init__.py")):
        room = face.parent
        parts = [f"{room.name}.{part.stem}" for part in sorted(room.glob("*.py")) if part != face]
        pages[f"{room.name}.md"] = _page(room.name, parts, room.name)
    return pages


def _page(title: str, modules: list[str], room: str = "") -> str:
    head = f"# {title}\n\n" + (f"::: kaggle_utils.{room}\n{OPTIONS}\n" if room else "")
    return head + "".join(f"::: kaggle_utils.{module}\n\n" for module in modules)
