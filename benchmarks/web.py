"""How large, how fast and how lean the page in the browser is, in headless Chromium from a server on this machine.

    python -m benchmarks.web [--site runs/web] [--films 100] [--record images/web.webp]

Builds the page unless it is there. Measures the bytes that the page asks for up to its first mask, and with every
decoder and the runtime of a graphics card; seconds from opening the page in a new browser to the first outlined film;
of further films of 1024 px the milliseconds that the page takes from having the file to a painted outline with its
numbers, on one thread and, once the page is isolated, on several; and the memory of the page's processes over so many
films in a row, in MB. Writes
``results/web.json``. Needs chromium, npm and a machine that is at rest. ``--record`` writes a short recording instead.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import cv2

from benchmarks.common import RESULTS, ROOT, command, machine, make_parser, need, write_json
from kaggle_utils.files import write_bytes
from kaggle_utils.image import write_image
from kaggle_utils.synthetic import AppearanceModel
from web.make import make_page

sys.path.insert(0, str(ROOT / "tests"))

FURTHER = 15  # films whose median time counts
WIDTH, HEIGHT, SHARE = 1000, 1280, 0.7  # px of the page in a recording, and how much smaller its pictures are
STEP = 120  # ms between its pictures


def opened(play: Any, address: str, **options: Any) -> tuple[Any, Any]:
    """A browser of its own, whose caches are empty, and a page in it that loads nothing yet."""
    from web_browser import CHROMIUM

    browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--enable-precise-memory-info"])
    return browser, browser.new_context(**options).new_page()


# By the page's own clock, as the browser's driver has delays of its own: from a film's choice to its report's frame.
_OUTLINED = """() => {
  const files = document.querySelector("#files"), result = document.querySelector("#result");
  result.replaceChildren();
  let start;
  files.addEventListener("change", () => (start = performance.now()), {capture: true, once: true});
  window.outlined = new Promise((resolve) => new MutationObserver((_, observer) => {
    if (!result.querySelector("article.report")) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
  }).observe(result, {childList: true}));
}"""


def outlined(page: Any, path: Path) -> float:
    """Milliseconds from choosing a film to its painted outline."""
    page.evaluate(_OUTLINED)
    page.set_input_files("#files", str(path))
    took = page.evaluate("window.outlined")
    page.locator("#status", has_text=re.compile("^$")).wait_for(
        state="attached"
    )  # the other convention's mask is there
    return took


def load(page: Any, address: str) -> str:
    """Opens the page; where it says that the network runs."""
    page.goto(address)
    status = page.locator("#status", has_text="Ready.")
    status.wait_for(timeout=120_000)
    return re.search(r"on (\w+) thread", status.inner_text())[1]


def cold(play: Any, address: str, path: Path) -> dict[str, float]:
    """Seconds from a new browser's first request to the first outline, and the MB that it took."""
    browser, page = opened(play, address, service_workers="block")
    received: list[int] = []
    page.context.on("response", lambda answer: received.append(int(answer.headers.get("content-length", 0))))
    start = time.perf_counter()
    page.goto(address)
    page.set_input_files("#files", str(path))
    page.locator("article.report").wait_for(timeout=120_000)
    took = time.perf_counter() - start
    browser.close()
    return {"seconds": round(took, 2), "mb": round(sum(received) / 1e6, 2)}


def in_a_row(play: Any, address: str, path: Path, films: int) -> dict[str, Any]:
    """Milliseconds of further films, and the memory after some and after all of a row."""
    need("psutil")
    browser, page = opened(play, address)
    found: dict[str, Any] = {"further_ms": {}}
    for _ in range(2):  # the second time its own service worker hands the page out, isolated
        threads = load(page, address)
        page.evaluate("navigator.serviceWorker.ready.then(() => 1)")
        outlined(page, path)
        found["further_ms"][f"threads: {threads}"] = round(median(outlined(page, path) for _ in range(FURTHER)))
    memory = []
    for done in range(films):
        outlined(page, path)
        if done % 10 == 9:
            memory.append(round(renderers_mb()))
    browser.close()
    return {**found, "films": films, "memory_mb": memory, "growth_mb": memory[-1] - memory[len(memory) // 3]}


def renderers_mb() -> float:
    """Memory of the browser's processes that this one has started."""
    import psutil

    processes = psutil.Process().children(recursive=True)
    return sum(each.memory_info().rss for each in processes if "--type=renderer" in " ".join(each.cmdline())) / 1e6


def record(play: Any, address: str, out: Path) -> None:
    """A short recording: examples are tried, the heart is added, and the opacity changes."""
    from PIL import Image

    browser, page = opened(play, address, viewport={"width": WIDTH, "height": HEIGHT})
    page.goto(address)
    pictures: list[Any] = []

    def look(times: int) -> None:
        for _ in range(times):
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            pictures.append(picture.resize((round(WIDTH * SHARE), round(HEIGHT * SHARE)), Image.Resampling.LANCZOS))

    page.locator("#status", has_text="Ready.").wait_for(timeout=120_000)
    look(6)
    for example in (0, 3):
        page.locator("#examples button").nth(example).click()
        page.locator("article.report").wait_for()
        look(10)
        page.get_by_label("With the heart").check()
        look(10)
        for opacity in (*range(25, 80, 11), *range(80, 25, -11)):
            page.locator("#opacity").fill(str(opacity))
            look(1)
        page.get_by_label("Lung fields").check()
        look(6)
    browser.close()
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": pictures[1:], "duration": STEP, "loop": 0, "quality": 60, "method": 4}
    pictures[0].save(buffer, "WEBP", **options)
    write_bytes(out, buffer.getvalue())


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--site", type=Path, default=ROOT / "runs/web", help="the page as it is built")
    parser.add_argument("--films", type=int, default=100, help="in a row, whose memory is looked at")
    parser.add_argument("--record", type=Path, help="write a recording there (.webp), and measure nothing")
    args = parser.parse_args(argv)
    need("playwright")
    from playwright.sync_api import sync_playwright
    from web_browser import served

    if not (args.site / "model.json").exists():
        make_page(args.site)
    image = AppearanceModel.load().film(2, 5, size=512).image
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        path = Path(folder) / "film.png"
        write_image(path, cv2.resize(image, (1024, 1024), interpolation=cv2.INTER_CUBIC))
        with served(args.site, Path(folder)) as address:
            if args.record:
                record(play, address, args.record)
                return 0
            size = sum(each.stat().st_size for each in args.site.rglob("*") if each.is_file())
            found = {"command": command(), "machine": machine("playwright"), "all_mb": round(size / 1e6, 2)}
            found["cold"] = cold(play, address, path)
            found |= in_a_row(play, address, path, args.films)
    write_json(RESULTS / "web.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
