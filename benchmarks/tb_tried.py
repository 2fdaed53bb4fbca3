"""What step two could do otherwise, compared by cross-validation inside the training and validation lists.

    python -m benchmarks.tb_tried [--data segmentation]

No test film is looked at. Each variant gets five folds, twice drawn, trained on both sets and on each alone;
``results/tb_tried.csv`` has a row for each: the mean AUC on films out of fold, with an interval of 2,000 resamples
of each class, and how much larger it is than that of ``384 px``, on the same resamples. ``elsewhere`` is the AUC where
the films out of fold come from a machine that the line never saw: another gray scale, softer or sharper edges, local
contrast. It is the only hint of another hospital that can be had without looking at one. ``film_ms`` is one thread's
time to describe a film, ``seconds`` that of all fits. Descriptions are kept in ``runs/tb/tried``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from benchmarks.common import RESULTS, RUNS, make_parser, write_table
from kaggle_utils.data import read_manifest
from kaggle_utils.image import read_image
from kaggle_utils.infer import LungSegmenter
from kaggle_utils.quality import split_lungs
from kaggle_utils.tb import fit_line, tb_frame, view
from kaggle_utils.tb.calibrate import resampled_areas
from kaggle_utils.tb.data import THIRDS, balance, folds, lung_fields
from kaggle_utils.tb.fit import FOLDS, STRENGTH, as_input
from kaggle_utils.tb.lite0 import CHANNELS
from kaggle_utils.tb.net import PARTS, TBNet, describe, load_tb
from kaggle_utils.tb.screening import TB_WEIGHTS

KEPT = RUNS / "tb" / "tried"
DRAWS = 2  # of the folds
SETS = {"both": ("montgomery", "shenzhen"), "montgomery": ("montgomery",), "shenzhen": ("shenzhen",)}
CHILDREN = 300  # of each kind
EPOCHS, SEEDS = 3, 2  # of fine-tuning
REFERENCE, CHOSEN = "384 px", "chosen"
ENSEMBLES = {"two sizes": ("256 px", "384 px"), "two crops": ("320 px", "box"), "two scales": ("320 px", "apart")}

Describe = Callable[[np.ndarray, np.ndarray, TBNet], np.ndarray]  # film, lungs, network → (F,)


# ---- descriptions of a film


def everything(film: np.ndarray, lungs: np.ndarray, net: TBNet, variant: str = "lungs", size: int = 320) -> np.ndarray:
    """As in the package, of stages 2 to 6."""
    return net.describe(*as_input(*view(film, lungs, variant, size), net))[0].numpy()


def looked(film: np.ndarray, lungs: np.ndarray, net: TBNet, variant: str = "lungs", size: int = 320) -> np.ndarray:
    """Mean and deviation alone, of stages 2 to 6."""
    return numbers_of(everything(film, lungs, net, variant, size)[None], parts=4)[0]


def fields(film: np.ndarray, lungs: np.ndarray, net: TBNet) -> np.ndarray:
    """Each lung as one zone, not in thirds."""
    image, zones = view(film, lungs, "lungs", 320)
    image, zones = as_input(image, np.stack([zones[:THIRDS].max(0), zones[THIRDS:].max(0)]), net)
    # Thirds that are all the lung: each is described as the whole of it.
    return numbers_of(net.describe(image, zones.repeat_interleave(THIRDS, 1)).numpy(), parts=4)[0]


def apart(film: np.ndarray, lungs: np.ndarray, net: TBNet) -> np.ndarray:
    """Each lung in a crop of its own, about twice as large as in the box around both."""
    found = [looked(film, lung, net) for lung in split_lungs(lungs) if lung.any()]  # one where the other isn't there
    return np.concatenate([(found[0] + found[-1]) / 2, np.abs(found[0] - found[-1])])


def upper(film: np.ndarray, lungs: np.ndarray, net: TBNet) -> np.ndarray:
    """What the last block but one gives to the last two, and the zones there."""
    image, zones = as_input(*view(film, lungs, "lungs", 320), net)
    features = F.relu6(net.backbone.stem(image))
    for block in [*net.backbone.stages[:5], *net.backbone.stages[5][:-1]]:
        features = block(features)
    shares = F.adaptive_avg_pool2d(zones.float(), features.shape[-2:])
    return torch.cat([features, shares], 1)[0].numpy()


def even(film: np.ndarray, lungs: np.ndarray, net: TBNet) -> np.ndarray:
    """Gray levels of the lung fields by their rank: what a gray scale does cancels out."""
    inside = np.bincount(film[lung_fields(lungs) > 0], minlength=256).cumsum()
    return looked((255 * inside / max(inside[-1], 1)).astype(np.uint8)[film], lungs, net)


def texture(film: np.ndarray, lungs: np.ndarray, net: TBNet) -> np.ndarray:
    """No network: histograms of local binary patterns at three scales, of gray levels and of edges, third by third."""
    from skimage.feature import local_binary_pattern  # a package of the dev extra

    image, zones = view(film, lungs, "lungs", 320)
    gray = np.clip((image + 1) * 127.5, 0, 255).astype(np.uint8)
    patterns = [local_binary_pattern(gray, 8, radius, "uniform").astype(np.uint8) for radius in (1, 3, 6)]
    edges = np.clip(np.hypot(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)) / 8, 0, 31)
    maps = [*((pattern, 10) for pattern in patterns), (gray // 8, 32), (edges.astype(np.uint8), 32)]
    found = []
    for levels, count in maps:
        counts = np.stack([np.bincount(levels[zone > 0], minlength=count) for zone in zones])
        right, left = np.split(counts / np.maximum(counts.sum(1, keepdims=True), 1), 2)
        found += [(right + left) / 2, np.abs(right - left)]
    return np.concatenate(found, 1).ravel()


def elsewhere(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The film as another machine would have made it."""
    film = (255 * (film / 255) ** np.exp(rng.uniform(-0.6, 0.6))).astype(np.uint8)
    if rng.random() < 0.5:
        film = cv2.createCLAHE(rng.uniform(1, 4)).apply(film)
    soft = cv2.GaussianBlur(film, (0, 0), rng.uniform(0.002, 0.006) * film.shape[1])
    return cv2.addWeighted(film, 1 + (share := rng.uniform(-1, 1.5)), soft, -share, 0)


def changed(film: np.ndarray, lungs: np.ndarray, net: TBNet, machine: int, how: Describe) -> np.ndarray:
    """The film of another machine, a different one for each film and ``machine``."""
    seed = [machine, *film[::64, ::64].ravel()]
    return how(elsewhere(film, np.random.default_rng(seed)), lungs, net)


DESCRIPTIONS: dict[str, Describe] = {
    **{f"lungs_{size}": partial(looked, size=size) for size in (320, 384, 256)},
    **{f"changed_{size}_0": partial(changed, machine=0, how=partial(looked, size=size)) for size in (320, 384, 256)},
    **{f"changed_320_{machine}": partial(changed, machine=machine, how=looked) for machine in (1, 2)},
    "everything": everything,
    "changed_everything": partial(changed, machine=0, how=everything),
    "whole_320": partial(looked, variant="whole"),
    "box_320": partial(looked, variant="box"),
    "fields": fields,
    "apart": apart,
    "even": even,
    "upper": upper,
    "texture": texture,
    "changed_texture_0": partial(changed, machine=0, how=texture),
}


# ---- films


@dataclass(frozen=True)
class Films:
    """The films of the training and validation lists, or children's, with their lungs."""

    frame: pd.DataFrame
    images: list[np.ndarray]
    masks: np.ndarray
    key: str

    def described(self, name: str) -> np.ndarray:
        """``float32 (N, F)`` by :data:`DESCRIPTIONS`, kept with its CPU time."""
        path = KEPT / f"{name}_{self.key}.npz"
        if not path.exists():
            net, start = all_stages(), time.process_time()
            with torch.inference_mode():
                films = tqdm(zip(self.images, self.masks), name, len(self.images), disable=None)
                rows = [DESCRIPTIONS[name](film, mask, net) for film, mask in films]
            ms = 1e3 * (time.process_time() - start) / len(rows)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part.npz")
            np.savez(part, numbers=np.stack(rows).astype(np.float32), ms=ms)
            part.rename(path)
        return np.load(path)["numbers"]

    def ms(self, name: str) -> float:
        return float(np.load(KEPT / f"{name}_{self.key}.npz")["ms"])


def all_stages() -> TBNet:
    """The network that ships, looked at up to its last stage."""
    net = TBNet(last=6).eval()
    net.backbone = load_tb(TB_WEIGHTS).backbone
    return net.to(memory_format=torch.channels_last)


def read_films(frame: pd.DataFrame) -> Films:
    """Films and their lungs, as the segmenter that ships finds them; masks are kept."""
    segmenter = LungSegmenter(device="cpu")
    images = [read_image(path) for path in frame["image"]]
    key = sha256("".join([*frame["pixels"], segmenter.version]).encode()).hexdigest()[:12]
    path = KEPT / f"masks_{key}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        masks = np.stack([segmenter.masks([film])[0] for film in tqdm(images, "lungs", disable=None)])
        np.savez_compressed(path, masks=masks)
    return Films(frame.reset_index(drop=True), images, np.load(path)["masks"], key)


def children(data: Path) -> Films:
    """Kermany's normal, bacterial and viral training films: children's, unlike all others here."""
    frame = read_manifest(data).query("source == 'kermany' and split == 'train'")
    kind = frame["name"].str.extract("(bacteria|virus)", expand=False).fillna("healthy")
    films = read_films(frame.assign(kind=kind).groupby("kind").sample(CHILDREN, random_state=0))
    seen = films.masks.any((1, 2))
    return Films(
        films.frame[seen], [image for image, one in zip(films.images, seen) if one], films.masks[seen], films.key
    )


def pneumonia(films: Films, young: Films) -> np.ndarray:
    """Three scores by a logistic regression that tells children's films apart, ``(N, 3)``."""
    fit = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
    fit.fit(young.described("lungs_320"), young.frame["kind"])
    return fit.decision_function(films.described("lungs_320"))


# ---- scores


@dataclass(frozen=True)
class Variant:
    """What films are described by and how the line is fitted.

    Attributes:
        about: what it is, in words.
        uses: the descriptions that it needs, for their time.
        numbers: ``(N, F)``.
        abroad: the same of films of another machine; None where there are none.
        also: of further machines, to be learned from too.
        strength: of the fit.
    """

    about: str
    uses: tuple[str, ...]
    numbers: np.ndarray
    abroad: np.ndarray | None = None
    also: tuple[np.ndarray, ...] = ()
    strength: float = STRENGTH

    def logits(self, frame: pd.DataFrame, some: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Out of fold, of some films ``(N,)``: ``(DRAWS, n)``, and the same abroad."""
        frame, numbers = frame[some], self.numbers[some]
        found, abroad = np.empty((2, DRAWS, len(frame)))
        for draw in range(DRAWS):
            fold = folds(frame, FOLDS, draw)
            for k in range(FOLDS):
                out, kept = fold == k, fold != k
                seen = np.concatenate([numbers[kept], *(more[some][kept] for more in self.also)])
                line = fit_line(seen, pd.concat([frame[kept]] * (1 + len(self.also))), self.strength)
                found[draw, out] = line.logits(numbers[out])
                if self.abroad is not None:
                    abroad[draw, out] = line.logits(self.abroad[some][out])
        return found, abroad if self.abroad is not None else None


def together(numbers: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Descriptions side by side; a short one is repeated until it weighs as much as the first."""
    return np.concatenate(
        [numbers, *(np.repeat(one, max(1, numbers.shape[1] // one.shape[1]), 1) for one in others)], 1
    )


def numbers_of(described: np.ndarray, parts: int, first: int = 2, last: int = 6, kept: int = PARTS) -> np.ndarray:
    """Of the stages 2 to 6, some, and of each the first parts of what :func:`tb.net.describe` says.

    Args:
        described: ``(N, F)`` with ``kept`` parts for each channel and third.
        parts: how many stay: 4 are mean and deviation, of both lungs and their difference.
        first, last: stages that stay.
    """
    edges = THIRDS * kept * np.cumsum([0, *CHANNELS[2:]])
    some = [described[:, edges[n - 2] : edges[n - 1]] for n in range(first, last + 1)]
    return np.concatenate([one[:, : one.shape[1] * parts // kept] for one in some], 1)


def stages(numbers: np.ndarray, first: int, last: int = 6) -> np.ndarray:
    """Of :func:`looked`, some stages."""
    return numbers_of(numbers, 4, first, last, kept=4)


def without_differences(numbers: np.ndarray) -> np.ndarray:
    """Of :func:`looked`, the numbers that don't say how the lungs differ."""
    parts = np.split(numbers, 4 * THIRDS * np.cumsum(CHANNELS[2:-1]), 1)
    return np.concatenate([part.reshape(len(part), 4, -1)[:, [0, 2]].reshape(len(part), -1) for part in parts], 1)


def variants(films: Films, young: Films) -> dict[str, Variant]:
    """All but those that are no line through one description."""
    base, abroad = films.described("lungs_320"), films.described("changed_320_0")
    more = tuple(films.described(f"changed_320_{machine}") for machine in (1, 2))
    sizes = {
        f"{size} px": Variant(
            f"{size} px", (name := f"lungs_{size}",), films.described(name), films.described(f"changed_{size}_0")
        )
        for size in (256, 320, 384)
    }

    def of(about: str, numbers: np.ndarray, there: np.ndarray | None = None, *uses: str, **options) -> Variant:
        return Variant(about, ("lungs_320", *uses), numbers, there, **options)

    full, full_abroad = films.described("everything"), films.described("changed_everything")
    chosen = tuple(numbers_of(one, PARTS, 2, 5) for one in (full, full_abroad))
    return sizes | {
        CHOSEN: Variant("320 px, stages 2-5, with maxima", ("everything",), *chosen),
        "maxima": Variant("320 px, with maxima", ("everything",), full, full_abroad),
        "late": of("stages 4-6 alone", stages(base, 4), stages(abroad, 4)),
        "last": of("the last stage alone", stages(base, 6), stages(abroad, 6)),
        "early": of("stages 2-5", stages(base, 2, 5), stages(abroad, 2, 5)),
        "weak": of("a stronger penalty", base, abroad, strength=STRENGTH / 10),
        "strong": of("a weaker penalty", base, abroad, strength=STRENGTH * 10),
        "fields": Variant("each lung as one zone", ("fields",), films.described("fields")),
        "sum": of("without left-right differences", without_differences(base), without_differences(abroad)),
        "apart": Variant("each lung in its own crop", ("apart",), films.described("apart")),
        "scales": of("both lungs, plus each in its own crop", together(base, films.described("apart")), None, "apart"),
        "even": Variant("gray levels replaced by their ranks", ("even",), films.described("even")),
        "box": Variant("the box around the lungs", ("box_320",), films.described("box_320")),
        "whole": Variant("the whole radiograph", ("whole_320",), films.described("whole_320")),
        "texture": Variant("texture alone, no network", ("texture",), films.described("texture")),
        "textured": of("plus texture features", together(base, films.described("texture")), None, "texture"),
        "children": of("plus a score of children's pneumonia", together(base, pneumonia(films, young))),
        "machines": of("plus radiographs as two other machines take them", base, abroad, also=more),
    }


# ---- fine-tuning


def tuned(films: Films, some: np.ndarray, seed: int) -> np.ndarray:
    """Logits out of fold of a network whose last two blocks went on learning, ``(n,)``."""
    frame, logits = films.frame[some], np.empty(some.sum())
    fold = folds(frame, FOLDS, seed)
    seen = torch.from_numpy(films.described("upper")[some])
    frozen = numbers_of(films.described("everything"), PARTS, 2, 4)[some]
    for k in range(FOLDS):
        learner = Tuned(frozen[fold != k], seen[fold != k], frame[fold != k], seed)
        logits[fold == k] = learner.logits(frozen[fold == k], seen[fold == k])
    return logits


class Tuned:
    """The last two blocks and the line, going on from where ImageNet and the regression left them."""

    def __init__(self, frozen: np.ndarray, seen: torch.Tensor, frame: pd.DataFrame, seed: int):
        torch.manual_seed(seed)
        self.net = all_stages()
        self.blocks = torch.nn.ModuleList([self.net.backbone.stages[5][-1], self.net.backbone.stages[6][0]])
        with torch.inference_mode():
            numbers = torch.cat(
                [self._describe(*batch) for batch in zip(torch.from_numpy(frozen).split(32), seen.split(32))]
            )
        fit_line(numbers.numpy(), frame).into(self.net)
        labels, weight = torch.from_numpy(frame["tb"].to_numpy(np.float32)), torch.from_numpy(balance(frame))
        parts = [{"params": self.blocks.parameters(), "lr": 1e-4}, {"params": self.net.head.parameters(), "lr": 2e-6}]
        optimizer, films = torch.optim.AdamW(parts, weight_decay=0.01), torch.from_numpy(frozen)
        for _ in range(EPOCHS):
            for at in torch.randperm(len(labels)).split(32):
                logits = self.net.classify(self._describe(films[at], seen[at]))
                loss = F.binary_cross_entropy_with_logits(logits, labels[at], weight[at])
                optimizer.zero_grad(), loss.backward(), optimizer.step()

    def _describe(self, frozen: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        features, shares = seen.split([CHANNELS[5], 2 * THIRDS], 1)
        found = [frozen]
        for block in self.blocks:
            features = block(features)
            found.append(describe(features, shares))
        return torch.cat(found, 1)

    @torch.inference_mode()
    def logits(self, frozen: np.ndarray, seen: torch.Tensor) -> np.ndarray:
        return self.net.classify(self._describe(torch.from_numpy(frozen), seen)).numpy()


# ---- the table


def rows(films: Films, young: Films) -> Iterator[dict[str, object]]:
    """Of each variant on each set; the first ones are what the others are compared with."""
    tried = variants(films, young)
    tried = {REFERENCE: tried.pop(REFERENCE)} | tried
    for trained_on, sets in SETS.items():
        some = films.frame["source"].isin(sets).to_numpy()
        frame, found = films.frame[some].reset_index(drop=True), {}
        for name, variant in tqdm(tried.items(), trained_on, disable=None):
            start = time.process_time()
            out, abroad = variant.logits(films.frame, some)
            ms = sum(films.ms(use) for use in variant.uses)
            found[name] = variant.about, out, abroad, ms, time.process_time() - start
        start = time.process_time()
        out = np.stack([tuned(films, some, seed) for seed in range(SEEDS)])
        found["tuned"] = "the last two blocks fine-tuned", out, None, films.ms("lungs_320"), time.process_time() - start
        for name, pair in ENSEMBLES.items():
            (about, one, _, ms, spent), (other_about, other, _, other_ms, other_spent) = (found[part] for part in pair)
            found[name] = (
                f"mean of two: {about}; {other_about}",
                (one + other) / 2,
                None,
                ms + other_ms,
                spent + other_spent,
            )
        for source in sets:
            at = (frame["source"] == source).to_numpy()
            labels = frame["tb"].to_numpy()[at]
            plain = areas(found[REFERENCE][1][:, at], labels)
            for name, (about, out, abroad, ms, spent) in found.items():
                row = dict(variant=name, about=about, trained_on=trained_on, tested_on=source)
                row |= compared(out[:, at], labels, plain)
                row["elsewhere"] = np.nan if abroad is None else areas(abroad[:, at], labels)[0]
                yield row | {"film_ms": ms, "seconds": spent}


def areas(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean AUC of some draws ``(DRAWS, N)``, then that of 2,000 resamples of the films."""
    plain = np.mean([roc_auc_score(labels, one) for one in logits])
    return np.concatenate([[plain], np.mean([resampled_areas(one, labels) for one in logits], 0)])


def compared(logits: np.ndarray, labels: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """AUC and what it is more than the reference's, each with an interval of 95 %."""
    found = areas(logits, labels)
    row: dict[str, float] = {"n": len(labels)}
    for name, values in (("auc", found), ("more", found - reference)):
        low, high = np.percentile(values[1:], (2.5, 97.5))
        row |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
    return row


def main() -> None:
    parser = make_parser(__doc__, data=True)
    args = parser.parse_args()
    torch.set_num_threads(1), cv2.setNumThreads(1)
    frame = tb_frame(args.data, SETS["both"])
    films = read_films(frame[frame["part"] != "test"])
    write_table(RESULTS / "tb_tried.csv", pd.DataFrame(rows(films, children(args.data))).round(4))


if __name__ == "__main__":
    main()
