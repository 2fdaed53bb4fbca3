"""Dice by age and by view, of the films that ``python -m kaggle_utils protocol`` scored at 256 px.

    python -m benchmarks.groups --data segmentation

Of each network the test lists of its own sets, and what was tested of external ones. Ages are the manifest's; Kermany's
patients, whose ages no file says, are from one to five years old (Kermany et al. 2018). Views are the sets': PA, and AP
of Kermany's; of Shenzhen's few infants some are AP, so theirs are not said. ``source`` is all for the sets together,
without those whose masks follow another convention than the network's. Writes ``results/groups.csv``.
"""

from __future__ import annotations

import pandas as pd

from benchmarks.common import RESULTS, make_parser, write_table
from kaggle_utils.data import read_manifest
from kaggle_utils.metrics import summarise
from kaggle_utils.quality.flags import OK
from kaggle_utils.tables import read_csv
from kaggle_utils.tuning.protocol import other_convention

AGES = ["under 10", "10-17", "18-65", "over 65"]
FROM = [0, 10, 18, 66, float("inf")]  # years
VIEWS = {"montgomery": "PA", "shenzhen": "PA", "jsrt": "PA", "kermany": "AP"}
INFANT = 5  # years
UNKNOWN = "not said"
KEPT = ["n", "dice", "sd", "low", "high", "worst", "worst_film"]


def grouped(scores: pd.DataFrame, films: pd.DataFrame) -> pd.DataFrame:
    """Each network's scores with the groups that a film is in: columns age and view.

    Args:
        scores: ``results/protocols.csv``.
        films: of :func:`data.read_manifest`.
    """
    scores = scores[scores["size"] == 256].sort_values("protocol")  # all before test
    scores = scores.drop_duplicates(["trained_on", "name"])
    years = scores["name"].map(films.set_index("name")["age"])
    years = years.where(scores["source"] != "kermany", years.fillna(INFANT))
    age = pd.cut(years, FROM, right=False, labels=AGES).astype(object).fillna(UNKNOWN)
    infants = (scores["source"] == "shenzhen") & (years < INFANT)
    view = scores["source"].map(VIEWS).where(~infants).fillna(UNKNOWN)
    return scores.assign(age=age, view=view)


def by_group(table: pd.DataFrame) -> pd.DataFrame:
    """A row per network, group and set, and for the sets together."""
    own = [not other_convention(name, source) for name, source in zip(table["trained_on"], table["source"])]
    table = pd.concat([table, table[own].assign(source="all")])
    found = []
    for kind in ("age", "view"):
        rows = table.rename(columns={kind: "group"}).assign(by=kind, poor=table["dice"] < OK)
        by = ["trained_on", "by", "group", "source"]
        poor = rows.groupby(by)["poor"].mean().rename("share_below_0.90").reset_index()
        found.append(summarise(rows.sort_values(by), by)[[*by, *KEPT]].merge(poor))
    return pd.concat(found, ignore_index=True).round(4)


def main() -> None:
    args = make_parser(__doc__, data=True).parse_args()
    scores = read_csv(RESULTS / "protocols.csv")
    write_table(RESULTS / "groups.csv", by_group(grouped(scores, read_manifest(args.data))))


if __name__ == "__main__":
    main()
