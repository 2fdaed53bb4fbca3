"""The page: a film is dropped on it, its lungs are outlined, measured and screened. Gradio serves it; no film stays.

A report carries its picture, mask and table within itself, so the server keeps none of them; the film itself is in
memory alone, until it is read. The page asks no other machine for anything: a policy that goes with every answer
forbids it.
"""

from __future__ import annotations

import base64
import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from html import escape
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..image import encode_image, resize_image, resize_mask, write_image
from ..infer import Unsegmented, draw_overlay, segment_films
from ..quality import MEASUREMENTS, measure
from ..synthetic import AppearanceModel
from ..tables import to_csv
from ..tb import CLEAR, PRESUMPTIVE, TBScreener, why_not
from .uploads import MAX_UPLOAD, MOST_FILMS, Gate, Uploads

if TYPE_CHECKING:
    import gradio

SHOWN = 1024  # px, the longer side of the picture in a report; the mask has the film's own size
EXAMPLES = (
    (2, 5, 0),
    (1, 4, 0),
    (4, 1, 1),
)  # films to try: seed, index and tuberculosis or not, see AppearanceModel.film
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
CAUTION = "This is not a medical device: not for diagnosis, nor for any decision about a patient."
_CSS = Path(__file__).parents[1] / "assets" / "app.css"


def serve(screener: TBScreener, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page until it is stopped (Ctrl-C, SIGTERM); then its temporary folder goes.

    Args:
        screener: finds the lungs, with its own segmenter, and gives the probability of tuberculosis.
        host: address to listen at; 127.0.0.1 is this machine alone.
        port: to listen at.

    Raises:
        ImportError: gradio is not installed.
        OSError: no such address on this machine, or the port is taken.
        ValueError: no such port.
    """
    _check_address(host, port)
    # Read when gradio is imported or a page is built: no usage statistics, no runs kept in the visitor's browser.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
    _import_gradio()
    from starlette.middleware import Middleware  # which gradio brings
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="unet-lung-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        uploads, placeholder = Uploads(), Path(folder, "film")
        placeholder.touch()
        page, look = build_page(screener, draw_examples(folder), uploads)
        page.queue(max_size=MOST_FILMS, api_open=False)
        guards = [
            Middleware(_Policy),
            Middleware(TrustedHostMiddleware, allowed_hosts=_names(host)),
            Middleware(Gate, uploads=uploads, placeholder=placeholder, examples=len(EXAMPLES)),
        ]
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            prevent_thread_lock=True,
            app_kwargs={"middleware": guards},
            **look,
        )
        print(f"http://{host}:{port}, until Ctrl-C. {CAUTION}", flush=True)
        page.block_thread()


def build_page(screener: TBScreener, examples: list[Path], uploads: Uploads) -> tuple[gradio.Blocks, dict[str, Any]]:
    """The page, and what its ``launch`` is to be given besides.

    Args:
        screener: see :func:`serve`.
        examples: files of films to try.
        uploads: has the films that are dropped.
    """
    gr = _import_gradio()
    theme = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    look = {"theme": theme, "css_paths": [_CSS]}
    early, late = (look, {}) if int(gr.__version__.split(".")[0]) < 6 else ({}, look)  # Gradio 6 takes them at launch
    with gr.Blocks(title="Lungs in a chest radiograph", analytics_enabled=False, **early) as page:
        gr.HTML(
            "<h1>Lungs in a chest radiograph</h1><p>Drop a frontal film: PNG, JPEG, TIFF or DICOM, up to "
            f"{MAX_UPLOAD // 10**6} MB. "
            "A U-Net outlines the lungs, and they are measured. The film is in memory alone, until it is read.</p>"
            f"<p class='caution'>{CAUTION}</p>",
            elem_id="head",
        )
        film = gr.File(label="Film", elem_id="drop", height=150)
        shelf = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[str(path)] for path in examples],
            type="index",
            layout="gallery",
            label="Or one of these, of nobody: drawn from a statistical model",
            elem_id="examples",
        )
        result = gr.HTML(elem_id="result")

        def dropped(sent: dict) -> tuple[str, None]:
            found = uploads.take(sent["orig_name"])  # where the gate wrote the ticket
            if found is None:
                return "<p class='refusal' role='alert'>The film has waited too long: drop it again.</p>", None
            name, data = found
            return report(Path(name), screener, data=data), None

        # One film at a time: the network uses all cores.
        rules = {"concurrency_limit": 1, "concurrency_id": "film", "api_name": False}
        film.upload(dropped, film, [result, film], preprocess=False, **rules)
        shelf.click(lambda index: report(examples[index], screener), shelf, result, **rules)
    return page, late


def draw_examples(folder: str | Path) -> list[Path]:
    """Built-in films as PNG files in a folder."""
    model = AppearanceModel.load()
    paths = [Path(folder) / f"nobody_{n}.png" for n in range(1, len(EXAMPLES) + 1)]
    for path, (seed, index, tb) in zip(paths, EXAMPLES):
        write_image(path, model.film(seed, index, size=512, tb=tb).image)
    return paths


def report(path: Path, screener: TBScreener, *, data: bytes | None = None) -> str:
    """A film's report as HTML: picture, table, notes, and mask and measurements to download; or why there is none.

    Args:
        path: the film's file, or its name alone with its bytes as ``data``.
        screener: see :func:`serve`.
        data: what is in the file.
    """
    found = next(segment_films([data or path], screener.segmenter, names=[path.name]))
    if isinstance(found, Unsegmented):
        reason = found.error.replace(f"{path}: ", "").replace(
            str(path), path.name
        )  # where it lies on the server is no one's business
        reason = reason.removeprefix(f"{path.name}: ")
        return f"<p class='refusal' role='alert'>{escape(path.name)}: {escape(reason)}</p>"
    film = found.film
    image, mask, measured = film.checked.image, found.upright, measure(found.upright, film.spacing_mm)
    shape = tuple(max(1, round(side * min(1, SHOWN / max(mask.shape)))) for side in mask.shape)
    picture = draw_overlay(resize_image(image, shape), resize_mask(mask, shape))
    table = pd.DataFrame([{"name": path.stem, **measured}], columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()
    reasons = found.quality.reasons if found.quality else ()
    facts = {
        "Film": f"{mask.shape[1]} × {mask.shape[0]} px",
        "Dice, estimated": f"{found.quality.estimate:.2f} ({found.quality.flag})" if found.quality else "–",
        "Lungs found": str(measured["lungs"]),
        "Share of the film": _number(100 * measured["lung_share"], ".1f", " %"),
        "Left over right area": _number(measured["left_right_ratio"], ".2f"),
        "Symmetry": _number(measured["symmetry"], ".2f"),
        "Tilt, clockwise": _number(measured["tilt_deg"], ".1f", "°"),
        "Tuberculosis, for research": why_not(found) or _probability(screener, image, mask),
    }
    name = escape(path.stem)
    picture_file = _data("image/jpeg", encode_image(picture, ".jpg"))
    mask_file = _data("image/png", encode_image(found.mask * np.uint8(255), ".png"))
    return f"""<article class='report'>
      <figure><img alt='The film with its lungs outlined' src='{picture_file}'>
        <figcaption>The patient's right lung is on the left.</figcaption></figure>
      <div><h2>{escape(path.name)}</h2>{_lungs(measured, film.spacing_mm)}{_rows(facts)}{_notes(reasons + found.notes)}
        <p class='downloads'>
          <a download='{name}_mask.png' href='{mask_file}'>Mask (PNG)</a>
          <a download='{name}_measurements.csv' href='{_data("text/csv", to_csv(table))}'>Measurements (CSV)</a>
        </p></div></article>"""


def _lungs(found: dict[str, float], spacing_mm: tuple[float, float] | None) -> str:
    """What was measured of each lung, in mm where the film has a spacing."""
    unit, area, scale = ("mm", "area_mm2", 0.01) if spacing_mm else ("px", "area_px", 1)
    lines = {
        f"Area, {'cm²' if spacing_mm else 'px'}": lambda side: _number(scale * found[f"{side}_{area}"], ",.0f"),
        f"Height, {unit}": lambda side: _number(found[f"{side}_height_{unit}"], ",.0f"),
        f"Width, {unit}": lambda side: _number(found[f"{side}_width_{unit}"], ",.0f"),
        "Apex at row, column": lambda side: _place(found, f"{side}_apex"),
        "Costophrenic angle at": lambda side: _place(found, f"{side}_costophrenic"),
    }
    body = "".join(
        f"<tr><th scope='row'>{name}</th><td>{value('right')}</td><td>{value('left')}</td></tr>"
        for name, value in lines.items()
    )
    head = "<thead><tr><td></td><th scope='col'>Right lung</th><th scope='col'>Left lung</th></tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _rows(facts: dict[str, str]) -> str:
    body = "".join(f"<tr><th scope='row'>{name}</th><td>{value}</td></tr>" for name, value in facts.items())
    return f"<h3>Both, and the film</h3><table><tbody>{body}</tbody></table>"


def _notes(notes: tuple[str, ...]) -> str:
    return f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>" if notes else ""


def _probability(screener: TBScreener, image: np.ndarray, mask: np.ndarray) -> str:
    probability = float(screener.probabilities([image], [mask])[0])
    return f"{probability:.2f} ({PRESUMPTIVE if probability >= screener.threshold else CLEAR})"


def _place(found: dict[str, float], name: str) -> str:
    return f"{_number(found[f'{name}_row'], '.0f')}, {_number(found[f'{name}_column'], '.0f')}"


def _number(value: float, form: str, unit: str = "") -> str:
    return "–" if isnan(value) else f"{value:{form}}{unit}"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _check_address(host: str, port: int) -> None:
    """Raises OSError or ValueError for an address that nothing can listen at; Gradio would call every one a taken
    port."""
    if not 0 < port < 65536:
        raise ValueError(f"--port {port}: a port is 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            if os.name == "posix":  # elsewhere it would let two servers share the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that can't be one
        known: dict[Any, str] = {
            errno.EADDRINUSE: f"--port {port}: it is in use: choose another one",
            errno.EACCES: f"--port {port}: it is the system's: choose one above 1023",
        }
        unknown = (
            f"--host {host}: no address of this machine: 127.0.0.1 is for this machine alone, "
            "0.0.0.0 for all who reach it"
        )
        raise OSError(known.get(getattr(error, "errno", None), unknown)) from None


def _names(host: str) -> list[str]:
    """By which names the page may be asked for: another site's name that was made to lead here is none of them.

    Who opens the page to all may have any name for the machine.
    """
    return ["*"] if host in ("0.0.0.0", "::", "") else [host, "localhost", "127.0.0.1", "::1"]


class _Policy:
    """ASGI middleware: every answer forbids the page to load anything from another machine, as Gradio 5 would a
    script."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _import_gradio():
    try:
        import gradio
    except ImportError:
        raise ImportError("the page needs gradio: pip install gradio") from None
    return gradio
