"""Synthetic radiographs: an active appearance model of the frontal chest X-ray, sampled.

The model is the mean and the principal modes of the lungs' shape and of the film's texture in the frame of the mean
shape, with one Gaussian of all their scores for normal films and one for tuberculosis. :mod:`synthetic.fit` fits it,
:mod:`synthetic.acquire` takes the film. A sample's masks are exact: the outline that the film was drawn around.

Source: Cootes, Edwards & Taylor 2001, Active appearance models.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import cdist
from tqdm import tqdm

from .. import image
from ..files import manifest_path
from ..quality import outline
from . import acquire as acquisition
from . import fit as appearance
from .fit import FitConfig

ASSET = Path(__file__).parents[1] / "assets" / "appearance.npz"
VERSION = 1
_MONTGOMERY = "pulmonary-chest-xray-abnormalities/Montgomery/MontgomerySet"  # folders of the raw sets
_SHENZHEN = "pulmonary-chest-xray-abnormalities/ChinaSet_AllFiles/ChinaSet_AllFiles"
_SHENZHEN_MASKS = "shcxr-lung-mask/mask/mask"
_MODES = ("shape_modes", "flow_modes", "global_modes", "linked_modes", "window_modes")  # stored as int8
_PARTS = ("shape", "pose", "tone", "flow", "global", "linked")
_SPREAD = {"shape": 1.05, "pose": 1.0, "tone": 0.85, "global": 0.9}  # of the fitted sd, chosen by eye
_NOISE = 0.5  # of the unexplained sd: vessels and bone texture are patterns, as noise they would look like sand
_LIMIT = 2.5  # sd; a film further out in one number than that is a monster, not a patient


@dataclass(frozen=True)
class SyntheticFilm:
    """A synthetic radiograph, its lungs and its label.

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
        self._slices = dict(zip(_PARTS, map(slice, ends - arrays["sizes"], ends), strict=True))
        self._least_scale = abs(outline.similarity(arrays["shape_mean"], arrays["frame"])[0])
        self._windows = list(appearance.by_window(arrays["window_at"]))
        edge = np.clip(np.arange(appearance.SIZE) / 12, 0, 1).astype(np.float32)
        edge = np.minimum(edge, edge[::-1])
        self._sharp = np.minimum.outer(edge, edge)
        self._free = appearance.freedom(arrays["frame"])
        self._noise_sd = cv2.resize(arrays["noise_sd"], (appearance.SIZE,) * 2, interpolation=cv2.INTER_LINEAR)

    def save(self, path: str | Path) -> None:
        """Writes the model: modes as int8 with a scale each, the rest as 16-bit or 32-bit floats."""
        packed: dict[str, Any] = {"version": np.array(VERSION)}
        for name, array in self.arrays.items():
            if name in _MODES:
                scale = np.abs(array).max(1, keepdims=True) / 127
                packed[name] = np.round(array / scale).astype(np.int8)
                packed[f"{name}_scale"] = scale.astype(np.float32)
            elif name in ("texture_mean", "class_factor"):
                packed[name] = array.astype(np.float16)
            else:
                packed[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int16)
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
                packed = dict(file)
            if packed.pop("version") != VERSION:
                raise ValueError("another version")
            for name in _MODES:
                packed[name] = packed[name] * packed.pop(f"{name}_scale")
            halves = {name: array for name, array in packed.items() if array.dtype == np.float16}
            return cls(packed | {name: array.astype(np.float32) for name, array in halves.items()})
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
            reason = f"not a whole appearance model of version {VERSION} ({type(error).__name__}: {error})"
            raise ValueError(f"{path}: {reason}; {advice}") from None

    def sample(self, n: int, seed: int, **options: Any) -> list[SyntheticFilm]:
        """Draws n films, see :meth:`stream`."""
        return list(self.stream(n, seed, **options))

    def stream(self, n: int, seed: int, **options: Any) -> Iterator[SyntheticFilm]:
        """Draws n films of a seed one at a time, with the options of :meth:`film`; film i is the same whatever n is."""
        for index in range(n):
            yield self.film(seed, index, **options)

    def film(self, seed: int, index: int, *, size: int = 256, tb: float = 0.5, acquire: bool = True) -> SyntheticFilm:
        """Draws film ``index`` of a seed alone, for loaders that want any film at any time.

        Args:
            seed: of the draw, >= 0.
            index: of the film, >= 0.
            size: px a side.
            tb: share of tuberculosis, 0…1.
            acquire: with position, exposure, grain, borders and letters as in practice, or as the model draws it.
        """
        rng = np.random.default_rng([seed, index])
        label = int(rng.random() < tb)
        shape, code = self._draw(label, rng)
        # The patient is placed before the film is drawn: moving a finished one would blur it.
        placed = acquisition.place(shape, rng) if acquire else acquisition.Placed(shape)
        gray = self._render(placed.outlines, code, rng, size)
        if acquire:
            gray = acquisition.take(gray, placed, rng)
        lines = np.stack([outline.smooth(side) for side in placed.outlines])
        right, left = (outline.fill(line, size) for line in lines)
        pixels = np.clip(np.rint(gray), 0, 255).astype(np.uint8)
        name = f"synthetic_{seed}_{index:05d}_{label}"
        return SyntheticFilm(pixels, left & (1 - right), right, label, name, lines)

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
            # Further away than this, the film would show what lies outside the mean frame.
            scale = max(np.exp(log_scale), self._least_scale)
            shape = outline.move(shape, scale * np.exp(1j * turn), complex(x, y))
            apart = shape[1, :, 0].min() - shape[0, :, 0].max()
            on_film = shape.min() > 0.005 and shape.max() < 0.995
            if on_film and apart > 0.005 and all(map(outline.is_simple, shape)):
                return shape, parts
        raise ValueError("50 draws in a row gave lungs that overlap or leave the film: fit the model again")

    def _texture(self, code: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        a, side = self.arrays, appearance.SIZE
        half = (code["global"].astype(np.float32) @ a["global_modes"]).reshape(side // 2, side // 2)
        texture = a["texture_mean"] + cv2.resize(half, (side, side), interpolation=cv2.INTER_CUBIC)
        scores = code["linked"] @ a["linked_modes"] + rng.standard_normal(len(a["window_sd"])) * a["unlinked_sd"]
        scores = (scores * a["window_sd"]).astype(np.float32)
        detail = appearance.window_sum(scores[None], a["window_modes"], self._windows)[0]
        noise = appearance.colour(rng.standard_normal((side, side), np.float32), a["noise_spectrum"])
        texture = texture + detail + noise * (_NOISE * self._noise_sd)
        # Beyond the mean frame its last pixels go on for ever: as streaks, if they were sharp.
        return self._sharp * texture + (1 - self._sharp) * cv2.GaussianBlur(texture, (0, 0), 12)

    def _render(
        self, shape: np.ndarray, code: dict[str, np.ndarray], rng: np.random.Generator, size: int
    ) -> np.ndarray:
        """The film in gray levels, ``float32 (size, size)``, around the outline ``shape``."""
        a, side = self.arrays, appearance.SIZE
        texture = self._texture(code, rng)
        nodes = (a["flow_centre"] + code["flow"] @ a["flow_modes"]).astype(np.float32)
        nodes = nodes.reshape(appearance.FLOW_NODES, appearance.FLOW_NODES, 2)
        flow = cv2.resize(nodes, (side, side), interpolation=cv2.INTER_CUBIC) * self._free
        at = outline.warp_field(shape, a["frame"], size) * side - 0.5
        start = at
        for _ in range(3):  # the flow is given where it ends; going back is a fixed point
            at = start - cv2.remap(flow, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        # Not cv2.remap: its 1/32 px steps show on edges, and differ between OpenCV's versions.
        density = map_coordinates(texture, (at[..., 1], at[..., 0]), order=3, mode="nearest", output=np.float32)
        gray = np.arange(400, dtype=np.float32)
        curve = appearance.tone_curve(appearance.decode_tone(code["tone"]))(gray)
        gray = np.interp(density, curve, gray).astype(np.float32)
        # Film has a shoulder: without it every dense abdomen would be cut off at white.
        return np.where(gray > 190, 190 + 65 * np.tanh((gray - 190) / 65), gray)


def fit_prepared(root: str | Path, config: FitConfig | None = None) -> AppearanceModel:
    """Fits a model on the training films of Montgomery and Shenzhen in a prepared folder, and on no other.

    Args:
        root: a prepared set: ``manifest.csv`` and ``train/{image,mask}/NAME.png``.
        config: numbers of modes; None is the shipped model's.

    Raises:
        FileNotFoundError: the manifest or one of its films is missing.
        ValueError: fewer than 12 films have usable lungs.
    """
    films = _training_films(root)
    arrays = appearance.fit_arrays(
        list(films["image"]), list(films["mask"]), films["tb"].to_numpy(int), config or FitConfig()
    )
    return AppearanceModel(arrays)


def _training_films(root: str | Path) -> pd.DataFrame:
    """Rows of the manifest, with the pixels of image and mask."""
    from ..splits import loose_masks, published_split
    from ..tables import read_csv

    table = read_csv(manifest_path(root))
    # By the published lists, whatever the set's own split: no film of a validation or test list may get in.
    table = table[(published_split(table) == "train") & table["source"].isin(["montgomery", "shenzhen"])]
    table = table[~table["name"].isin(loose_masks()["name"])].sort_values("name")
    images, masks = [], []
    for split, name in zip(table["split"], tqdm(table["name"], desc="read", disable=None), strict=True):
        images.append(image.read_image(Path(root, split, "image", f"{name}.png")))
        masks.append(image.read_mask(Path(root, split, "mask", f"{name}.png")))
    return table.assign(image=images, mask=masks)


def check_privacy(model: AppearanceModel, root: str | Path, *, n: int = 500, seed: int = 0) -> dict[str, Any]:
    """Compares samples with the films that the model was fitted on.

    Films are compared in the mean frame, so that neither position nor shape hides a likeness: relative density in the
    box around both lungs at 64x64, less its mean, over its sd. The distance is the rms difference: 0 is the same
    film, 1.4 two unrelated ones.

    Args:
        model: fitted on ``root``.
        root: the prepared set, see :func:`fit_prepared`.
        n: number of samples, drawn before acquisition.
        seed: of the draw.

    Returns:
        ``train_to_train`` and ``sample_to_train``, each the min, 1st and 5th percentile and median of the distance to
        the nearest training film (another one); ``mode_share``, for each kind of mode the largest part of one mode's
        squared scores that is one film's; ``films``, ``samples``; and ``passed``: no sample is nearer to a film than
        the two most alike films are to each other, and no share reaches a half.
    """
    from ..splits import SAME_PATIENT

    films, frame = _training_films(root), model.arrays["frame"]
    again = {name for _, *others in SAME_PATIENT for name in others}  # one person's films may well be alike
    films = films[~films["name"].isin(again)]
    drawn = model.sample(n, seed, size=2 * appearance.SIZE, acquire=False)
    train = appearance.fingerprints(list(films["image"]), list(films["mask"]), frame)
    samples = appearance.fingerprints([film.image for film in drawn], [film.mask for film in drawn], frame)
    among = cdist(train, train)
    np.fill_diagonal(among, np.inf)
    units = np.sqrt(train.shape[1])
    near = {"train_to_train": among.min(1) / units, "sample_to_train": cdist(samples, train).min(1) / units}
    quantiles = {name: np.percentile(distances, (0, 1, 5, 50)).round(4) for name, distances in near.items()}
    kinds = ("shape", "flow", "global", "linked", "window")
    shares = dict(zip(kinds, model.arrays["share"].astype(float).round(3).tolist(), strict=True))
    far_enough = near["sample_to_train"].min() >= near["train_to_train"].min()
    return {
        **{name: dict(zip(("min", "p1", "p5", "median"), found.tolist())) for name, found in quantiles.items()},
        "mode_share": shares,
        "films": len(train),
        "samples": len(samples),
        "passed": bool(far_enough and max(shares.values()) < 0.5),
    }


def check_replaceable(path: str | Path) -> None:
    """Raises ValueError where there is a file that is no model of this version."""
    if Path(path).exists():
        try:
            AppearanceModel.load(path)
        except ValueError:
            message = f"{path}: it is there, and no model of synthetic radiographs: choose another file to write"
            raise ValueError(message) from None


def write_prepared(folder: Path, n: int, seed: int, *, model: AppearanceModel | None = None, size: int = 512) -> Path:
    """Draws and prepares a set below a folder, if it is not there; nine films in ten have a mask. Returns its folder.

    Args:
        folder: gets ``raw`` and ``segmentation``.
        n, seed, model: see :func:`write_raw`.
        size: px a side, as drawn and as prepared.
    """
    from ..prep import prepare

    data = folder / "segmentation"
    if not (data / "manifest.csv").exists():
        write_raw(folder / "raw", n, seed, model=model, size=size)
        prepare(folder / "raw", data, size=size)
    return data


def write_raw(out: str | Path, n: int, seed: int, *, model: AppearanceModel | None = None, size: int = 512) -> None:
    """Writes samples in the raw layouts of Montgomery and Shenzhen, so that preparation has its usual work to do.

    One film in three goes to Montgomery, with a mask for each lung; one Shenzhen film in seven has no mask. Numbers
    start at 9001, which no film of the public sets has.

    Args:
        out: folder to write below; made where it is missing.
        n: number of films.
        seed: of the draw.
        model: what to draw from, the shipped one by default.
        size: px a side.

    Raises:
        OSError: the folder can't be written.
    """
    model = model or AppearanceModel.load()
    out = Path(out)
    montgomery, shenzhen, masks = (out / folder for folder in (_MONTGOMERY, _SHENZHEN, _SHENZHEN_MASKS))
    made = ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask", "ClinicalReadings")
    for folder in (*map(montgomery.joinpath, made), shenzhen / made[0], shenzhen / made[-1], masks):
        folder.mkdir(parents=True, exist_ok=True)
    for index, film in enumerate(tqdm(model.stream(n, seed, size=size), total=n, desc="synth", disable=None)):
        sex, age, finding = _patient(seed, index, film.tb)
        number = f"{9001 + index}_{film.tb}"
        if index % 3 == 0:
            folder, name = montgomery, f"MCUCXR_{number}"
            text = f"Patient's Sex: {sex[0].upper()}\nPatient's Age: {age:03d}Y\n{finding}\n"
            image.write_mask(folder / "ManualMask/leftMask" / f"{name}.png", film.left)
            image.write_mask(folder / "ManualMask/rightMask" / f"{name}.png", film.right)
        else:
            folder, name, text = shenzhen, f"CHNCXR_{number}", f"{sex} {age}yrs\n{finding}\n"
            if index % 21 not in (4, 14):  # two of the 14 Shenzhen films in 21
                image.write_mask(masks / f"{name}_mask.png", film.mask)
        image.write_image(folder / "CXR_png" / f"{name}.png", film.image)
        image.write_bytes(folder / "ClinicalReadings" / f"{name}.txt", text.encode())


def _patient(seed: int, index: int, tb: int) -> tuple[str, int, str]:
    """Sex, age in years and finding."""
    rng = np.random.default_rng([seed, index, 1])
    sex = "female" if rng.random() < 0.4 else "male"
    age = int(np.clip(rng.normal(42, 15), 16, 89))
    return sex, age, "bilateral pulmonary tuberculosis" if tb else "normal"
