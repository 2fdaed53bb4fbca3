"""The built page in headless Chromium: a server for it and for films, and what its worker makes of them."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The page's own worker, given films that the server has; masks come back as bits.
_SEGMENT = """async ({names, ages}) => {
  const bits = ({data}) => {
    const out = new Uint8Array(Math.ceil(data.length / 8));
    data.forEach((value, at) => out[at >> 3] |= value << (7 - at % 8));
    let text = "";
    for (let at = 0; at < out.length; at += 8192) text += String.fromCharCode(...out.subarray(at, at + 8192));
    return btoa(text);
  };
  const size = ({width, height}) => [height, width];
  const worker = window.testWorker ??= await new Promise((resolve, reject) => {
    const source = `import ${JSON.stringify(new URL("worker.js", location.href).href)}`;
    const made = new Worker(URL.createObjectURL(new Blob([source], {type: "text/javascript"})), {type: "module"});
    made.onmessage = ({data}) => data.failed ? reject(data.failed) : resolve(made);
    made.onerror = (event) => reject(event.message);
    made.postMessage({base: location.href});
  });
  const found = [];
  for (const [n, name] of names.entries()) {
    const bytes = await (await fetch("/films/" + encodeURIComponent(name))).arrayBuffer();
    const film = await new Promise((resolve) => {
      let whole = {masks: {}};
      worker.onmessage = ({data}) => {
        whole = {...whole, ...data.film, masks: {...whole.masks, ...data.film.masks}};
        if (data.done) resolve(whole);
      };
      worker.postMessage({name, bytes, age: ages[n], convention: ""}, [bytes]);
    });
    const masks = {};
    for (const [convention, mask] of Object.entries(film.masks))
      masks[convention] = mask.error ? mask : {...mask, shape: size(mask.mask), mask: bits(mask.mask), outlines: null};
    found.push({...film, upright: null, masks});
  }
  return found;
}"""


class _Handler(SimpleHTTPRequestHandler):
    """Hands out the page, and below ``/films/`` the films."""

    def __init__(self, *args: Any, films: Path, **kwargs: Any):
        self.films = films
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        if path.startswith("/films/"):
            found = Path(super().translate_path(path))
            return str(self.films / found.name)
        return super().translate_path(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(site: Path, films: Path) -> Iterator[str]:
    """The page's address."""
    handler = partial(_Handler, films=films, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def segment_in(page: Any, names: list[str], ages: list[float | None] | None = None) -> list[dict[str, Any]]:
    """What the page's worker makes of films that are served: masks as ``uint8 (H, W)``."""
    found = page.evaluate(_SEGMENT, {"names": names, "ages": ages or [None] * len(names)})
    for film in found:
        for mask in film["masks"].values():
            if "error" not in mask:
                mask["mask"] = _mask(mask["mask"], mask["shape"])
    return found


def _mask(bits: str, shape: list[int]) -> np.ndarray:
    flat = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))
    return flat[: shape[0] * shape[1]].reshape(shape)
