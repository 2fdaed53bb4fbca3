"""The published, frozen splits as lists of film names, and what they don't know: films of one patient, bad masks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

LISTS = Path(__file__).parent
# Montgomery's clinical texts and films show that these are one person each. The published lists put MCUCXR_0166_1 into
# the test and the other two into training, and MCUCXR_0113_1 into training and 0117 into validation.
SAME_PATIENT = (("MCUCXR_0113_1", "MCUCXR_0117_1"), ("MCUCXR_0162_1", "MCUCXR_0166_1", "MCUCXR_0170_1"))
# Names of synthetic radiographs, as a regular expression: numbers that no film of the public sets has.
SYNTHETIC = r"(MCUCXR|CHNCXR)_(9\d{3}|\d{5,6})_[01]"
LICENCES = {
    "montgomery": "Montgomery: research use with acknowledgement (Jaeger et al. 2014, Candemir et al. 2014)",
    "shenzhen": "Shenzhen masks: CC BY-NC-SA 4.0 (Stirenko et al. 2018)",
    "kermany": "Kermany: CC BY 4.0 (Kermany et al. 2018); its masks: CC BY 4.0 (V7 Labs 2020)",
    "jsrt": "JSRT/SCR: research use, registration at the source (Shiraishi et al. 2000, van Ginneken et al. 2006)",
}


def published_split(frame: pd.DataFrame, task: str = "segmentation") -> pd.Series:
    """The frozen published split of each film by its name, missing where the lists don't know it.

    Args:
        frame: with a ``name`` column.
        task: ``segmentation`` or ``tb`` (step two has lists of its own).
    """
    lists = [pd.read_csv(path) for path in sorted(LISTS.glob(f"{task}_*.csv"))]
    return frame["name"].map(pd.concat(lists).set_index("name")["split"])


def flagged_masks() -> pd.DataFrame:
    """Masks of the training lists that were seen to be wrong: name and reason.

    Shenzhen's were drawn by several people, in runs of numbers: some include the heart or the stomach, some are
    displaced. Validation and test masks are left as published, whatever they look like.
    """
    return pd.read_csv(LISTS / "flagged_masks.csv")


def loose_masks() -> pd.DataFrame:
    """Shenzhen masks that take in the heart or the stomach, or are crude: seen by eye, not by the outline's spread.

    The model of synthetic radiographs was fitted without these; training leaves out :func:`flagged_masks`.
    """
    return pd.read_csv(LISTS / "loose_masks.csv")


def excluded_masks() -> pd.DataFrame:
    """Masks of Shenzhen's test list that somebody else's review leaves out: name and review.

    The 96 that it keeps are the ``clean`` list of :mod:`tuning.protocol`.
    """
    return pd.read_csv(LISTS / "excluded_masks.csv")
