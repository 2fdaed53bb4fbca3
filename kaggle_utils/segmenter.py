"""A trained U-Net with all that lies between a film of any size and its mask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from .data import normalise
from .export import open_graph, read_onnx_header, to_onnx
from .film import finish_mask
from .hardware import choose_device, choose_precision, keep_memory
from .image import resize_image
from .model import load_weights, read_header

DEFAULT_WEIGHTS = Path(__file__).with_name("weights") / "lungs.safetensors"


class LungSegmenter:
    """A trained U-Net that takes films of any size. On a CPU it calls :func:`hardware.keep_memory` for the process.

    Args:
        weights: a file of ``model.save_weights``, or of ``export.export_onnx`` for a backend other than torch; None is the
            one that ships with the package.
        device: auto, cpu, cuda, cuda:N or mps (a Mac's GPU); a backend other than torch has the CPU alone.
        flip: average the prediction with that of the mirrored film: twice the time for a little accuracy.
        clean: keep the two largest components and fill holes, see :func:`film.clean_mask`.
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
        self.version = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""  # told apart by their content
        self.header = read_onnx_header(path) if path.suffix == ".onnx" else read_header(path)
        missing = {"size", "sources"} - set(self.header)
        if missing:
            raise ValueError(f"{path}: no {' and no '.join(sorted(missing))} in the header, so films can't be given to it as in training")
        films, architecture = {"in_channels": 1, "dims": 2}, self.header["architecture"]
        other = {name: value for name, value in architecture.items() if films.get(name, value) != value}
        if other:
            raise ValueError(f"{path}: a network of {' and '.join(f'{name} {value}' for name, value in other.items())}, not one for films")
        self.quality = self.header.get("quality")  # the fit that quality.estimate_quality takes
        self.size = self.header["size"]  # px, the side of the square that the network was trained on
        self.device = choose_device("cpu" if device == "auto" and backend != "torch" else device)
        if self.device.type == "cpu":
            keep_memory()
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(choose_precision(self.device))
        self.model = _open_network(path, backend, self.device, bf16=self.dtype == torch.bfloat16, classes=architecture.get("classes", 1))
        self.flip, self.clean, self.threshold = flip, clean, threshold
        self.heads = self.header.get("heads") or [""]
        self.head = head or self.heads[0]
        if self.head not in self.heads:
            raise ValueError(f"{path}: no head {head!r}, it has {', '.join(filter(None, self.heads)) or 'a single one'}")

    @property
    def settings(self) -> dict[str, object]:
        """What decides the masks of a film."""
        return {"weights": self.version, "head": self.head, "flip": self.flip, "clean": self.clean, "threshold": self.threshold}

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
        return finish_mask(prob, shape, threshold=self.threshold, clean=self.clean)


def _open_network(path: Path, backend: str, device: torch.device, *, bf16: bool, classes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    if backend == "torch" and path.suffix == ".onnx":
        raise ValueError(f"{path}: PyTorch doesn't compute ONNX files: choose backend onnxruntime or openvino")
    if backend == "torch":
        return load_weights(path).to(device, memory_format=torch.channels_last)
    if device.type != "cpu":
        raise ValueError(f"backend {backend} is for the CPU, not for {device}: choose device auto or cpu")
    if path.suffix != ".onnx":
        return open_graph(to_onnx(load_weights(path)), backend, bf16=bf16)
    try:
        run = open_graph(path.read_bytes(), backend, bf16=bf16)
        found = run(torch.zeros(1, 1, 33, 37)).shape[1]
    except Exception as error:  # each runtime has its own for a graph that it can't compute
        if isinstance(error, ImportError):
            raise
        raise ValueError(f"{path}: {backend} can't compute it ({str(error).strip().splitlines()[0][:300]}): export it again") from None
    if found != classes:
        raise ValueError(f"{path}: its header names {classes} classes, its graph gives {found}: export it again")
    return run
