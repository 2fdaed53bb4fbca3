"""A server that speaks S3's protocol on loopback (moto), behind a proxy that counts and breaks requests."""

from __future__ import annotations

import http.client
import logging
import os
import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>said the proxy</Message></Error>'
HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@dataclass
class Fault:
    """What happens to the next ``times`` requests that fit.

    Kinds: ``status`` (an answer of that ``code``), ``reset`` (the connection is cut before the server hears of it),
    ``truncate`` (of the answer half is sent), ``slow`` (the answer waits for ``seconds``), ``flip`` (a bit of the
    answer is another).
    """

    kind: str
    method: str = "GET|PUT|POST|HEAD"
    path: str = ""
    times: int = 1
    status: int = 500
    code: str = "InternalError"
    seconds: float = 1.0


class Proxy(ThreadingHTTPServer):
    """Passes requests on to ``target`` (host, port); ``log`` has method, path, bytes sent and bytes of the answer."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, target: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults, self.log, self.lock = target, [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def asked(self, method: str, path: str = "") -> list[tuple]:
        """Requests, as (method, path, bytes sent, bytes of the answer)."""
        return [entry for entry in list(self.log) if re.fullmatch(method, entry[0]) and re.search(path, entry[1])]

    def wait_for(self, method: str, path: str = "", *, count: int = 1, seconds: float = 60) -> None:
        """Until so many such requests have been answered."""
        end = time.monotonic() + seconds
        while len(self.asked(method, path)) < count:
            assert time.monotonic() < end, f"no {count} × {method} {path} in {seconds} s: {self.log}"
            time.sleep(0.01)

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault

    def handle_error(self, *_):
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        body = self._body()
        fault = self.server.take(self.command, self.path)
        if fault and fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                self.close_connection = True  # nobody waits for it any more
                return
        if fault and fault.kind == "status":
            status, headers, length = fault.status, {"Content-Type": "application/xml"}, 0
            answer = XML.format(fault.code).encode()
        else:
            status, headers, answer, length = self._pass_on(body)
        if fault and fault.kind == "flip" and answer:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer[: len(answer) // 2] if fault and fault.kind == "truncate" else answer)
        self.close_connection = bool(fault)
        self.server.log.append((self.command, self.path, len(body), len(answer)))

    def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes, str | int]:
        server = http.client.HTTPConnection(*self.server.target)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "expect", "connection"):
                server.putheader(name, value)
        server.putheader("Content-Length", str(len(body)))
        server.endheaders(body)
        answer = server.getresponse()
        data = answer.read()
        server.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        return answer.status, headers, data, answer.getheader("Content-Length", 0)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def log_message(self, *_):
        pass

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve


def environment(url: str, home) -> dict[str, str]:
    """Variables with which boto3 finds this server, made-up credentials, and nothing of the user's."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(home / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "NO_PROXY": "*",
    }


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else each request is a line on stderr
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = Proxy(moto.get_host_and_port())
    yield proxy
    proxy.shutdown()
    moto.stop()


@pytest.fixture
def proxy(server, tmp_path, monkeypatch):
    """The server with an empty bucket ``bkt``, no faults and no log, and boto3 led to it."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment(server.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    server.faults.clear()
    import boto3

    client = boto3.client("s3")
    for bucket in client.list_buckets()["Buckets"]:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket["Name"]):
            for each in page.get("Contents", ()):
                client.delete_object(Bucket=bucket["Name"], Key=each["Key"])
        for left in client.list_multipart_uploads(Bucket=bucket["Name"]).get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket["Name"], Key=left["Key"], UploadId=left["UploadId"])
        client.delete_bucket(Bucket=bucket["Name"])
    client.create_bucket(Bucket="bkt")
    server.log.clear()
    return server


@pytest.fixture
def client(proxy):
    import boto3

    return boto3.client("s3")
