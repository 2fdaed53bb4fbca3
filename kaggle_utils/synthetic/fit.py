"""Fits the appearance model of :mod:`synthetic.model`: films with lung masks in, an array per part of the model out.

Three changes of frame make films comparable before anything is averaged: a tone curve (gray to relative density), a
thin-plate warp of the lungs to the mean shape, and a dense flow that brings ribs, clavicles and heart on each other.
What is left is texture: global modes at half resolution and, for the detail above them, modes of overlapping windows.
N counts films, C is the mean frame's side in px, K counts modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator
from tqdm import tqdm

from ..quality import outline

SIZE = 256  # px a side of the mean frame
MARGIN = 1.16  # the mean frame shows this much more than the mean film, for films taken from further away
TONES = (0.10, 0.35, 0.75)  # relative density of: the darkest 2 %, the median of the lungs, that of the mediastinum
WINDOW, STEP = 64, 32  # px; windows overlap by half, so that their fades add up to one
FLOW_NODES = 33
MAX_SHARE = 0.2  # a window's mode with more of its squared scores in one film is that film's detail, and left out
# Shenzhen masks that take in the heart or the stomach, or are crude: seen by eye, not by the spread of the outline.
# The asset was fitted without these; training leaves out those of splits/suspect_masks.csv.
# fmt: off
LOOSE_MASKS = (
    "CHNCXR_0513_1", "CHNCXR_0297_0", "CHNCXR_0511_1", "CHNCXR_0339_1", "CHNCXR_0294_0", "CHNCXR_0295_0",
    "CHNCXR_0059_0", "CHNCXR_0178_0", "CHNCXR_0635_1", "CHNCXR_0002_0", "CHNCXR_0243_0", "CHNCXR_0253_0",
    "CHNCXR_0028_0", "CHNCXR_0242_0", "CHNCXR_0020_0", "CHNCXR_0289_0", "CHNCXR_0292_0", "CHNCXR_0475_1",
    "CHNCXR_0281_0", "CHNCXR_0361_1", "CHNCXR_0043_0", "CHNCXR_0622_1", "CHNCXR_0155_0", "CHNCXR_0610_1",
    "CHNCXR_0522_1",
)
# fmt: on


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
    shapes, kept = _shapes(masks, config)
    tb = np.asarray(tb)[kept]
    aligned = outline.align(shapes)
    frame = _mean_frame(aligned["mean"], aligned["pose"])
    tones, density, valid = _mean_frame_films([images[k] for k in kept], shapes, frame)
    density, flows = register(complete(density, valid), frame)
    return {"frame": frame, **fit_modes(aligned, tones, density, flows, tb, config)}


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
        aligned: of :func:`synthetic.outline.align`.
        tones: ``(N, 3)``, of :func:`encode_tone`.
        density, flows: of :func:`register`.
        tb: ``(N,)`` 0 or 1.
        config: numbers of modes.
    """
    count, mean = len(tb), density.mean(0)
    shape = pca((aligned["aligned"] - aligned["mean"]).reshape(count, -1), config.shape)
    flow = pca(flows.reshape(count, -1), config.flow)
    coarse, detail = _coarse_modes(density - mean, config)
    windows = window_pca(detail, config.windows)
    noise = detail - window_sum(windows["scores"], windows, count)
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
        "noise_sd": _resize(np.sqrt(_blur(noise.var(0), 4)), 64),
        "noise_spectrum": _spectrum(noise),
        **_classes(np.hstack(codes), tb),
        "sizes": np.array([code.shape[1] for code in codes]),
        "share": np.array([_share(part["scores"]) for part in (shape, flow, coarse, linked, windows)]),
        "films": np.array(count),
    }


def _coarse_modes(textures: np.ndarray, config: FitConfig) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Modes of whole textures ``(N, C, C)`` at half resolution, and the detail that these don't explain, as large."""
    count, half = len(textures), SIZE // 2
    small = np.stack([_resize(film, half) for film in textures]).reshape(count, -1)
    coarse = pca(small, config.texture, centre=False)
    explained = (coarse["scores"] @ coarse["modes"]).reshape(count, half, half)
    return coarse, textures - np.stack([_resize(film, SIZE) for film in explained])


def _shapes(masks: list[np.ndarray], config: FitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks ``(K, 2, POINTS, 2)`` of the films with two lungs of a usual outline, and which films these are."""
    found = {k: shape for k, mask in enumerate(masks) if (shape := outline.landmarks(mask)) is not None}
    if len(found) < 12:
        raise ValueError(f"{len(found)} of {len(masks)} masks have two lungs, a model needs at least 12 films")
    kept, shapes = np.array(list(found)), np.stack(list(found.values()))
    fitted = outline.align(shapes)
    offsets = (fitted["aligned"] - fitted["mean"]).reshape(len(kept), -1)
    scores = pca(offsets, min(config.shape, len(kept) // 2))["scores"]
    spread = np.sqrt(((scores / scores.std(0)) ** 2).mean(1))
    inside = spread < config.max_spread
    tqdm.write(f"{len(masks) - inside.sum()} of {len(masks)} films left out: no two lungs, or an odd outline")
    return shapes[inside], kept[inside]


def _mean_frame(mean: np.ndarray, pose: np.ndarray) -> np.ndarray:
    scale, _, x, y = pose.mean(0)
    return (mean * np.exp(scale) + (x - 0.5, y - 0.5)) / MARGIN + 0.5


def _mean_frame_films(
    images: Sequence[np.ndarray], shapes: Iterable[np.ndarray], frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Films in the mean frame: their tones ``(N, 3)``, densities and where they show a patient, ``(N, C, C)``."""
    tones, density, valid = [], [], []
    between = _mediastinum(frame)
    lungs = (outline.fill(frame[0], SIZE) | outline.fill(frame[1], SIZE)) > 0
    for image, shape in tqdm(zip(images, shapes, strict=True), total=len(images), desc="warp", disable=None):
        field = outline.warp_field(frame, shape, SIZE)
        usable = usable_area(image, shape)
        warped = _sample(_blur(image, 0.35 * len(image) / SIZE), field)  # against moiré: the frame is coarser
        seen = (_sample(usable.astype(np.float32), field) > 0.99) & (field > 0).all(-1) & (field < 1).all(-1)
        tone = measure_tone(warped, seen, lungs, between)
        tones.append(encode_tone(tone))
        density.append(tone_curve(tone)(np.clip(warped, 0, 255)))
        valid.append(seen)
    return np.array(tones), np.array(density, np.float32), np.array(valid)


def _sample(image: np.ndarray, field: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return cv2.remap(
        image,
        field[..., 0] * width - 0.5,
        field[..., 1] * height - 0.5,
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _mediastinum(frame: np.ndarray) -> np.ndarray:
    """The area between the lungs, ``bool (C, C)``: what its convex hull adds to them, less the diaphragm's part."""
    hull = cv2.convexHull(frame.reshape(-1, 2).astype(np.float32))[:, 0]
    area = outline.fill(hull, SIZE) & ~(outline.fill(frame[0], SIZE) | outline.fill(frame[1], SIZE)) & 1
    right, left = frame[0, :, 0].max(), frame[1, :, 0].min()
    columns = (np.arange(SIZE) + 0.5) / SIZE
    middle, half = (right + left) / 2, max((left - right) / 2, 0.03)
    return (area > 0) & (abs(columns - middle) < half + 0.02)[None]


def usable_area(image: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Film that shows a patient: no collimated border, no printed letters.

    Letters differ in place and size from film to film: averaged, they would come back as ghosts of print.

    Returns:
        ``bool (H, W)``.
    """
    size = len(image)
    black = cv2.morphologyEx((image < 7).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    border = np.zeros_like(black)
    for turns in range(4):  # a view of each edge as the upper one
        dark = np.rot90(black, turns).mean(1) > 0.75
        depth = 0 if dark.all() else int(np.argmin(dark))
        if depth:
            np.rot90(border, turns)[: depth + int(0.03 * size)] = 1
    width = size // 10
    bright = cv2.morphologyEx(image, cv2.MORPH_TOPHAT, np.ones((width, width), np.uint8)) > 60
    lungs = outline.fill(shape[0], size) | outline.fill(shape[1], size)
    near = cv2.dilate(lungs, np.ones((size // 32, size // 32), np.uint8)) > 0
    top = np.arange(size)[:, None] < size * float(np.quantile(shape[..., 1], 0.35))
    print_ = cv2.dilate((bright & top & ~near).astype(np.uint8), np.ones((size // 32, size // 32), np.uint8))
    return (border == 0) & (print_ == 0)


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


def complete(density: np.ndarray, valid: np.ndarray, *, rounds: int = 12, modes: int = 30) -> np.ndarray:
    """Fills what a film doesn't show from the modes of those that do.

    Works at a quarter of the resolution, because what lies outside a film needs no detail.

    Source: Roweis 1998, EM algorithms for PCA and SPCA, section 4 (missing data).
    """
    side = SIZE // 4
    small = np.stack([_resize(d, side) for d in density]).reshape(len(density), -1)
    seen = np.stack([_resize(v.astype(np.float32), side) for v in valid]).reshape(len(density), -1) > 0.99
    count = seen.sum(0)
    mean = np.where(count > 0, (small * seen).sum(0) / np.maximum(count, 1), small.mean())
    filled = np.where(seen, small, mean)
    for _ in range(rounds):
        part = pca(filled, min(modes, len(filled) // 3))
        guess = part["mean"] + part["scores"] @ part["modes"]
        filled = np.where(seen, small, guess)
    low = np.stack([_resize(g.reshape(side, side).astype(np.float32), SIZE) for g in filled])
    soft = np.stack([_blur(cv2.erode(v.astype(np.float32), np.ones((5, 5))), 1.5) for v in valid])
    return soft * density + (1 - soft) * low


def register(density: np.ndarray, frame: np.ndarray, *, rounds: int = 5) -> tuple[np.ndarray, np.ndarray]:
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
    for _ in tqdm(range(rounds), desc="register", disable=None):
        target = _detail(template)
        for k, detail in enumerate(details):
            flow = dis.calc(target, detail, None)  # type: ignore[call-overload]  # None: a new array
            flows[k] = free * cv2.GaussianBlur(np.clip(flow, -10, 10), (0, 0), 4)
        flows -= flows.mean(0)
        template = np.mean([_shift(film, flow) for film, flow in zip(density, flows, strict=True)], 0)
    nodes = np.stack([cv2.resize(f, (FLOW_NODES, FLOW_NODES), interpolation=cv2.INTER_AREA) for f in flows])
    smooth = [free * cv2.resize(f, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for f in nodes]
    return np.stack([_shift(film, flow) for film, flow in zip(density, smooth, strict=True)]), nodes


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


def _shift(film: np.ndarray, flow: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return cv2.remap(film, x + flow[..., 0], y + flow[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def fingerprints(images: Sequence[np.ndarray], masks: Sequence[np.ndarray], frame: np.ndarray) -> np.ndarray:
    """Films as numbers to compare, ``(N, 64 * 64)``; those without two lungs are left out.

    See :func:`synthetic.synthetic.check_privacy` for what is compared.
    """
    found = [(image, outline.landmarks(mask)) for image, mask in zip(images, masks, strict=True)]
    kept = [(image, shape) for image, shape in found if shape is not None]
    _, density, _ = _mean_frame_films([image for image, _ in kept], [shape for _, shape in kept], frame)
    low, high = frame.reshape(-1, 2).min(0) * SIZE, frame.reshape(-1, 2).max(0) * SIZE
    box = np.s_[int(low[1]) : int(high[1]) + 1, int(low[0]) : int(high[0]) + 1]
    flat = np.stack([_resize(film[box], 64).ravel() for film in density])
    flat -= flat.mean(1, keepdims=True)
    return flat / flat.std(1, keepdims=True)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rms differences between rows of ``a (N, D)`` and of ``b (M, D)``: ``(N, M)``."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    square = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(square, 0) / a.shape[1])


def pca(data: np.ndarray, count: int, *, centre: bool = True) -> dict[str, np.ndarray]:
    """Principal modes of rows ``(N, D)``: ``mean (D,)``, orthonormal ``modes (K, D)`` and ``scores (N, K)``."""
    mean = data.mean(0) if centre else np.zeros(data.shape[1], data.dtype)
    data = data - mean
    if data.shape[1] > len(data):
        values, vectors = np.linalg.eigh((data @ data.T).astype(np.float64))
        order = np.argsort(values)[::-1][: min(count, len(data) - centre)]
        modes = (vectors[:, order].T / np.sqrt(np.maximum(values[order, None], 1e-12))) @ data
    else:
        values, vectors = np.linalg.eigh((data.T @ data).astype(np.float64))
        modes = vectors[:, np.argsort(values)[::-1][: min(count, data.shape[1])]].T
    modes = modes.astype(np.float32)
    return {"mean": mean, "modes": modes, "scores": data @ modes.T}


def window_fade() -> np.ndarray:
    """``(WINDOW, WINDOW)`` weights whose squares add up to one over overlapping windows."""
    line = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW).astype(np.float32)
    return np.outer(line, line)


def window_pca(rest: np.ndarray, count: int, *, max_share: float = MAX_SHARE) -> dict[str, np.ndarray]:
    """Modes of each overlapping window of ``rest (N, C, C)``; the ``count`` strongest of all windows are kept.

    Returns:
        ``at (K, 2)`` row and column of the window of each mode in a frame padded by STEP, ``modes (K, WINDOW²)``,
        ``scores (N, K)``, ``sd (K,)``.

    Source: Malvar 1990, Lapped transforms (the fades).
    """
    fade = window_fade().ravel()
    padded = np.pad(rest, ((0, 0), (STEP, STEP), (STEP, STEP)))
    places, parts = [], []
    for row in range(0, SIZE + STEP, STEP):
        for column in range(0, SIZE + STEP, STEP):
            patch = padded[:, row : row + WINDOW, column : column + WINDOW].reshape(len(rest), -1) * fade
            part = pca(patch, 24, centre=False)
            places += [(row, column)] * len(part["modes"])
            parts.append(part)
    at = np.array(places)
    modes = np.vstack([part["modes"] for part in parts])
    scores = np.hstack([part["scores"] for part in parts])
    common = (scores**2).max(0) < max_share * (scores**2).sum(0)
    modes, scores, at = modes[common], scores[:, common], at[common]
    best = np.sort(np.argsort(-scores.std(0), kind="stable")[:count])
    return {"at": at[best], "modes": modes[best], "scores": scores[:, best], "sd": scores[:, best].std(0)}


def window_sum(scores: np.ndarray, windows: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Adds windows up: the inverse of :func:`window_pca`, ``(N, C, C)``."""
    fade = window_fade()
    total = np.zeros((count, SIZE + 2 * STEP, SIZE + 2 * STEP), np.float32)
    for row, column in np.unique(windows["at"], axis=0):
        here = (windows["at"] == (row, column)).all(1)
        patch = (scores[:, here] @ windows["modes"][here]).reshape(count, WINDOW, WINDOW)
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
    f = np.fft.fftfreq(SIZE)
    radius = np.minimum(np.hypot(f[:, None], f[None]) * SIZE, SIZE // 2 - 1).astype(int)
    spectrum = np.sqrt(np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel()))
    return spectrum * np.clip((np.arange(SIZE // 2) - 12) / 16, 0, 1)


def colour(white: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Gives white noise ``(C, C)`` a radial spectrum and unit variance."""
    f, half = np.fft.fftfreq(SIZE), np.fft.rfftfreq(SIZE)
    radius = np.minimum(np.hypot(f[:, None], half[None]) * SIZE, SIZE // 2 - 1).astype(int)
    noise = np.fft.irfft2(np.fft.rfft2(white) * spectrum[radius], (SIZE, SIZE))
    return (noise / noise.std()).astype(np.float32)


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    way = cv2.INTER_AREA if size < max(image.shape) else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(image, np.float32), (size, size), interpolation=way)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
