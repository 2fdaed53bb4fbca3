"""Radiographs of nobody: an active appearance model of the frontal chest film, sampled.

The model is the mean and the principal modes of the lungs' shape and of the film's texture in the frame of the mean
shape, with one Gaussian of all their scores for normal films and one for tuberculosis. :mod:`appearance` fits it,
:mod:`acquire` takes the film. A sample's masks are exact: they are the outline that the film was drawn around.

Source: Cootes, Edwards & Taylor 2001, Active appearance models.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from kaggle_utils import acquire as acquisition
from kaggle_utils import appearance, image, outline

ASSET = Path(__file__).with_name("assets") / "appearance.npz"
VERSION = 1
_MODES = ("shape_modes", "flow_modes", "global_modes", "linked_modes", "window_modes")  # stored as int8
_PARTS = ("shape", "pose", "tone", "flow", "global", "linked")
_SPREAD = {"shape": 1.15, "pose": 1.1}  # sampled wider than fitted: the films to come are more varied than 479
_LIMIT = 2.5  # sd; a film further out in one number than that is a monster, not a patient


@dataclass(frozen=True)
class Film:
    """A radiograph that shows nobody.

    Attributes:
        image: ``uint8 (H, W)``.
        left, right: masks of the **patient's** left and right lung, ``uint8 (H, W)`` in {0, 1}, never overlapping.
        tb: 0 normal, 1 tuberculosis.
        name: unique for a seed and an index.
        outline: ``float64 (2, P, 2)``, right lung first, x and y in units of the film's side.
    """

    image: np.ndarray
    left: np.ndarray
    right: np.ndarray
    tb: int
    name: str
    outline: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Both lungs, ``uint8 (H, W)`` in {0, 1}."""
        return self.left | self.right


class AppearanceModel:
    """Shape and texture modes of the frontal chest film and the class-conditional Gaussians of their scores.

    Attributes:
        arrays: every part by name. ``shape_mean (2, POINTS, 2)`` and ``shape_modes`` are the shape model, ``frame``
            the mean shape in the mean frame, ``texture_mean (C, C)`` and the other modes the texture model.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        ends = np.cumsum(arrays["sizes"])
        self._slices = {name: slice(end - size, end) for name, end, size in
                        zip(_PARTS, ends, arrays["sizes"], strict=True)}
        at = arrays["window_at"]
        self._windows = [(row, column, np.flatnonzero((at == (row, column)).all(1))) for row, column in
                         np.unique(at, axis=0)]
        self._fade = appearance.window_fade()
        self._free = appearance.freedom(arrays["frame"])
        self._noise_sd = cv2.resize(arrays["noise_sd"], (appearance.SIZE,) * 2, interpolation=cv2.INTER_LINEAR)

    @classmethod
    def fit(cls, images, masks, tb, **modes) -> AppearanceModel:
        """Fits a model, see :func:`appearance.fit_arrays` for the arguments."""
        return cls(appearance.fit_arrays(images, masks, tb, **modes))

    def save(self, path: str | Path) -> None:
        """Writes the model: modes as int8 with a scale each, the rest as 16-bit or 32-bit floats."""
        packed = {"version": np.array(VERSION)}
        for name, array in self.arrays.items():
            if name in _MODES:
                scale = np.abs(array).max(1, keepdims=True) / 127
                packed[name] = np.round(array / scale).astype(np.int8)
                packed[f"{name}_scale"] = scale.astype(np.float32)
            elif name in ("texture_mean", "class_factor"):
                packed[name] = array.astype(np.float16)
            else:
                packed[name] = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int16)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **packed)
        image.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path | None = None) -> AppearanceModel:
        """Reads a model, the shipped one by default.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is truncated, not a model or of another version.
        """
        path = Path(path or ASSET)
        advice = "get it back with a fresh checkout or `python -m kaggle_utils fit-synth --data segmentation`"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no appearance model here; {advice}")
        try:
            with np.load(path, allow_pickle=False) as file:
                packed = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{path}: not a whole appearance model ({error}); {advice}") from None
        found = packed.pop("version", None)
        if found is None or int(found) != VERSION:
            raise ValueError(f"{path}: appearance model of version {found}, this code reads {VERSION}; {advice}")
        for name in _MODES:
            packed[name] = packed[name].astype(np.float32) * packed.pop(f"{name}_scale")
        return cls({k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in packed.items()})

    def sample(self, n: int, seed: int, *, size: int = 256, tb: float = 0.5, acquire: bool = True) -> list[Film]:
        """Draws n films, see :meth:`stream`."""
        return list(self.stream(n, seed, size=size, tb=tb, acquire=acquire))

    def stream(self, n: int, seed: int, *, size: int = 256, tb: float = 0.5, acquire: bool = True) -> Iterator[Film]:
        """Draws films one at a time; film i of a seed is the same whatever n is.

        Args:
            n: number of films.
            seed: of the draw, >= 0.
            size: px a side.
            tb: share of tuberculosis, 0…1.
            acquire: with position, exposure, grain, borders and letters as in practice, or as the model draws it.
        """
        for index in range(n):
            yield self.film(seed, index, size=size, tb=tb, acquire=acquire)

    def film(self, seed: int, index: int, *, size: int = 256, tb: float = 0.5, acquire: bool = True) -> Film:
        """Draws film ``index`` of a seed alone, for loaders that want any film at any time."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
        label = int(rng.random() < tb)
        shape, code = self._draw(label, rng)
        gray = self._render(shape, code, rng, size)
        lines = np.stack([outline.smooth(side) for side in shape])
        if acquire:
            taken = acquisition.acquire(gray, lines, rng)
            gray, lines = taken["image"], taken["outlines"]
        right, left = (outline.fill(line, size) for line in lines)
        pixels = np.clip(np.rint(gray), 0, 255).astype(np.uint8)
        return Film(pixels, left & (1 - right), right, label, f"synthetic_{seed}_{index:05d}_{label}", lines)

    def _draw(self, label: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draws scores until the lungs lie apart and on the film (nearly always at once)."""
        a = self.arrays
        for _ in range(50):
            draw = np.clip(rng.standard_normal(len(a["code_sd"])), -_LIMIT, _LIMIT)
            spread = a["class_factor"][label] @ draw
            for name, factor in _SPREAD.items():
                spread[self._slices[name]] *= factor
            code = (a["class_mean"][label] + spread) * a["code_sd"]
            parts = {name: code[where] for name, where in self._slices.items()}
            shape = a["shape_mean"] + (a["shape_centre"] + parts["shape"] @ a["shape_modes"]).reshape(2, -1, 2)
            log_scale, turn, x, y = parts["pose"]
            shape = outline.move(shape, np.exp(log_scale + 1j * turn), complex(x, y))
            apart = shape[1, :, 0].min() - shape[0, :, 0].max()
            if shape.min() > 0.005 and shape.max() < 0.995 and apart > 0.005:
                return shape, parts
        raise ValueError("50 draws in a row gave lungs that overlap or leave the film: fit the model again")

    def _texture(self, code: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        a, side = self.arrays, appearance.SIZE
        half = (code["global"].astype(np.float32) @ a["global_modes"]).reshape(side // 2, side // 2)
        texture = a["texture_mean"] + cv2.resize(half, (side, side), interpolation=cv2.INTER_CUBIC)
        scores = code["linked"] @ a["linked_modes"] + rng.standard_normal(len(a["window_sd"])) * a["unlinked_sd"]
        scores = (scores * a["window_sd"]).astype(np.float32)
        step, window = appearance.STEP, appearance.WINDOW
        total = np.zeros((side + 2 * step,) * 2, np.float32)
        for row, column, which in self._windows:
            patch = (scores[which] @ a["window_modes"][which]).reshape(window, window)
            total[row : row + window, column : column + window] += patch * self._fade
        noise = appearance.colour(rng.standard_normal((side, side), np.float32), a["noise_spectrum"])
        return texture + total[step:-step, step:-step] + noise * self._noise_sd

    def _render(self, shape, code, rng, size: int) -> np.ndarray:
        """The film in gray levels, ``float32 (size, size)``, around the outline ``shape``."""
        a, side = self.arrays, appearance.SIZE
        texture = self._texture(code, rng)
        flow = (a["flow_centre"] + code["flow"] @ a["flow_modes"]).astype(np.float32)
        flow = cv2.resize(flow.reshape(appearance.FLOW_NODES, appearance.FLOW_NODES, 2), (side, side),
                          interpolation=cv2.INTER_CUBIC) * self._free
        at = outline.warp_field(shape, a["frame"], size) * side - 0.5
        start = at
        for _ in range(3):  # the flow is given where it ends; going back is a fixed point
            at = start - cv2.remap(flow, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        density = cv2.remap(texture, at[..., 0], at[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        gray = np.arange(256, dtype=np.float32)
        curve = appearance.tone_curve(appearance.decode_tone(code["tone"]))(gray)
        return np.interp(density, curve, gray).astype(np.float32)
