"""A stand-in for Kaggle on loopback, and the environment in which Kaggle's own command line can reach nothing else.

The command line takes no address. ``KAGGLE_API_ENVIRONMENT=LOCALHOST``, to the letter, makes it ask http://localhost,
and ``http_proxy`` sends that here. Should it ever ask for the real service: https has a dead proxy, the credentials are
made up, HOME is empty, and a hook in every Python that is started refuses names and addresses other than loopback's.
"""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PUBLIC = {
    "kmader/pulmonary-chest-xray-abnormalities",
    "yoctoman/shcxr-lung-mask",
    "paultimothymooney/chest-xray-pneumonia",
}
USER, KEY = "nobody", "not-a-key"
FENCE = '''"""Python reads this when it starts: from here on only loopback can be reached."""
import sys

LOOPBACK = ("127.0.0.1", "::1", "localhost", b"localhost", None, "")


def fence(event, arguments):
    host = None
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    if host not in LOOPBACK:
        raise ConnectionRefusedError(f"fenced in: {host} is not loopback")


sys.addaudithook(fence)
'''


def environment(folder: Path, server: "Kaggle") -> dict[str, str | None]:
    """The only environment in which tests may run Kaggle's command line; None is for what must not be set."""
    for name in ("home", "fence", "tmp"):
        (folder / name).mkdir()
    (folder / "fence" / "sitecustomize.py").write_text(FENCE)
    proxies = dict.fromkeys(["NO_PROXY", "no_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "REQUESTS_CA_BUNDLE"])
    login = dict.fromkeys(["KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR", "KAGGLE_PROXY", "KAGGLE_KERNEL_RUN_TYPE"])
    return (
        proxies
        | login
        | {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": USER,
            "KAGGLE_KEY": KEY,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": str(folder / "fence"),
            "http_proxy": f"http://127.0.0.1:{server.server_port}",
            "https_proxy": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
        }
    )


class Kaggle(ThreadingHTTPServer):
    """What the command line needs of Kaggle, and what it was asked.

    ``calls`` lists (procedure, request); ``scripts`` gives the statuses that a kernel goes through, ``faults`` the
    replies (status, body) that a procedure gives instead of its own, one a call; ``datasets`` holds the files of each
    version, and so does ``models`` for each variation, OWNER/MODEL/VARIATION.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls, self.versions, self.datasets, self.models, self.blobs = [], {}, {}, {}, {}
        self.scripts, self.logs, self.faults, self.foreign = {}, {}, {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def asked(self, procedure: str) -> list[dict]:
        """Requests of a procedure."""
        return [request for name, request in self.calls if name == procedure]

    def reply(self, procedure: str, request: dict) -> tuple[int, dict | bytes]:
        """Status and body: JSON, or a file."""
        self.calls.append((procedure, request))
        if self.faults.get(procedure):
            return self.faults[procedure].pop(0)
        return getattr(self, procedure)(request)

    def SaveKernel(self, request):
        ref = request["slug"]
        self.versions[ref] = self.versions.get(ref, 0) + 1
        here = PUBLIC | set(self.datasets)
        return 200, {
            "ref": ref,
            "url": f"https://www.kaggle.com/code/{ref}",
            "versionNumber": self.versions[ref],
            "error": "",
            "invalidDatasetSources": [s for s in request.get("datasetDataSources", []) if s not in here],
            "invalidKernelSources": [s for s in request.get("kernelDataSources", []) if s not in self.versions],
            "invalidModelSources": [s for s in request.get("modelDataSources", []) if not self._has_model(s)],
        }

    def GetKernelSessionStatus(self, request):
        script = self.scripts.get(request["kernelSlug"], ["COMPLETE"])
        return 200, {"status": script.pop(0) if len(script) > 1 else script[0]}

    def ListKernelSessionOutput(self, request):
        slug = request["kernelSlug"]
        log = [{"stream_name": "stdout", "time": 1.5, "data": line} for line in self.logs.get(slug, ["done\n"])]
        return 200, {
            "files": [{"fileName": f"tables/{slug}.csv", "url": f"http://localhost/output/{slug}"}],
            "log": json.dumps(log),
        }

    def GetDatasetStatus(self, request):
        there = f"{request['ownerSlug']}/{request['datasetSlug']}" in self.datasets
        return (200, {"status": "READY"}) if there else (404, {"code": 404, "message": "Not found"})

    def GetDataset(self, request):
        return 200, {"currentVersionNumber": len(self.datasets[f"{request['ownerSlug']}/{request['datasetSlug']}"])}

    def StartBlobUpload(self, request):
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = (request["name"], b"")
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def CreateDataset(self, request):
        return self._add(f"{request['ownerSlug']}/{request['slug']}", request["files"])

    def CreateDatasetVersion(self, request):
        return self._add(f"{request['ownerSlug']}/{request['datasetSlug']}", request["body"]["files"])

    def GetModel(self, request):
        there = any(ref.startswith(f"{request['ownerSlug']}/{request['modelSlug']}/") for ref in self.models)
        return (200, {"slug": request["modelSlug"]}) if there else (404, {"code": 404, "message": "Not found"})

    def CreateModel(self, request):
        return 200, {"ref": request["slug"]}

    def UpdateModel(self, request):
        return 200, {"ref": request["modelSlug"]}

    def CreateModelInstance(self, request):
        body = request["body"]
        ref = f"{request['ownerSlug']}/{request['modelSlug']}/{body['instanceSlug']}"
        if ref in self.models:
            return 200, {"error": "That variation exists", "code": 409, "errorCode": 409}
        return self._add_weights(ref, body["files"])

    def CreateModelInstanceVersion(self, request):
        ref = f"{request['ownerSlug']}/{request['modelSlug']}/{request['instanceSlug']}"
        return self._add_weights(ref, request["body"]["files"])

    def GetModelInstance(self, request):
        return 200, {"slug": request["instanceSlug"], "versionNumber": len(self._files(request))}

    def ListModelInstanceVersionFiles(self, request):
        return 200, {"files": [{"name": name} for name in self._files(request)[-1]]}

    def DownloadModelInstanceVersion(self, request):
        return 200, self._files(request)[request["versionNumber"] - 1][request["path"]]

    def _files(self, request):
        return self.models[f"{request['ownerSlug']}/{request['modelSlug']}/{request['instanceSlug']}"]

    def _has_model(self, source):
        owner, model, _, variation, version = source.split("/")
        return int(version) <= len(self.models.get(f"{owner}/{model}/{variation}", ()))

    def _add_weights(self, ref, files):
        self.models.setdefault(ref, []).append(dict(self.blobs[file["token"]] for file in files))
        return 200, {"ref": ref}

    def _add(self, ref, files):
        self.datasets.setdefault(ref, []).append(dict(self.blobs[file["token"]] for file in files))
        return 200, {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok", "error": ""}


class _Handler(BaseHTTPRequestHandler):
    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        request = json.loads(self._body() or b"{}")
        procedure = re.fullmatch(r"http://localhost/api/v1/[\w.]+/(\w+)", self.path)
        if not procedure or not hasattr(self.server, procedure[1]):
            self.server.foreign.append(self.path)
            status, body = 501, {"code": 501, "message": f"the stand-in has no {self.path}"}
        elif self.headers.get("Authorization") != "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode():
            status, body = 401, {"code": 401, "message": "Unauthenticated"}
        else:
            status, body = self.server.reply(procedure[1], request)
        if isinstance(body, bytes):
            self._send(status, body, "application/octet-stream")
        else:
            self._send(status, json.dumps(body).encode(), "application/json")

    def do_PUT(self):
        token = self.path.removeprefix("http://localhost/upload/")
        self.server.blobs[token] = (self.server.blobs[token][0], self._body())
        self._send(200, b"", "text/plain")

    def do_GET(self):
        self._send(200, f"ran,{self.path.removeprefix('http://localhost/output/')}\n".encode(), "text/csv")

    def do_CONNECT(self):
        self.server.foreign.append(self.path)
        self._send(403, b"", "text/plain")

    def log_message(self, *_):
        pass
