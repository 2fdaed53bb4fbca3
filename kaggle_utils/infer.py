"""From a radiograph to its mask: read, checked, segmented, judged. :func:`segment_films` does all of it.

Nothing here loads PyTorch or pandas before it is needed: a Lambda function segments without them.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

import cv2
import numpy as np
from numpy.typing import ArrayLike

from .config import CONVENTIONS, THRESHOLD
from .files import DEFAULT_WEIGHTS, find_weights, printable  # noqa: F401 (this module is the face of the first)
from .image import MOST_BYTES, film_bytes, from_array, read_film, resize_image, resize_prob
from .pictures.arrays import is_array
from .quality import (
    NO_CHEST,
    Checked,
    Quality,
    check_film,
    check_height,
    check_lungs,
    choose_fit,
    estimate_quality,
    split_lungs,
    why_no_estimate,
)

if TYPE_CHECKING:
    import torch

    from .dicom.read import Radiograph

FilmLike = str | Path | bytes | BinaryIO | ArrayLike  # a file's name, its bytes, the open file, or an array
_FILM_LIKE = "a path, bytes, an open file, an array (NumPy, PyTorch, Pillow and so on)"
_LARGE = 200_000_000  # bytes of a batch, after which memory is given back; eight films of 1024 px have 80 million


@dataclass(frozen=True)
class CheckedFilm:
    """A film that was read, and what the checks found in it.

    Attributes:
        image: ``uint8 (H, W)``, as it lies in its file.
        checked: the film put right, and how it was turned.
        spacing_mm: between the upright film's rows and columns, where the file carries them.
        notes: what reading and the checks found and did, without semicolons.
        age: of the patient, years, where the file says it.
    """

    name: str
    path: str | Path
    image: np.ndarray = field(repr=False)
    checked: Checked = field(repr=False)
    spacing_mm: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    age: float | None = None


@dataclass(frozen=True)
class Unsegmented:
    """A film without a mask.

    Attributes:
        error: why there is none.
        shape: of the film, where it could be read and was refused.
        notes: what reading and the checks found, without semicolons.
    """

    name: str
    path: str | Path
    error: str
    shape: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def row(self) -> dict[str, Any]:
        """What ``predictions.csv`` says of it."""
        row = _first_columns(self) | {"error": printable(self.error)}
        if self.shape:
            row["height"], row["width"] = self.shape
        return row


@dataclass(frozen=True, repr=False)
class Segmented:
    """A film with its mask.

    Attributes:
        film: as it was read and checked.
        upright: the mask of the film put right (``film.checked.image``), ``uint8 (H, W)`` in {0, 1}.
        prob: probability of lung at the network's own size, upright, ``float32 (size, size)``.
        quality: an estimate of the mask's Dice, a flag and reasons; None where the network comes without an estimate,
            which the notes say.
        notes: what reading and the checks found and did, without semicolons.
    """

    film: CheckedFilm
    upright: np.ndarray
    prob: np.ndarray
    quality: Quality | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        height, width = self.upright.shape
        judged = f", quality {self.quality.estimate:.2f} ({self.quality.flag})" if self.quality else ""
        return f"<Segmented {self.name}: {height} × {width} px, {self.upright.mean():.0%} lung{judged}>"

    @property
    def name(self) -> str:
        return self.film.name

    @property
    def path(self) -> str | Path:
        return self.film.path

    @cached_property
    def mask(self) -> np.ndarray:
        """Both lungs as the film lies in its file, ``uint8 (H, W)`` in {0, 1}."""
        return self.film.checked.undo(self.upright)

    @cached_property
    def lungs(self) -> tuple[np.ndarray, np.ndarray]:
        """The **patient's** right lung and left lung, as the film lies in its file."""
        right, left = split_lungs(self.upright)
        return self.film.checked.undo(right), self.film.checked.undo(left)

    @property
    def right(self) -> np.ndarray:
        """The **patient's** right lung, as the film lies in its file."""
        return self.lungs[0]

    @property
    def left(self) -> np.ndarray:
        """The **patient's** left lung, as the film lies in its file."""
        return self.lungs[1]

    @property
    def probability(self) -> np.ndarray:
        """Probability of lung of each pixel of the film in its file, ``float32 (H, W)``."""
        return self.film.checked.undo(resize_prob(self.prob, self.upright.shape))

    @property
    def row(self) -> dict[str, Any]:
        """What ``predictions.csv`` says of it, without the paths of what was written."""
        row = _first_columns(self) | {"error": "", "flag": "", "reasons": ""}
        row["height"], row["width"] = self.film.image.shape
        row["lung_px"] = int(self.upright.sum())
        row["lung_share"] = round(float(self.upright.mean()), 4)
        if self.quality:
            row["quality"] = round(self.quality.estimate, 3)
            row["flag"] = self.quality.flag
            row["reasons"] = "; ".join(self.quality.reasons)
        return row


Read = CheckedFilm | Unsegmented  # a film that may be segmented, or why not
Result = Segmented | Unsegmented
Named = tuple[FilmLike, str]  # a film and its name in tables


def _first_columns(result: Result) -> dict[str, Any]:
    return {"name": result.name, "path": printable(result.path), "notes": "; ".join(result.notes)}


class LungSegmenter:
    """A trained U-Net that takes radiographs of any size.

    On a CPU it calls :func:`hardware.keep_memory`, and gives each film of a batch a thread of its own.

    Args:
        weights: a file of ``model.save_weights``, or of ``export.export_onnx`` for a backend other than torch; or the
            name of one that ships with the package, of which ``lungs`` is taken if None.
        device: auto, cpu, cuda, cuda:N or mps (a Mac's GPU); a backend other than torch has the CPU alone.
        flip: average the prediction with that of the mirrored film: twice the time for a little accuracy.
        clean: keep the two largest components and fill holes, see :func:`clean_mask`.
        threshold: probability, between 0 and 1, above which a pixel is lung.
        backend: what computes the network: torch (onnxruntime for ONNX weights), onnxruntime or openvino.
        head: the set whose annotators' rules the masks follow, where the network has an output for each set that it was
            trained on (``heads`` in the header); the first one if None.
        convention: instead of a head, ``lung-field``, which leaves out what the heart hides, or ``with-heart``, which
            takes it in: the first head whose set has that convention (``config.CONVENTIONS``). ``head`` takes a
            convention's name too.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: weights that are damaged or of another network, no such head or convention or both of them, a
            threshold out of range, or no such backend for this file and device.
        ImportError: the backend is not installed.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        flip: bool = False,
        clean: bool = True,
        threshold: float = THRESHOLD,
        backend: str = "torch",
        head: str | None = None,
        convention: str | None = None,
    ):
        _check_choices(threshold, head, convention)
        import torch

        from .export import read_onnx_header
        from .hardware import choose_device, choose_precision, keep_memory, lone_threads
        from .model import read_header

        self.path = path = find_weights(weights)
        if weights is None and not path.exists():
            how = "train some (`python -m kaggle_utils train`) and name them with --weights"
            raise FileNotFoundError(f"{path} is not there: {how}")
        if path.suffix == ".onnx" and backend == "torch":
            backend = "onnxruntime"
        # Weights are identified by their content.
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
        self.header: dict[str, Any] = read_onnx_header(path) if path.suffix == ".onnx" else read_header(path)
        _check_header(path, self.header)
        self.size: int = self.header["size"]  # px, the side of the square that the network was trained on
        self.device = choose_device("cpu" if device == "auto" and backend != "torch" else device)
        if self.device.type == "cpu":
            keep_memory()
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(self.device))
        classes = self.header["architecture"].get("classes", 1)
        self.model = _open_network(path, backend, self.device, bf16=self.dtype == torch.bfloat16, classes=classes)
        # The other backends have threads of their own.
        self.threads = lone_threads() if backend == "torch" and self.device.type == "cpu" else None
        self.flip, self.clean, self.threshold = flip, clean, threshold
        self.heads: list[str] = self.header.get("heads") or [""]
        self._follow(_find_head(convention if head is None else head, self.header, path))

    def _follow(self, head: str) -> None:
        self.head = head
        # The fit that quality.estimate_quality takes.
        self.quality = choose_fit(self.header.get("quality", {}), CONVENTIONS.get(head))

    def __call__(self, films: FilmLike | Iterable[FilmLike]) -> Segmented | list[Result]:
        """Masks of films, from files or arrays.

        Args:
            films: a path, a file's bytes, an open file, an array, or a list, tuple, set or iterator of them. An array
                is gray ``(H, W)`` of any type and range, or RGB or RGBA ``(H, W, C)``, of NumPy or of what gives NumPy
                one: a tensor of PyTorch, a picture of Pillow.

        Returns:
            Of one film a :class:`Segmented`; of a list one result each, :class:`Unsegmented` where there is no mask.

        Raises:
            ValueError: the one film can't be read, or is no frontal chest film.
            TypeError: neither a film nor several.
        """
        if _is_film(films):
            (result,) = segment_films([films], self)
            if isinstance(result, Unsegmented):
                raise ValueError(result.error)
            return result
        if not isinstance(films, (list, tuple, set, frozenset, Iterator)):
            kind = type(films).__name__
            raise TypeError(f"expected {_FILM_LIKE}, or a list, tuple, set or iterator of them, not {kind}")
        return list(segment_films(films, self))

    @property
    def conventions(self) -> dict[str, str]:
        """The conventions of ``config.CONVENTIONS`` that the network has, each with its head: the segmenter's own, or
        the first one."""
        found: dict[str, str] = {}
        for head in (self.head, *self.heads):
            learned = [head] if head else self.header["sources"]
            convention, *others = {CONVENTIONS.get(source) for source in learned}
            if convention and not others:
                found.setdefault(convention, head)
        return found

    def with_head(self, head: str) -> LungSegmenter:
        """A segmenter that shares the network and follows another of its heads."""
        other = copy(self)
        other._follow(head)
        return other

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the masks of a film."""
        return {
            "weights": self.version,
            "head": self.head,
            "flip": self.flip,
            "clean": self.clean,
            "threshold": self.threshold,
        }

    def probabilities(self, films: list[np.ndarray], heads: Sequence[str] | None = None) -> np.ndarray:
        """Probability of lung at the network's own size.

        Args:
            films: each ``uint8 (H, W)``, of any size.
            heads: for each film, the head to use instead of the segmenter's own, if the network has it.

        Returns:
            ``float32 (B, size, size)``.
        """
        wanted = heads or [self.head] * len(films)
        if self.threads is None or len(films) == 1:
            return self._batch(films, wanted)
        return np.concatenate(list(self.threads.map(lambda film, head: self._batch([film], [head]), films, wanted)))

    def _batch(self, films: list[np.ndarray], heads: Sequence[str]) -> np.ndarray:
        """:meth:`probabilities` in one forward pass."""
        import torch

        from .data import normalise

        batch = np.stack([resize_image(film, self.size) for film in films])[:, None]
        images = normalise(torch.from_numpy(batch).to(self.device)).contiguous(memory_format=torch.channels_last)
        channels = [self.heads.index(head if head in self.heads else self.head) for head in heads]

        def lung(images: torch.Tensor) -> torch.Tensor:
            return self.model(images)[range(len(films)), channels].float().sigmoid()

        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            prob = lung(images)
            if self.flip:
                prob = (prob + lung(images.flip(-1)).flip(-1)) / 2
        return prob.cpu().numpy()

    def masks(self, films: list[np.ndarray], heads: Sequence[str] | None = None) -> list[np.ndarray]:
        """Masks of films ``uint8 (H, W)`` in their own sizes, each ``uint8 (H, W)`` in {0, 1}.

        Args:
            films, heads: as for :meth:`probabilities`.
        """
        return [self.finish(prob, film.shape) for prob, film in zip(self.probabilities(films, heads), films)]

    def finish(self, prob: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Probabilities ``(size, size)`` to a mask of any ``shape``: resized, thresholded, cleaned."""
        return finish_mask(prob, shape, threshold=self.threshold, clean=self.clean)


def segment_films(
    films: Iterable[FilmLike],
    segmenter: LungSegmenter,
    *,
    names: Iterable[str] | None = None,
    batch: int = 8,
    force: bool = False,
) -> Iterator[Result]:
    """Segments radiographs: one result each, in order. What is in a file never raises. While the network works, the
    next ones are read.

    Args:
        films: files, their bytes, or arrays as :class:`LungSegmenter` takes them when it is called.
        segmenter: with which weights and switches; anything with its ``probabilities``, ``finish``, ``threshold`` and
            ``quality``.
        names: by which films go in tables; if not given, their files' stems, and ``film 0`` and so on for others.
        batch: films at once.
        force: segment too what would be refused (no chest film, blank, too small); the reasons become notes.
    """
    films = list(films)
    if names is None:
        names = [Path(film).stem if isinstance(film, (str, Path)) else f"film {n}" for n, film in enumerate(films)]
    with ThreadPoolExecutor() as pool:
        for results in segment_batches(zip(films, names), segmenter, pool, batch=batch, force=force):
            yield from results


def segment_batches(
    films: Iterable[Named], segmenter: LungSegmenter, pool: Executor, *, batch: int = 8, force: bool = False
) -> Iterator[list[Result]]:
    """:func:`segment_films` in batches, for callers that work on several at once.

    Args:
        films: of each the file or array, and the name.
        segmenter, batch, force: as there.
        pool: whose threads read, and make masks of probabilities.
    """
    for read in read_ahead(films, pool, batch, force=force):
        good = [film for film in read if isinstance(film, CheckedFilm)]
        probs = segmenter.probabilities([film.checked.image for film in good]) if good else ()
        segmented = pool.map(partial(segment, segmenter=segmenter, force=force), good, probs)
        yield [next(segmented) if isinstance(film, CheckedFilm) else film for film in read]


def read_checked(film: FilmLike, name: str, *, force: bool = False) -> Read:
    """A film of any file, checked before it is segmented; never raises for what is in the file.

    Args:
        film: the file, its bytes, or an array as :class:`LungSegmenter` takes it when it is called.
        name: by which the film goes in tables.
        force: what would be refused is read all the same, with the reasons as notes.
    """
    path = film if isinstance(film, (str, Path)) else name
    try:
        found = _read(film, path)
    except (ValueError, OSError, ImportError) as error:  # a folder may hold DICOM besides what needs no extra
        return Unsegmented(name, path, str(error))
    checked = check_film(found.image, found.colour, found.lie)
    if checked.problems and not force:
        refusal = f"{path}: refused: {'; '.join(checked.problems)}"
        return Unsegmented(name, path, refusal, found.image.shape, found.notes + checked.notes)
    spacing = found.spacing_mm
    if spacing and checked.turned % 180:
        spacing = spacing[1], spacing[0]
    notes = found.notes + checked.problems + checked.notes
    return CheckedFilm(name, path, found.image, checked, spacing, notes, found.age)  # no colours: many wait in memory


def _read(film: Any, path: str | Path) -> Radiograph:
    if is_array(film):
        return from_array(film)
    if isinstance(film, (str, Path)):
        return read_film(path)
    if hasattr(film, "read"):
        film = film.read()
        if isinstance(film, str):
            raise ValueError(f"{path}: a file opened as text: open it with mode 'rb'")
    if not isinstance(film, bytes):
        raise ValueError(f"{path}: expected {_FILM_LIKE}, not {type(film).__name__}")
    return read_film(path, data=film)


def _is_film(film: object) -> TypeGuard[FilmLike]:
    return isinstance(film, (str, Path, bytes)) or is_array(film) or hasattr(film, "read")


def read_ahead(todo: Iterable[Named], pool: Executor, batch: int, *, force: bool = False) -> Iterator[list[Read]]:
    """Batches of checked films, in order; while one is worked on the next one is read, if both have room in memory.

    Args:
        todo: of each film the file or array, and the name, as for :func:`read_checked`.
        pool: whose threads read.
        batch: films of a batch at most.
        force: as for :func:`read_checked`.
    """
    before: list[Future[Read]] = []
    held = 0
    for films, size in _batches(todo, pool, batch):
        if held + size > MOST_BYTES:
            yield from _take(before, held)
        reading = [pool.submit(read_checked, film, name, force=force) for film, name in films]
        yield from _take(before, held)
        before, held = reading, size
    yield from _take(before, held)


def _batches(todo: Iterable[Named], pool: Executor, batch: int) -> Iterator[tuple[list[Named], int]]:
    """Films as many as a batch has and half of ``MOST_BYTES`` holds, but one at least; and the bytes they will take."""
    todo = iter(todo)
    films: list[Named] = []
    held = 0
    while some := list(islice(todo, batch)):
        for item, size in zip(some, pool.map(film_bytes, [film for film, _ in some])):
            if len(films) == batch or films and held + size > MOST_BYTES / 2:
                yield films, held
                films, held = [], 0
            films.append(item)
            held += size
    if films:
        yield films, held


def _take(reading: list[Future], held: int) -> Iterator[list[Read]]:
    """What was read as one batch, unless it was taken before; gives its memory back to the kernel when it is done."""
    if not reading:
        return
    films = [job.result() for job in reading]
    reading.clear()
    yield films
    films.clear()
    if held > _LARGE:
        with suppress(AttributeError, OSError, TypeError):  # not glibc: macOS, musl, Windows
            ctypes.CDLL(None).malloc_trim(0)  # :func:`hardware.keep_memory` has the C library keep what was freed


def segment(film: CheckedFilm, prob: np.ndarray, segmenter: LungSegmenter, *, force: bool = False) -> Result:
    """A film's mask from its probabilities, checked and judged; never raises for what is in the film.

    Args:
        film: of :func:`read_checked`.
        prob: what ``segmenter.probabilities`` said of ``film.checked.image``, ``float32 (size, size)``.
        segmenter: which did.
        force: keep the mask of what is hardly like a chest film and has no lungs of a usual shape.
    """
    mask = segmenter.finish(prob, film.checked.image.shape)
    lungs = check_lungs(mask)
    if film.checked.doubtful and lungs and not force:
        error = f"{film.path}: refused: {NO_CHEST}"
        return Unsegmented(film.name, film.path, error, film.image.shape, film.notes + lungs)
    notes = film.notes + lungs + check_height(mask, film.spacing_mm, film.age)
    quality = estimate_quality(prob, mask, segmenter.quality, segmenter.threshold)
    if quality is None:
        notes = (*notes, why_no_estimate(segmenter.quality))
    return Segmented(film, mask, prob, quality, notes)


def finish_mask(
    prob: np.ndarray, shape: tuple[int, int], *, threshold: float = THRESHOLD, clean: bool = True
) -> np.ndarray:
    """Probabilities ``(size, size)`` to a mask of any ``shape``: resized, thresholded, cleaned."""
    mask = (resize_prob(prob, shape) > threshold).astype(np.uint8)
    return clean_mask(mask) if clean else mask


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Keeps the two largest connected components of a mask ``uint8 (H, W)`` in {0, 1}, and fills their holes."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    keep = np.zeros(count, np.uint8)
    keep[1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:2]] = 1
    outlines, _ = cv2.findContours(keep[labels], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)


def _check_choices(threshold: float, head: str | None, convention: str | None) -> None:
    if not isinstance(threshold, Real) or not 0 < threshold < 1:
        raise ValueError(f"threshold is a number between 0 and 1, not {threshold!r}")
    if convention is None:
        return
    known = sorted(set(CONVENTIONS.values()))
    if convention not in known:
        raise ValueError(f"convention is {' or '.join(known)}, not {convention!r}")
    if head is not None:
        raise ValueError(f"head {head!r} and convention {convention!r}: give one of them, each chooses the head")


def _find_head(wanted: str | None, header: dict[str, Any], path: Path) -> str:
    """The head of that name, or the first one whose set has a convention of that name; empty if there is only one.

    Raises:
        ValueError: there is none.
    """
    heads = header.get("heads")
    if not heads and wanted in (None, *header["sources"], *map(CONVENTIONS.get, header["sources"])):
        return ""
    for head in heads or []:
        if wanted in (None, head, CONVENTIONS.get(head)):
            return head
    if wanted and wanted in CONVENTIONS.values():
        raise ValueError(f"{path}: {_without_convention(wanted, header['sources'])}")
    known = ", ".join(heads or header["sources"])
    there = "the heads are" if heads else "there is one output, whose masks follow the rules of"
    raise ValueError(f"{path}: no head {wanted!r}: {there} {known}")


def _without_convention(wanted: str, sources: Sequence[str]) -> str:
    """Why weights that learned from these sets have no masks of a convention, and what has."""
    learned = " and ".join(sorted({CONVENTIONS.get(source, "other") for source in sources}))
    sets = [name for name, convention in CONVENTIONS.items() if convention == wanted]
    return (
        f"these weights learned {learned} masks only (of {', '.join(sources)}); {wanted} needs weights trained on "
        f"{' or '.join(sets)}: `train --sources … {sets[0]}`"
    )


def _check_header(path: Path, header: dict[str, Any]) -> None:
    """Raises ValueError where a weights file's header isn't that of a network for films."""
    missing = " and no ".join(sorted({"size", "sources"} - header.keys()))
    if missing:
        raise ValueError(f"{path}: no {missing} in the header, so films can't be given to it as in training")
    for name, wanted in {"in_channels": 1, "dims": 2}.items():
        found = header["architecture"].get(name, wanted)
        if found != wanted:
            raise ValueError(f"{path}: a network of {name} {found}, not one for films")


def _open_network(
    path: Path, backend: str, device: torch.device, *, bf16: bool, classes: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    from .export import open_graph, to_onnx
    from .model import fold_norm, load_weights

    if backend == "torch":
        model = fold_norm(load_weights(path))
        return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type != "cpu":
        raise ValueError(f"backend {backend} is for the CPU, not for {device}: choose device auto or cpu")
    if path.suffix != ".onnx":
        return open_graph(to_onnx(load_weights(path)), backend, bf16=bf16)
    try:
        run = open_graph(path.read_bytes(), backend, bf16=bf16)
        found = run(torch.zeros(1, 1, 33, 37)).shape[1]
    except ImportError:
        raise
    except Exception as error:  # each runtime has its own for a graph that it can't compute
        reason = str(error).strip().splitlines()[0][:300]
        raise ValueError(f"{path}: {backend} can't compute it ({reason}): export it again") from None
    if found != classes:
        raise ValueError(f"{path}: its header names {classes} classes, its graph gives {found}: export it again")
    return run
