"""Fits the template of ``image.is_inverted`` on training films and tests it on all others and on their negatives.

    python -m benchmarks.polarity --input DIR

Writes ``kaggle_utils/assets/polarity.csv`` (12×12 weights) and ``results/polarity.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from kaggle_utils.image import polarity_features, read_image
from kaggle_utils.prep import find_films, published_split

ROOT = Path(__file__).parents[1]


def moved(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another field of view of the film, with a black border half of the time."""
    height, width = film.shape
    sx, sy = rng.uniform(0.75, 1.25, 2)
    dx, dy = rng.uniform(-0.12, 0.12, 2)
    matrix = np.float32([[sx, 0, width * ((1 - sx) / 2 + dx)], [0, sy, height * ((1 - sy) / 2 + dy)]])
    border = cv2.BORDER_CONSTANT if rng.random() < 0.5 else cv2.BORDER_REPLICATE
    return cv2.warpAffine(film, matrix, (width, height), borderMode=border)


def fit(films: list[np.ndarray], *, copies: int = 8, ridge: float = 30.0, seed: int = 0) -> np.ndarray:
    """Ridge regression of 1 on the features of films and their moved copies; no intercept, so negatives score -1."""
    rng = np.random.default_rng(seed)
    x = np.array([polarity_features(view) for film in films
                  for view in [film] + [moved(film, rng) for _ in range(copies)]])
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.sum(0)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="folder with the raw sets")
    films = pd.DataFrame([{"name": f.name, "source": f.source, "path": f.files["image"]}
                          for f in find_films(parser.parse_args().input) if "image" in f.files])
    training = films[(published_split(films) == "train") & (films["source"] != "jsrt")]
    template = fit([read_image(path, fix_polarity=False) for path in training["path"]])
    np.savetxt(ROOT / "kaggle_utils/assets/polarity.csv", template.reshape(12, 12), fmt="%.5f", delimiter=",")

    others = films.drop(training.index)
    scores = np.array([polarity_features(read_image(path, fix_polarity=False)) @ template for path in others["path"]])
    result = {
        "trained_on": len(training), "tested_on": len(scores),
        "films_turned_wrongly": int((scores < -0.25).sum()),
        "negatives_missed": int((scores <= 0.25).sum()),  # a negative's score is the film's with the other sign
        "lowest_score": round(float(scores.min()), 3), "median_score": round(float(np.median(scores)), 3),
    }
    (ROOT / "results/polarity.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
