"""The page: drop a radiograph on it, and see its lungs outlined, measured and screened. Gradio serves it; no
radiograph stays.

A report carries its picture, mask and table within itself, so the server keeps none of them; the radiograph is in
memory alone, until it is read. The page asks no other machine for anything: a policy that goes with every answer
forbids it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tb import TBScreener
from .examples import SOURCE, Example, make_examples
from .report import choice, data_url, report
from .uploads import MAX_UPLOAD, MOST_FILMS, Gate, Uploads

if TYPE_CHECKING:
    import gradio

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
        examples = make_examples()
        page, look = build_page(screener, examples, uploads)
        page.queue(max_size=MOST_FILMS, api_open=False)
        guards = [
            Middleware(_Policy),
            Middleware(TrustedHostMiddleware, allowed_hosts=_names(host)),
            Middleware(Gate, uploads=uploads, placeholder=placeholder, examples=len(examples)),
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


def build_page(
    screener: TBScreener, examples: Sequence[Example], uploads: Uploads
) -> tuple[gradio.Blocks, dict[str, Any]]:
    """The page, and what its ``launch`` is to be given besides.

    Args:
        screener: see :func:`serve`.
        examples: radiographs to try.
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
            components=[gr.HTML(visible=False)],
            samples=[[_button(example)] for example in examples],
            type="index",
            layout="gallery",
            label="Or try one of these",
            elem_id="examples",
        )
        gr.HTML(SOURCE, elem_id="source")
        gr.HTML(choice(screener.segmenter), elem_id="choice")
        result = gr.HTML(elem_id="result")

        def dropped(sent: dict) -> tuple[str, None]:
            found = uploads.take(sent["orig_name"])  # where the gate wrote the ticket
            if found is None:
                return "<p class='refusal' role='alert'>The film has waited too long: drop it again.</p>", None
            return report(*found, screener), None

        def chosen(index: int) -> str:
            example = examples[index]
            return report(example.name, example.data, screener, example.age)

        # One film at a time: the network uses all cores.
        rules = {"concurrency_limit": 1, "concurrency_id": "film", "api_name": False}
        film.upload(dropped, film, [result, film], preprocess=False, **rules)
        shelf.click(chosen, shelf, result, **rules)
    return page, late


def _button(example: Example) -> str:
    """What the button of an example shows; its name for a screen reader is the caption."""
    return f"<img alt='' src='{data_url('image/jpeg', example.thumbnail)}'><span>{escape(example.caption)}</span>"


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
        raise ImportError("the page needs gradio: pip install 'gradio>=5.50,<7'") from None
    return gradio
