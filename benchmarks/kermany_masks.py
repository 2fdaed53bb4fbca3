"""Packs V7's lung masks of Kermany's radiographs into the package: ``kaggle_utils/sets/kermany_masks.npz``.

    python -m benchmarks.kermany_masks --masks v7/annotations/all-images-semantic-masks

``kaggle_utils/splits/segmentation_kermany.csv`` says which mask belongs to which radiograph: V7 numbered its copies,
and the pairs were found by order and content. It also holds the split, drawn once by patient.
"""

from pathlib import Path

import numpy as np

from benchmarks.common import make_parser
from kaggle_utils.image import read_mask
from kaggle_utils.sets.public import KERMANY_MASKS, kermany_list


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--masks", type=Path, required=True, help="folder with V7's masks, ID.png")
    parser.add_argument("--out", type=Path, default=KERMANY_MASKS, help="file to write")
    args = parser.parse_args()
    runs, shapes = [], []
    for number in kermany_list()["v7_id"]:
        mask = read_mask(args.masks / f"{number}.png")
        ends = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=1 - mask[-1, -1]))
        runs.append(np.diff(ends, prepend=0).astype(np.uint16))
        shapes.append(mask.shape)
    np.savez_compressed(args.out, runs=np.concatenate(runs), n=np.array([*map(len, runs)]), shapes=np.array(shapes))
    print(f"{args.out}: {len(runs)} masks, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
