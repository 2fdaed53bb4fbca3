"""The page: drop a radiograph on it, and see its lungs outlined, measured and screened. Gradio serves it; no
radiograph stays.

A report carries its picture, mask and table within itself, so the server keeps none of them; the radiograph is in
memory alone, until it is read. The page asks no other machine for anything: a policy that goes with every answer
forbids it.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import signal
import socket
import tempfile
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..image import encode_image, resize_image, resize_mask, write_image
from ..infer import Segmented, Unsegmented, segment_films
from ..pictures.overlay import draw_overlay
from ..quality import MEASUREMENTS, SIDES, measure
from ..synthetic import AppearanceModel
from ..tables import to_csv
from ..tb import CLEAR, PRESUMPTIVE, TBScreener, why_not
from .uploads import MAX_UPLOAD, MOST_FILMS, Gate, Uploads

if TYPE_CHECKING:
    import gradio

SHOWN = 1024  # px, the longer side of the picture in a report; the mask has the film's own size
EXAMPLES = ((2, 5, 0), (1, 4, 0), (4, 1, 1))  # to try: seed, index and tuberculosis of AppearanceModel.film
# What a report shows of a measured mask: of each lung, with a spacing and without one, and of both.
IN_MM = {"Area, cm²": "{area_cm2:,.0f}", "Height, mm": "{height_mm:,.0f}", "Width, mm": "{width_mm:,.0f}"}
IN_PX = {"Area, px": "{area_px:,.0f}", "Height, px": "{height_px:,.0f}", "Width, px": "{width_px:,.0f}"}
POINTS = {
    "Apex at row, column": "{apex_row:.0f}, {apex_column:.0f}",
    "Costophrenic angle at": "{costophrenic_row:.0f}, {costophrenic_column:.0f}",
}
BOTH = {
    "Lungs found": "{lungs}",
    "Share of the film": "{lung_share:.1%}",
    "Left over right area": "{left_right_ratio:.2f}",
    "Symmetry": "{symmetry:.2f}",
    "Tilt, clockwise": "{tilt_deg:.1f}°",
}
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
        examples: files of radiographs to try.
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
            "<h1>Lungs in a chest radiograph</h1><p>Drop a frontal radiograph: PNG, JPEG, TIFF or DICOM, up to "
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
            label="Or one of these synthetic radiographs, which show nobody",
            elem_id="examples",
        )
        result = gr.HTML(elem_id="result")

        def dropped(sent: dict) -> tuple[str, None]:
            found = uploads.take(sent["orig_name"])  # where the gate wrote the ticket
            if found is None:
                return "<p class='refusal' role='alert'>The film has waited too long: drop it again.</p>", None
            return report(*found, screener), None

        def chosen(index: int) -> str:
            return report(examples[index].name, examples[index].read_bytes(), screener)

        # One film at a time: the network uses all cores.
        rules = {"concurrency_limit": 1, "concurrency_id": "film", "api_name": False}
        film.upload(dropped, film, [result, film], preprocess=False, **rules)
        shelf.click(chosen, shelf, result, **rules)
    return page, late


def draw_examples(folder: str | Path) -> list[Path]:
    """Synthetic radiographs to try, as PNG files in a folder."""
    model = AppearanceModel.load()
    paths = [Path(folder) / f"nobody_{n}.png" for n in range(1, len(EXAMPLES) + 1)]
    for path, (seed, index, tb) in zip(paths, EXAMPLES):
        write_image(path, model.film(seed, index, size=512, tb=tb).image)
    return paths


def report(name: str, data: bytes, screener: TBScreener) -> str:
    """A film's report as HTML: picture, table, notes, and mask and measurements to download; or why there is none.

    Args:
        name: of the film's file.
        data: what is in the file.
        screener: see :func:`serve`.
    """
    found = next(segment_films([data], screener.segmenter, names=[name]))
    if isinstance(found, Unsegmented):
        return f"<p class='refusal' role='alert'>{escape(found.error)}</p>"
    mask, spacing, quality = found.upright, found.film.spacing_mm, found.quality
    measured = measure(mask, spacing)
    facts = {
        "Film": [f"{mask.shape[1]} × {mask.shape[0]} px"],
        "Dice, estimated": [f"{quality.estimate:.2f} ({quality.flag})" if quality else "–"],
        **{name: [_fill(form, measured)] for name, form in BOTH.items()},
        "Tuberculosis, for research": [why_not(found) or _probability(screener, found)],
    }
    notes = [*(quality.reasons if quality else ()), *found.notes]
    stem = Path(name).stem
    table = pd.DataFrame([{"name": stem, **measured}], columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()
    return f"""<article class='report'>
      <figure><img alt='The film with its lungs outlined' src='{_data("image/jpeg", _picture(found))}'>
        <figcaption>The patient's right lung is on the left.</figcaption></figure>
      <div><h2>{escape(name)}</h2>{_lungs(measured, IN_MM if spacing else IN_PX)}
        <h3>Both, and the film</h3>{_table(facts)}{_notes(notes)}
        <p class='downloads'>
          <a download='{escape(stem)}_mask.png' href='{_data("image/png", _mask(found))}'>Mask (PNG)</a>
          <a download='{escape(stem)}_measurements.csv' href='{_data("text/csv", to_csv(table))}'>Measurements (CSV)</a>
        </p></div></article>"""


def _picture(found: Segmented) -> bytes:
    """The upright film with its lungs outlined, no larger than ``SHOWN``."""
    scale = min(1, SHOWN / max(found.upright.shape))
    height, width = (max(1, round(side * scale)) for side in found.upright.shape)
    image = resize_image(found.film.checked.image, (height, width))
    return encode_image(draw_overlay(image, resize_mask(found.upright, (height, width))), ".jpg")


def _mask(found: Segmented) -> bytes:
    return encode_image(found.mask * np.uint8(255), ".png")


def _probability(screener: TBScreener, found: Segmented) -> str:
    probability = float(screener.probabilities([found.film.checked.image], [found.upright])[0])
    return f"{probability:.2f} ({PRESUMPTIVE if probability >= screener.threshold else CLEAR} tuberculosis)"


def _lungs(measured: dict[str, float], sizes: dict[str, str]) -> str:
    """What was measured of each lung."""
    head = "<thead><tr><td></td><th scope='col'>Right lung</th><th scope='col'>Left lung</th></tr></thead>"
    lungs = []
    for side in SIDES:
        lung = {name.removeprefix(f"{side}_"): value for name, value in measured.items() if name.startswith(side)}
        lungs.append(lung | {"area_cm2": lung["area_mm2"] / 100})
    return _table({name: [_fill(form, lung) for lung in lungs] for name, form in (sizes | POINTS).items()}, head)


def _fill(form: str, numbers: dict[str, float]) -> str:
    """A text with numbers in it, a dash for each that is undefined."""
    return re.sub("nan[%°]?", "–", form.format(**numbers))


def _table(lines: dict[str, list[str]], head: str = "") -> str:
    rows = []
    for name, values in lines.items():
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f"<tr><th scope='row'>{name}</th>{cells}</tr>")
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _notes(notes: list[str]) -> str:
    if not notes:
        return ""
    return f"<h3>Notes</h3><ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


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
