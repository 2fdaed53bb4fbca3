"""Fits the appearance model of :mod:`synthetic.model`: films with lung masks in, an array per part of the model out.

Three changes of frame make films comparable before anything is averaged: a tone curve (gray to relative density), a
thin-plate warp of the lungs to the mean shape, and a dense flow that brings ribs, clavicles and heart on each other.
What is left is texture: global modes at half resolution and, for the detail above them, modes of overlapping windows.
N counts films, C is the mean frame's side in px, K counts modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from scipy import ndimage
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

from ..quality import outline

SIZE = 256  # px a side of the mean frame
MARGIN = 1.16  # the mean frame shows this much more than the mean film, for films taken from further away
TONES = (0.10, 0.35, 0.75)  # relative density of: the darkest 2 %, the median of the lungs, that of the mediastinum
WINDOW, STEP = 64, 32  # px; windows overlap by half, so that their fades add up to one
FLOW_NODES = 33
MAX_SHARE = 0.2  # a window's mode with more of its squared scores in one film is that film's detail, and left out


@dataclass(frozen=True)
class FitConfig:
    """How many modes of each kind are kept, and which films are."""

    shape: int = 20
    flow: int = 40
    texture: int = 100  # of the whole frame, at half resolution
    windows: int = 860  # of all windows together; this number makes the file's size
    linked: int = 110  # of the windows' scores together: what the detail of distant windows has in common
    max_spread: float = 1.6  # sd, rms over shape modes: beyond are masks with half a lung out or the heart in


def fit_arrays(
    images: list[np.ndarray], masks: list[np.ndarray], tb: np.ndarray, config: FitConfig = FitConfig()
) -> dict[str, np.ndarray]:
    """Fits every part of the model.

    Args:
        images: N films ``uint8 (H, H)``.
        masks: N masks ``uint8 (H, H)`` in {0, 1}, both lungs.
        tb: ``(N,)`` 0 or 1.
        config: numbers of modes.

    Returns:
        The arrays of :class:`synthetic.AppearanceModel`, by name.

    Raises:
        ValueError: fewer than 12 films have two lungs.
    """
    shapes, kept = _landmarks(masks)
    if len(kept) < 12:
        raise ValueError(f"{len(kept)} of {len(masks)} masks have two lungs, a model needs at least 12 films")
    usual = _spread(shapes, config.shape) < config.max_spread
    tqdm.write(f"{len(masks) - usual.sum()} of {len(masks)} films left out: no two lungs, or an odd outline")
    shapes, kept = shapes[usual], kept[usual]
    aligned = outline.align(shapes)
    frame = _mean_frame(aligned["mean"], aligned["pose"])
    tones, density, valid = _mean_frame_films([images[k] for k in kept], shapes, frame)
    density, flows = register(complete(density, valid), frame)
    return {"frame": frame, **fit_modes(aligned, tones, density, flows, np.asarray(tb)[kept], config)}


def fit_modes(
    aligned: dict[str, np.ndarray],
    tones: np.ndarray,
    density: np.ndarray,
    flows: np.ndarray,
    tb: np.ndarray,
    config: FitConfig,
) -> dict[str, np.ndarray]:
    """Principal modes of aligned shapes, flows and registered textures, and the Gaussians of their scores.

    Args:
        aligned: of :func:`quality.outline.align`.
        tones: ``(N, 3)``, of :func:`encode_tone`.
        density, flows: of :func:`register`.
        tb: ``(N,)`` 0 or 1.
        config: numbers of modes.
    """
    mean = density.mean(0)
    shape = pca(aligned["aligned"] - aligned["mean"], config.shape)
    flow = pca(flows, config.flow)
    coarse, detail = _coarse_modes(density - mean, config.texture)
    windows = window_pca(detail, config.windows)
    noise = detail - window_sum(windows["scores"], windows["modes"], by_window(windows["at"]))
    scores = windows["scores"] / windows["sd"]
    linked = pca(scores, config.linked)
    codes = [shape["scores"], aligned["pose"], tones, flow["scores"], coarse["scores"], linked["scores"]]
    return {
        "shape_mean": aligned["mean"],
        "shape_centre": shape["mean"],
        "flow_centre": flow["mean"],
        "texture_mean": mean,
        "shape_modes": shape["modes"],
        "flow_modes": flow["modes"],
        "global_modes": coarse["modes"],
        "linked_modes": linked["modes"],
        "window_at": windows["at"],
        "window_modes": windows["modes"],
        "window_sd": windows["sd"],
        "unlinked_sd": (scores - linked["scores"] @ linked["modes"]).std(0),
        "noise_sd": _resize([np.sqrt(_blur(noise.var(0), 4))], 64)[0],
        "noise_spectrum": _spectrum(noise),
        **_classes(np.hstack(codes), tb),
        "sizes": np.array([code.shape[1] for code in codes]),
        "share": np.array([_share(part["scores"]) for part in (shape, flow, coarse, linked, windows)]),
        "films": np.array(len(tb)),
    }


def _coarse_modes(textures: np.ndarray, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Modes of whole textures ``(N, C, C)`` at half resolution, and the detail that these don't explain, as large."""
    half = SIZE // 2
    coarse = pca(_resize(textures, half), count)
    explained = (coarse["scores"] @ coarse["modes"]).reshape(-1, half, half)
    return coarse, textures - _resize(explained, SIZE)


def _landmarks(masks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks ``(K, 2, POINTS, 2)`` of the masks that have two lungs, and which masks these are."""
    found = {k: shape for k, mask in enumerate(masks) if (shape := outline.landmarks(mask)) is not None}
    return np.array(list(found.values())), np.array(list(found))


def _spread(shapes: np.ndarray, modes: int) -> np.ndarray:
    """How unusual each shape is: the rms of its scores, in sd."""
    fitted = outline.align(shapes)
    scores = pca(fitted["aligned"] - fitted["mean"], min(modes, len(shapes) // 2))["scores"]
    return np.sqrt(((scores / scores.std(0)) ** 2).mean(1))


def _mean_frame(mean: np.ndarray, pose: np.ndarray) -> np.ndarray:
    scale, _, x, y = pose.mean(0)
    return (mean * np.exp(scale) + (x - 0.5, y - 0.5)) / MARGIN + 0.5


def _mean_frame_films(
    images: Sequence[np.ndarray], shapes: np.ndarray, frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Films in the mean frame: their tones ``(N, 3)``, densities and where they show a patient, ``(N, C, C)``."""
    tones, density, valid = [], [], []
    between, lungs = _mediastinum(frame), _lungs(frame, SIZE) > 0
    for image, shape in tqdm(zip(images, shapes, strict=True), total=len(images), desc="warp", disable=None):
        field = outline.warp_field(frame, shape, SIZE)
        at = field * len(image) - 0.5
        usable = usable_area(image, shape).astype(np.float32)
        warped = _remap(_blur(image, 0.35 * len(image) / SIZE), at)  # against moiré: the frame is coarser
        seen = (_remap(usable, at) > 0.99) & (field > 0).all(-1) & (field < 1).all(-1)
        tone = measure_tone(warped, seen, lungs, between)
        tones.append(encode_tone(tone))
        density.append(tone_curve(tone)(np.clip(warped, 0, 255)))
        valid.append(seen)
    return np.array(tones), np.array(density, np.float32), np.array(valid)


def _lungs(shape: np.ndarray, size: int) -> np.ndarray:
    """The area of both lungs, ``uint8 (size, size)`` in {0, 1}."""
    return outline.fill(shape[0], size) | outline.fill(shape[1], size)


def _mediastinum(frame: np.ndarray) -> np.ndarray:
    """The area between the lungs, ``bool (C, C)``: what its convex hull adds to them, less the diaphragm's part."""
    hull = cv2.convexHull(frame.reshape(-1, 2).astype(np.float32))[:, 0]
    area = outline.fill(hull, SIZE) > _lungs(frame, SIZE)
    right, left = frame[0, :, 0].max(), frame[1, :, 0].min()
    columns = (np.arange(SIZE) + 0.5) / SIZE
    return area & (abs(columns - (right + left) / 2) < max((left - right) / 2, 0.03) + 0.02)


def usable_area(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Film that shows a patient: no collimated border, no printed letters.

    Letters differ in place and size from film to film: averaged, they would come back as ghosts of print.

    Returns:
        ``bool (H, W)``.
    """
    size = len(image)
    black = cv2.morphologyEx((image < 7).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    usable = np.ones(image.shape, bool)
    for turns in range(4):  # a view of each edge as the upper one
        dark = np.rot90(black, turns).mean(1) > 0.75
        if dark[0] and not dark.all():
            np.rot90(usable, turns)[: np.argmin(dark) + int(0.03 * size)] = False
    bright = cv2.morphologyEx(image, cv2.MORPH_TOPHAT, np.ones((size // 10, size // 10), np.uint8)) > 60
    around = np.ones((size // 32, size // 32), np.uint8)
    near = cv2.dilate(_lungs(shape, size), around) > 0
    top = np.arange(size)[:, None] < size * float(np.quantile(shape[..., 1], 0.35))
    letters = cv2.dilate((bright & top & ~near).astype(np.uint8), around) > 0
    return usable & ~letters


def measure_tone(film: np.ndarray, seen: np.ndarray, lungs: np.ndarray, between: np.ndarray) -> np.ndarray:
    """The three gray levels that :data:`TONES` names, increasing, from a film in the mean frame."""
    low, lung = np.percentile(film[seen], 2), np.median(film[seen & lungs])
    lung = max(lung, low + 5)
    return np.array([low, lung, max(np.median(film[seen & between]), lung + 15)])


def encode_tone(tone: np.ndarray) -> np.ndarray:
    """Gray levels to unbounded numbers whose Gaussian draws are increasing again."""
    return np.r_[tone[0] / 20, np.log(np.diff(tone))]


def decode_tone(code: np.ndarray) -> np.ndarray:
    """The inverse of :func:`encode_tone`, squeezed into 0…255."""
    tone = np.cumsum(np.r_[max(code[0] * 20, 0), np.exp(np.clip(code[1:], 1.6, 5.2))])
    return tone * min(1.0, 225 / tone[-1])


def tone_curve(tone: np.ndarray) -> PchipInterpolator:
    """Gray to density: monotone through the three anchors, straight on beyond them."""
    slope = np.diff(TONES) / np.diff(tone)
    x = np.r_[tone[0] - 300, tone, tone[-1] + 400]
    y = np.r_[TONES[0] - 300 * min(slope), TONES, TONES[-1] + 400 * slope.mean()]
    return PchipInterpolator(x, y)


def complete(density: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fills what a film doesn't show from the modes of those that do.

    Works at a quarter of the resolution, because what lies outside a film needs no detail.

    Source: Roweis 1998, EM algorithms for PCA and SPCA, section 4 (missing data).
    """
    count, side = len(density), SIZE // 4
    small = _resize(density, side).reshape(count, -1)
    seen = _resize(valid, side).reshape(count, -1) > 0.99
    times = seen.sum(0)
    mean = np.where(times > 0, (small * seen).sum(0) / np.maximum(times, 1), small.mean())
    filled = np.where(seen, small, mean)
    for _ in range(12):
        part = pca(filled, min(30, count // 3))
        filled = np.where(seen, small, part["mean"] + part["scores"] @ part["modes"])
    low = _resize(filled.reshape(count, side, side), SIZE)
    soft = np.stack([_blur(cv2.erode(v.astype(np.float32), np.ones((5, 5))), 1.5) for v in valid])
    return soft * density + (1 - soft) * low


def register(density: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brings what the outlines don't pin down (ribs, clavicles, heart, shoulders) onto a common template.

    The flow fades to zero on the outlines, so that the masks stay exact.

    Returns:
        The registered densities ``(N, C, C)`` and their flows ``(N, FLOW_NODES, FLOW_NODES, 2)`` in px.

    Source: Kroeger et al. 2016, Fast optical flow using dense inverse search; Guimond et al. 2000, Average brain
    models (the template is the mean of the registered films, moved by the mean flow).
    """
    free = freedom(frame)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = np.zeros((len(density), SIZE, SIZE, 2), np.float32)
    template = density.mean(0)
    details = [_detail(film) for film in density]
    for _ in tqdm(range(5), desc="register", disable=None):
        target = _detail(template)
        for k, detail in enumerate(details):
            flow = dis.calc(target, detail, None)  # type: ignore[call-overload]  # None: a new array
            flows[k] = free * _blur(np.clip(flow, -10, 10), 4)
        flows -= flows.mean(0)
        template = _shift(density, flows).mean(0)
    nodes = _resize(flows, FLOW_NODES)
    return _shift(density, free * _resize(nodes, SIZE)), nodes


def freedom(frame: np.ndarray) -> np.ndarray:
    """How far a flow may go, ``float32 (C, C, 1)``: 0 on the outlines, 1 from 15 px away."""
    edge = np.ones((SIZE, SIZE), np.uint8)
    cv2.polylines(edge, [np.round(side * SIZE).astype(np.int32) for side in frame], True, 0)
    return np.clip((cv2.distanceTransform(edge, cv2.DIST_L2, 5) - 1) / 14, 0, 1).astype(np.float32)[..., None]


def _detail(film: np.ndarray) -> np.ndarray:
    """Local contrast as 8 bits: flow needs equal brightness, films don't have it."""
    base = _blur(film, 10)
    spread = np.sqrt(_blur((film - base) ** 2, 16)) + 0.03
    return np.clip(128 + 50 * (film - base) / spread, 0, 255).astype(np.uint8)


def _shift(films: np.ndarray, flows: np.ndarray) -> np.ndarray:
    here = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1)
    return np.stack([_remap(film, here + flow) for film, flow in zip(films, flows, strict=True)])


def fingerprints(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], frame: np.ndarray) -> np.ndarray:
    """Films as numbers to compare, ``(N, 64 * 64)``; those without two lungs are left out.

    See :func:`synthetic.model.check_privacy` for what is compared.
    """
    shapes, kept = _landmarks(masks)
    _, density, _ = _mean_frame_films([images[k] for k in kept], shapes, frame)
    low, high = frame.reshape(-1, 2).min(0) * SIZE, frame.reshape(-1, 2).max(0) * SIZE
    box = density[:, int(low[1]) : int(high[1]) + 1, int(low[0]) : int(high[0]) + 1]
    flat = _resize(box, 64).reshape(len(kept), -1)
    flat -= flat.mean(1, keepdims=True)
    return flat / flat.std(1, keepdims=True)


def pca(data: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Principal modes of ``data (N, …)``: ``mean (D,)``, orthonormal ``modes (K, D)`` and ``scores (N, K)``."""
    from sklearn.decomposition import PCA  # here alone: to draw films takes none

    rows = data.reshape(len(data), -1).astype(np.float32)
    model = PCA(min(count, len(rows) - 1, rows.shape[1]), svd_solver="full")
    scores = model.fit_transform(rows)
    return {"mean": model.mean_, "modes": model.components_, "scores": scores}


def window_fade() -> np.ndarray:
    """``(WINDOW, WINDOW)`` weights whose squares add up to one over overlapping windows."""
    line = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW).astype(np.float32)
    return np.outer(line, line)


def window_pca(rest: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Modes of each overlapping window of ``rest (N, C, C)``; the ``count`` strongest of all windows are kept.

    Returns:
        ``at (K, 2)`` row and column of the window of each mode in a frame padded by STEP, ``modes (K, WINDOW²)``,
        ``scores (N, K)``, ``sd (K,)``.

    Source: Malvar 1990, Lapped transforms (the fades).
    """
    padded = np.pad(rest, ((0, 0), (STEP, STEP), (STEP, STEP)))
    places, parts = [], []
    for row, column in product(range(0, SIZE + STEP, STEP), repeat=2):
        part = pca(padded[:, row : row + WINDOW, column : column + WINDOW] * window_fade(), 24)
        places += [(row, column)] * len(part["modes"])
        parts.append(part)
    modes = np.vstack([part["modes"] for part in parts])
    scores = np.hstack([part["scores"] for part in parts])
    common = np.flatnonzero((scores**2).max(0) < MAX_SHARE * (scores**2).sum(0))
    sd = scores.std(0)
    best = np.sort(common[np.argsort(-sd[common], kind="stable")[:count]])
    return {"at": np.array(places)[best], "modes": modes[best], "scores": scores[:, best], "sd": sd[best]}


def by_window(at: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each window's row, column and modes, of the windows ``at (K, 2)`` of all modes."""
    for row, column in np.unique(at, axis=0):
        yield row, column, np.flatnonzero((at == (row, column)).all(1))


def window_sum(scores: np.ndarray, modes: np.ndarray, windows: Iterable[tuple[int, int, np.ndarray]]) -> np.ndarray:
    """Adds windows up: the inverse of :func:`window_pca`, ``(N, C, C)``; ``windows`` are those of :func:`by_window`."""
    fade = window_fade()
    total = np.zeros((len(scores), SIZE + 2 * STEP, SIZE + 2 * STEP), np.float32)
    for row, column, here in windows:
        patch = (scores[:, here] @ modes[here]).reshape(-1, WINDOW, WINDOW)
        total[:, row : row + WINDOW, column : column + WINDOW] += patch * fade
    return total[:, STEP:-STEP, STEP:-STEP]


def _classes(codes: np.ndarray, tb: np.ndarray) -> dict[str, np.ndarray]:
    """Standardised mean and Cholesky factor of the codes of each class; a class with few films gets everybody's."""
    sd = codes.std(0)
    scaled = codes / sd
    means, factors = [], []
    for label in (0, 1):
        rows = scaled[tb == label] if (tb == label).sum() > 8 else scaled
        covariance = np.cov(rows.T)
        # About as many films as numbers: the off-diagonal entries are noisy, so a part of them is given up.
        covariance = 0.7 * covariance + 0.3 * np.diag(np.diag(covariance))
        means.append(rows.mean(0))
        factors.append(np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))))
    return {"code_sd": sd, "class_mean": np.array(means), "class_factor": np.array(factors)}


def _share(scores: np.ndarray) -> float:
    """The largest part of one mode's squared scores that is one film's."""
    return float((scores**2 / (scores**2).sum(0)).max())


def _spectrum(noise: np.ndarray) -> np.ndarray:
    """Radial amplitude spectrum of what no mode explains, ``(C / 2,)``.

    Only detail below 16 px: a broader random texture looks like hair, and the modes explain that range well.
    """
    power = np.mean(np.abs(np.fft.fft2(noise[:200])) ** 2, 0)
    rings = np.arange(SIZE // 2)
    return np.sqrt(ndimage.mean(power, _radius(), rings)) * np.clip((rings - 12) / 16, 0, 1)


def colour(white: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Gives white noise ``(C, C)`` a radial spectrum and unit variance."""
    amplitude = spectrum[_radius()[:, : SIZE // 2 + 1]]
    noise = np.fft.irfft2(np.fft.rfft2(white) * amplitude, (SIZE, SIZE))
    return (noise / noise.std()).astype(np.float32)


def _radius() -> np.ndarray:
    """The frequency of each coefficient of a Fourier transform ``(C, C)``, in periods per frame."""
    f = np.fft.fftfreq(SIZE)
    return np.minimum(np.hypot(f[:, None], f) * SIZE, SIZE // 2 - 1).astype(int)


def _resize(images: Sequence[np.ndarray] | np.ndarray, size: int) -> np.ndarray:
    """Images ``(N, H, W, …)`` as ``float32 (N, size, size, …)``."""
    way = cv2.INTER_AREA if size < max(images[0].shape) else cv2.INTER_CUBIC
    return np.stack([cv2.resize(image.astype(np.float32), (size, size), interpolation=way) for image in images])


def _remap(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The image at the places ``(C, C, 2)``, x and y in px."""
    x, y = np.moveaxis(at.astype(np.float32), -1, 0)
    return cv2.remap(image, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
