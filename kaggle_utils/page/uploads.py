"""What a visitor of the page may send: films, kept in memory under names that nobody can guess, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

from ..files import printable

MAX_UPLOAD = 60_000_000  # bytes: a 20-megapixel film of 16 bits, uncompressed, and some room
MOST_FILMS = 16  # of all visitors that are sent or wait at once; the next one is told to come back
MOST_BYTES = 4 * MAX_UPLOAD  # of these together
KEPT_SECONDS = 300  # the longest that a film is kept which nobody asks to be read
SENDING_SECONDS = 120  # the longest that sending one may take
_ROOM = 10_000  # bytes of a request besides its film
# What Gradio's page asks for; of its other addresses (files, proxies, calls without the page, recordings, source
# files) none is open.
_OPEN = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.*"
        r"|/gradio_api/(info/?|queue/data|heartbeat/\w+|startup-events|theme\.css)"
    ),
    "POST": re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)/?"),
}
_OPEN["HEAD"] = _OPEN["GET"]


class Uploads:
    """The films that visitors have sent and that are not read yet: in memory alone, so that no kill leaves one on the
    disk."""

    def __init__(self):
        self._films: dict[str, tuple[str, bytes]] = {}
        self._sending: list[int] = []  # bytes that each request announces

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._films

    def take(self, ticket: str) -> tuple[str, bytes] | None:
        """A film's name and bytes, once; None where it was taken, or has waited longer than ``KEPT_SECONDS``."""
        return self._films.pop(ticket, None)

    async def receive(self, request):
        """Answers a request that sends a film: with its ticket, in a path's place, or why it isn't taken."""
        from starlette.responses import JSONResponse

        size = _length(request)
        too_large = _refusal(413, f"a film has up to {MAX_UPLOAD // 10**6} MB")
        if size is None or size > MAX_UPLOAD + _ROOM:
            return too_large
        kept = [*self._sending, *(len(data) for _, data in self._films.values())]
        if len(kept) >= MOST_FILMS or sum(kept) + size > MOST_BYTES:
            return _refusal(503, "too many films are waiting: try again in a few minutes")
        self._sending.append(size)
        try:
            name, data = await asyncio.wait_for(_film(request), SENDING_SECONDS)
        except (ValueError, TimeoutError, asyncio.TimeoutError):
            return _refusal(400, "one film was expected")
        finally:
            self._sending.remove(size)
        if len(data) > MAX_UPLOAD:
            return too_large
        ticket = token_hex(16)
        self._films[ticket] = name, data
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self.take, ticket)
        return JSONResponse([ticket])


class Gate:
    """ASGI middleware before Gradio: takes films itself, and lets through what the page asks for, from the page alone.

    Gradio would keep an upload under its content's hash, where another visitor can ask for it, and would open what
    path a request names, or resolve it if it is an address. Here a request names a film by its ticket, or a radiograph
    to try by its number.

    Args:
        app: what answers the rest.
        uploads: gets the films.
        placeholder: an empty file for Gradio to look at in a film's stead; its ``orig_name`` is the film's ticket.
        examples: how many radiographs there are to try.
    """

    def __init__(self, app: Callable, uploads: Uploads, placeholder: Path, examples: int):
        self.app, self.uploads, self.placeholder, self.examples = app, uploads, placeholder, examples

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        from starlette.requests import Request

        request = Request(scope, receive)
        origin, path = request.headers.get("origin"), scope["path"]
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            answer = _refusal(403, "this request comes from another page")
        elif request.method not in _OPEN or not _OPEN[request.method].fullmatch(path):
            answer = _refusal(404, "no such page")
        elif path.startswith("/gradio_api/upload"):
            answer = await self.uploads.receive(request)
        elif request.method == "POST":
            body = await self._body(request)
            if body is not None:
                return await self.app(scope, _replay(body, receive), send)
            answer = _refusal(400, "no film that was sent here")
        else:
            return await self.app(scope, receive, send)
        await answer(scope, receive, send)

    async def _body(self, request) -> bytes | None:
        """The request's JSON with nothing in it but what the page sends; None where it names what is no film."""
        size = _length(request)
        if size is None or size > _ROOM:
            return None
        try:
            sent = json.loads(await request.body())
            known = {key: sent[key] for key in ("session_hash", "fn_index", "trigger_id", "event_id") if key in sent}
            if request.url.path.startswith("/gradio_api/queue/join"):
                known["data"] = [self._film(*sent["data"])]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return json.dumps(known).encode()

    def _film(self, named: Any) -> Any:
        if type(named) is int and named in range(self.examples):
            return named
        ticket = named["path"]
        if ticket not in self.uploads:
            raise KeyError(ticket)
        return {"path": str(self.placeholder), "orig_name": ticket, "meta": {"_type": "gradio.FileData"}}


async def _film(request) -> tuple[str, bytes]:
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):  # what is larger than this many bytes it would write into a file
        spool_max_size = max_file_size = MAX_UPLOAD + _ROOM  # since Starlette 0.46, and before

    try:
        form = await InMemory(request.headers, request.stream(), max_files=1, max_fields=0).parse()
        (film,) = form.values()
        if isinstance(film, str):
            raise ValueError
        name = Path((film.filename or "").replace("\\", "/")).name
        return printable(name)[-200:] or "film", await film.read()
    except (MultiPartException, KeyError) as error:  # no form, or more than a film
        raise ValueError from error


def _length(request) -> int | None:
    """The bytes that a request announces; the server reads no more. None where it doesn't say."""
    length = request.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,12}", length, re.ASCII) else None


def _refusal(status: int, reason: str):
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(reason, status)


def _replay(body: bytes, receive: Callable) -> Callable:
    """An ASGI ``receive`` that gives the body first."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message():
        return left.pop() if left else await receive()

    return next_message
