"""Masks for new films: one class for arrays, one function for files, one for a prepared set with its truth."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .checks import NO_CHEST, Checked, check_film, check_lungs
from .data import normalise, read_manifest
from .export import open_graph, read_onnx_header, to_onnx
from .hardware import choose_device, choose_precision, keep_memory
from .image import (IMAGE_SUFFIXES, is_image_file, read_film, read_image, read_mask, resize_image, resize_mask, resize_prob,
                    write_bytes, write_image, write_mask)
from .measure import MEASUREMENTS, measure
from .metrics import score
from .model import load_weights, read_header
from .prep import combined_mask, find_films

COLUMNS = ("name", "path", "height", "width", "lung_px", "lung_share", "mask", "overlay", "notes", "error")
DEFAULT_WEIGHTS = Path(__file__).with_name("weights") / "lungs.safetensors"
# Blue and orange of Okabe & Ito's palette, told apart by colour-blind eyes; BGR, as OpenCV draws.
TRUTH_COLOUR, PRED_COLOUR = (178, 114, 0), (0, 159, 230)


class LungSegmenter:
    """A trained U-Net that takes films of any size. On a CPU it calls :func:`hardware.keep_memory` for the process.

    Args:
        weights: a file of ``model.save_weights``, or of ``export.export_onnx`` for a backend other than torch; None is the
            one that ships with the package.
        device: auto, cpu, cuda or cuda:N; a backend other than torch has the CPU alone.
        flip: average the prediction with that of the mirrored film: twice the time for a little accuracy.
        clean: keep the two largest components and fill holes, see :func:`clean_mask`.
        threshold: probability above which a pixel is lung.
        backend: what computes the network: torch, onnxruntime or openvino.
        head: the set whose annotators' rules the masks follow, where the network has an output for each set that it was
            trained on (``heads`` in the header); the first one if None.

    Raises:
        FileNotFoundError: no such weights.
        ValueError: a damaged or foreign weights file, no such head, or no such backend for this file and device.
        ImportError: the backend is not installed.
    """

    def __init__(self, weights: str | Path | None = None, *, device: str = "auto", flip: bool = False, clean: bool = True,
                 threshold: float = 0.5, backend: str = "torch", head: str | None = None):
        path = Path(weights or DEFAULT_WEIGHTS)
        if weights is None and not path.exists():
            raise FileNotFoundError(f"{path} is not there: train one (`python -m kaggle_utils train`) and name it with --weights")
        self.header = read_onnx_header(path) if path.suffix == ".onnx" else read_header(path)
        missing = {"size", "sources"} - set(self.header)
        if missing:
            raise ValueError(f"{path}: no {' and no '.join(sorted(missing))} in the header, so films can't be given to it as in training")
        self.size = self.header["size"]  # px, the side of the square that the network was trained on
        self.device = choose_device("cpu" if device == "auto" and backend != "torch" else device)
        if self.device.type == "cpu":
            keep_memory()
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(self.device))
        self.model = _open_network(path, backend, self.device, bf16=self.dtype == torch.bfloat16)
        self.flip, self.clean, self.threshold = flip, clean, threshold
        self.heads = self.header.get("heads") or [""]
        self.head = head or self.heads[0]
        if self.head not in self.heads:
            raise ValueError(f"{path}: no head {head!r}, it has {', '.join(filter(None, self.heads)) or 'a single one'}")

    def probabilities(self, films: list[np.ndarray], heads: Sequence[str] | None = None) -> np.ndarray:
        """Probability of lung at the network's own size.

        Args:
            films: each ``uint8 (H, W)``, of any size.
            heads: for each film, the head to use instead of the segmenter's own.

        Returns:
            ``float32 (B, size, size)``.
        """
        batch = np.stack([resize_image(film, self.size) for film in films])[:, None]
        images = normalise(torch.from_numpy(batch).to(self.device)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            prob = self.model(images).float().sigmoid()
            if self.flip:
                prob = (prob + self.model(images.flip(-1)).float().sigmoid().flip(-1)) / 2
        channels = [self.heads.index(head) for head in heads or [self.head] * len(films)]
        return prob[range(len(films)), channels].cpu().numpy()

    def masks(self, films: list[np.ndarray]) -> list[np.ndarray]:
        """Masks of the films' own sizes: the probability is resized, then thresholded.

        Args:
            films: each ``uint8 (H, W)``.

        Returns:
            Each ``uint8 (H, W)`` in {0, 1}.
        """
        return [self.finish(prob, film.shape) for prob, film in zip(self.probabilities(films), films)]

    def finish(self, prob: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Probabilities ``(size, size)`` to a mask of any ``shape``: resized, thresholded, cleaned."""
        mask = (resize_prob(prob, shape) > self.threshold).astype(np.uint8)
        return clean_mask(mask) if self.clean else mask


@dataclass(frozen=True)
class ReadFilm:
    """A film read from a file, as it lies there, and what the checks made of it; or the reason why there is none to segment."""

    name: str
    path: Path
    image: np.ndarray | None = None
    checked: Checked | None = None
    error: str = ""
    spacing_mm: tuple[float, float] | None = None  # between the checked film's rows and columns, where the file carries them
    notes: tuple[str, ...] = ()  # without semicolons


def clean_mask(mask: np.ndarray, components: int = 2) -> np.ndarray:
    """Keeps the largest connected components and fills their holes.

    Args:
        mask: ``uint8 (H, W)`` in {0, 1}.
        components: how many to keep; there are two lungs.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    keep = np.zeros(count, np.uint8)
    keep[1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:components]] = 1
    outlines, _ = cv2.findContours(keep[labels], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), outlines, -1, 1, cv2.FILLED)


def find_files(patterns: Iterable[str | Path], *, skip: str | Path | None = None) -> list[Path]:
    """The image files that files, folders (searched below, not in hidden ones) and globs name, sorted, each once.

    In folders, DICOM files are told by their content, whatever their suffix; a DICOMDIR is no film.

    Args:
        patterns: files, folders and globs.
        skip: a folder not to search, such as the one that an earlier call wrote its own pictures to.

    Raises:
        FileNotFoundError: a pattern names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)
                           and is_image_file(p))
        else:
            files = [path] if path.exists() else sorted(p for p in map(Path, glob(str(pattern), recursive=True)) if p.is_file())
        files = [p for p in files if skip is None or Path(skip).absolute() not in p.absolute().parents]
        if not files:
            raise FileNotFoundError(f"{pattern}: no such file, or no image ({', '.join(IMAGE_SUFFIXES)} or DICOM) in it")
        found.update(dict.fromkeys(files))
    return list(found)


def predict(patterns: Iterable[str | Path], out: str | Path, segmenter: LungSegmenter, *, batch: int = 8,
            force: bool = False) -> pd.DataFrame:
    """Segments files; one that can't be read, or is refused, is a row with the reason, and the rest goes on.

    A film that lies on its side or upside down, or is a negative, is put right by :func:`checks.check_film` before it is
    segmented, and the notes say so. Its mask and overlay lie as the file does; it is measured upright, so the rows and
    columns in ``measurements.csv`` are those of the turned film.

    Args:
        patterns: files, folders and globs.
        out: gets ``masks/NAME.png`` (0/255, the film's own size), ``overlays/NAME.png``, ``predictions.csv`` and
            ``measurements.csv``: for each film with a mask, its name and what :func:`measure.measure` finds, to 4 decimals.
        segmenter: with which weights and switches.
        batch: films a forward pass.
        force: segment what would be refused too (no chest film, blank, too small); the reasons become notes.

    Returns:
        The table of predictions: name, path, height, width, lung_px, lung_share, mask, overlay, notes (what reading and the
        checks found and did, parted by semicolons), error. A film that was read but refused has height, width and
        ``refused: …`` in error; one that could not be read has error alone.

    Raises:
        FileNotFoundError: a pattern names nothing.
        OSError: ``out`` can't be written.
    """
    out = Path(out)
    for folder in ("masks", "overlays"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    files = find_files(patterns, skip=out)
    names = unique_names(files)
    rows, measured = [], []
    bar = tqdm(total=len(files), desc="predict", unit="film", disable=None)
    with ThreadPoolExecutor() as pool:
        for films in _batches(_read_ahead(files, names, pool, 2 * batch, force), batch):
            good = [film for film in films if not film.error]
            masks = dict(zip((film.name for film in good), segmenter.masks([film.checked.image for film in good]) if good else ()))
            for row, found in pool.map(lambda film: _write_film(film, masks.get(film.name), out, force), films):
                rows.append(row)
                if found:
                    measured.append({"name": row["name"], **found})
            bar.update(len(films))
    bar.close()
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(("height", "width", "lung_px"), "Int64"))
    write_bytes(out / "predictions.csv", table.to_csv(index=False).encode())
    measurements = pd.DataFrame(measured, columns=["name", *MEASUREMENTS]).round(4).convert_dtypes()  # whole numbers as such
    write_bytes(out / "measurements.csv", measurements.to_csv(index=False).encode())
    return table


def evaluate(data: str | Path, segmenter: LungSegmenter, *, split: str = "test", sizes: Sequence[int] = (256, 512),
             raw: str | Path | None = None, batch: int = 8) -> pd.DataFrame:
    """Scores a prepared set, film by film.

    A source that the weights were not trained on is foreign: then all its films count, besides those of the split.
    Films of a source that the network has a head for are segmented by its rules, others by the segmenter's head.

    Args:
        data: the prepared set.
        segmenter: with which weights and switches.
        split: train, val or test.
        sizes: px at which prediction and truth are compared; the published tables use 256.
        raw: folder with the raw sets, to compare at each film's own size too (size 0 in the table), and to take the
            truth of the other sizes from there.
        batch: films a forward pass.

    Returns:
        One row a film, protocol and size: name, source, protocol (``test``, or ``all`` where the source is foreign),
        size and the scores of :func:`metrics.score` in px of that size.

    Raises:
        FileNotFoundError: no prepared set, or no raw film.
        ValueError: the split has no film with a mask.
    """
    frame = read_manifest(data)
    frame = frame[frame["split"] != "unlabelled"]
    foreign = ~frame["source"].isin(segmenter.header["sources"])
    frame = frame[(frame["split"] == split) | foreign]
    own = {film.name: film for film in find_films(raw)} if raw else {}
    if frame.empty:
        raise ValueError(f"{data}: no film with a mask in its {split} split")
    rows = []
    bar = tqdm(total=len(frame), desc="evaluate", unit="film", disable=None)
    for films in _batches(frame.itertuples(), batch):
        heads = [film.source if film.source in segmenter.heads else segmenter.head for film in films]
        probs = segmenter.probabilities([read_image(film.image) for film in films], heads)
        for film, prob in zip(films, probs):
            truth = read_mask(film.mask)
            truth_at = {}
            if film.name in own and own[film.name].mask_files:
                truth = truth_at[0] = combined_mask(own[film.name], (film.height, film.width))
            truth_at |= {size: resize_mask(truth, size) for size in sizes}
            protocols = [split] * (film.split == split) + ["all"] * (film.source not in segmenter.header["sources"])
            for size, truth in truth_at.items():
                scores = score(segmenter.finish(prob, truth.shape), truth)
                rows += [{"name": film.name, "source": film.source, "protocol": p, "size": size, **scores} for p in protocols]
        bar.update(len(films))
    bar.close()
    return pd.DataFrame(rows).sort_values(["size", "protocol", "source", "name"], ignore_index=True)


def draw_overlay(image: np.ndarray, pred: np.ndarray, truth: np.ndarray | None = None) -> np.ndarray:
    """The film with the outline of the prediction (orange) and, if there is one, of the truth (blue).

    Args:
        image: ``uint8 (H, W)``.
        pred: ``uint8 (H, W)`` in {0, 1}.
        truth: the same.

    Returns:
        ``uint8 (H, W, 3)``, BGR.
    """
    canvas = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    width = max(1, round(min(image.shape) / 256))  # px: as thick on a 20-megapixel film as on a small one
    for mask, colour in ((truth, TRUTH_COLOUR), (pred, PRED_COLOUR)):
        if mask is not None:
            outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas


def _open_network(path: Path, backend: str, device: torch.device, *, bf16: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    if backend == "torch" and path.suffix == ".onnx":
        raise ValueError(f"{path}: PyTorch doesn't compute ONNX files: choose backend onnxruntime or openvino")
    if backend == "torch":
        return load_weights(path).to(device, memory_format=torch.channels_last)
    if device.type != "cpu":
        raise ValueError(f"backend {backend} is for the CPU, not for {device}: choose device auto or cpu")
    return open_graph(path.read_bytes() if path.suffix == ".onnx" else to_onnx(load_weights(path)), backend, bf16=bf16)


def _read_ahead(files: list[Path], names: list[str], pool: ThreadPoolExecutor, ahead: int, force: bool) -> Iterator[ReadFilm]:
    """Films in order, the next ones being decoded while the network works; never more than ``ahead`` in memory."""
    jobs = [pool.submit(read_checked, *item, force) for item in zip(files[:ahead], names)]
    for n in range(len(files)):
        film = jobs.pop(0).result()
        if n + ahead < len(files):
            jobs.append(pool.submit(read_checked, files[n + ahead], names[n + ahead], force))
        yield film


def read_checked(path: Path, name: str, force: bool = False) -> ReadFilm:
    """A film of any file, checked before it is segmented; never raises for what is in the file.

    Args:
        path: the file.
        name: by which the film goes in tables.
        force: what would be refused is read all the same, with the reasons as notes.
    """
    try:
        film = read_film(path, fix_polarity=False)
    except (ValueError, OSError, ImportError) as error:  # a folder may hold DICOM besides what needs no extra
        return ReadFilm(name, path, error=str(error))
    checked = check_film(film.image, film.colour)
    refused = f"{path}: refused: {'; '.join(checked.problems)}" if checked.problems and not force else ""
    spacing = film.spacing_mm and film.spacing_mm[::-1 if checked.turned % 180 else 1]
    # No colours: many films wait in memory.
    return ReadFilm(name, path, film.image, checked, refused, spacing, film.notes + checked.problems * force + checked.notes)


def _write_film(film: ReadFilm, mask: np.ndarray | None, out: Path, force: bool) -> tuple[dict[str, object], dict[str, float]]:
    """Rows of the predictions and, empty without a mask, of the measurements."""
    row = {"name": film.name, "path": str(film.path), "notes": "; ".join(film.notes), "error": film.error}
    if film.image is not None:
        row |= dict(zip(("height", "width"), film.image.shape))
    if mask is None:
        return row, {}
    lungs = check_lungs(mask)
    row["notes"] = "; ".join((*film.notes, *lungs))
    if film.checked.doubtful and lungs and not force:
        return {**row, "error": f"{film.path}: refused: {NO_CHEST}"}, {}
    lying = film.checked.undo(mask)
    paths = {kind: out / kind / f"{film.name}.png" for kind in ("masks", "overlays")}
    write_mask(paths["masks"], lying)
    write_image(paths["overlays"], draw_overlay(film.image, lying))
    row |= {"lung_px": int(mask.sum()), "lung_share": round(float(mask.mean()), 4),
            "mask": str(paths["masks"]), "overlay": str(paths["overlays"])}
    return row, measure(mask, film.spacing_mm)


def unique_names(files: list[Path]) -> list[str]:
    """Stems; films that share one are named by their whole path below the folder common to all."""
    twice = pd.Series([path.stem.lower() for path in files]).duplicated(keep=False)
    common = os.path.commonpath([path.absolute().parent for path in files]) if twice.any() else ""
    names = [re.sub(r"[/\\.]", "_", os.path.relpath(path, common)) if two else path.stem for path, two in zip(files, twice)]
    nth = pd.Series(names).str.lower().groupby(pd.Series(names).str.lower()).cumcount()  # a/b.png and a_b.png still meet
    return [f"{name}_{n + 1}" if n else name for name, n in zip(names, nth)]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
