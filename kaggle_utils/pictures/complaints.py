"""Hears what decoders complain of: libjpeg and libtiff fill up what is damaged, and only print that."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

DAMAGED = "damaged: "  # begins the note of a film of whose pixels some are wrong
SECONDS = 120  # of decoding alone; a film of 64 megapixels takes 2, a machine may be busy
_COMPRESSION, _STRIPS, _TILES = 259, (273, 279), (324, 325)  # TIFF's tags
_JPEG, _DEFLATE = 7, (8, 32946)
# OpenCV 4.12 calls libtiff's errors warnings.
_COMPLAINTS = re.compile(
    r"(?:Corrupt JPEG data: |\[ERROR\S* global grfmt_tiff\S* \w+ |OpenCV TIFF: \w+Decode: Warning, )([^\n;]*)"
)
warnings.filterwarnings("ignore", module=r"PIL\.")  # about tags
_DECODE = """import sys, cv2, numpy
page = int(sys.argv[1])
data = numpy.frombuffer(sys.stdin.buffer.read(), numpy.uint8)
cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))"""


def run_apart(*words: str, data: bytes, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Python with this package in a process of its own.

    Args:
        words: of its command line.
        data: that it gets on stdin.
        variables: of its environment, besides this process's.

    Raises:
        subprocess.TimeoutExpired: it took more than ``SECONDS``.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    env = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", **variables}
    return subprocess.run([sys.executable, *words], input=data, capture_output=True, timeout=SECONDS, env=env)


def complaint_alone(data: bytes, page: int = 0) -> str:
    """What OpenCV's decoder says of damage to a JPEG's or TIFF's page, in a process of its own; empty where it's
    content.

    That takes a good part of a second: it's for a file that may be damaged.
    """
    try:  # OpenCV tells of libtiff's errors where its log is open
        done = run_apart("-c", _DECODE, str(page), data=data, OPENCV_LOG_LEVEL="DEBUG")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return complaint_in(done.stderr)


def complaint_in(printed: bytes) -> str:
    """The first words about damage in what decoders print; empty where there are none."""
    found = _COMPLAINTS.search(printed.decode(errors="replace"))
    return found[1].strip(" .") if found else ""


def damage_of_tiff(data: bytes, page: int, most: int) -> str:
    """What is wrong with the pixels of a TIFF's page; empty where nothing is seen to be.

    Pillow, which is stricter than OpenCV, decodes it; where it fails, or would go on too, OpenCV is asked.

    Args:
        data: the file.
        page: which.
        most: bytes of the page's pixels; of a strip that has more nothing is said.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=["TIFF"]) as picture:
            picture.seek(page)
            tags = picture.tag_v2  # type: ignore[attr-defined]
            packing = tags.get(_COMPRESSION)
            starts, lengths = _TILES if _TILES[0] in tags else _STRIPS
            strips = zip(tags[starts], tags[lengths]) if packing in _DEFLATE else ()
            if not all(_is_whole(data[at : at + size], most) for at, size in strips):
                return "a checksum of its pixels is wrong"
            if packing != _JPEG:  # of which Pillow, too, fills up what is damaged
                picture.load()
                return ""
    except MemoryError:
        raise
    except Exception:  # of many kinds; it may just not know this one
        pass
    return complaint_alone(data, page)


def _is_whole(packed: bytes, most: int) -> bool:
    """Says whether zlib's stream ends with its checksum, which libtiff doesn't read once it has its pixels."""
    stream = zlib.decompressobj()
    try:
        return len(stream.decompress(packed, most + 1)) > most or stream.eof
    except zlib.error:
        return False


class _Ear:
    """Hears what C libraries print to stderr, which isn't printed then. Python's ``sys.stderr`` isn't touched.

    While anybody listens, the C library's variable ``stderr`` is another file. Only glibc has it to be set: elsewhere
    nothing is heard, and what is said is printed.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock, self._listeners = threading.Lock(), 0
        self._file: int | None = None
        if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()):
            return
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        self._stderr = ctypes.c_void_p.in_dll(libc, "stderr")
        with suppress(AttributeError, OSError):  # no such files, or forbidden
            self._file = os.memfd_create("stderr")
            self._stream = libc.fdopen(self._file, b"a")
            libc.setvbuf(ctypes.c_void_p(self._stream), None, 2, 0)  # _IONBF

    @contextmanager
    def listening(self) -> Iterator[Callable[[], bool]]:
        """Tells, asked within the ``with``, whether anything was said by this thread or by others that listen."""
        file = self._file
        if file is None:
            yield lambda: False
            return
        with self._lock:
            self._listeners += 1
            if self._listeners == 1:
                self._own, self._stderr.value = self._stderr.value, self._stream
            before = os.fstat(file).st_size
        try:
            yield lambda: os.fstat(file).st_size > before
        finally:
            with self._lock:
                self._listeners -= 1
                if not self._listeners:
                    self._stderr.value = self._own
                    os.ftruncate(file, 0)

    def after_fork(self) -> None:
        """In the child the other threads, who listened, are gone; and its file isn't the parent's."""
        if self._listeners:
            self._stderr.value = self._own
        self._begin()


_EAR = _Ear()
listening = _EAR.listening
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_EAR.after_fork)
