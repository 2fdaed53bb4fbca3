"""benchmarks/groups.py: who is in which group, and what is pooled."""

import pandas as pd
import pytest

from benchmarks.groups import by_group, grouped

FILMS = pd.DataFrame(
    [
        ("a", "montgomery", 9.9),
        ("b", "montgomery", 10.0),
        ("c", "montgomery", 17.0),
        ("d", "montgomery", 65.0),
        ("e", "montgomery", 66.0),
        ("f", "shenzhen", 0.5),
        ("g", "shenzhen", 7.0),
        ("h", "jsrt", None),
        ("i", "kermany", None),
    ],
    columns=["name", "source", "age"],
)
AGES = {
    "a": "under 10",
    "b": "10-17",
    "c": "10-17",
    "d": "18-65",
    "e": "over 65",
    "f": "under 10",
    "g": "under 10",
    "h": "not said",
    "i": "under 10",
}


@pytest.fixture
def scores():
    """Of a network of adults; JSRT's film is there twice, at two sizes and by two protocols."""
    rows = [
        {"trained_on": "both", "name": name, "source": source, "protocol": protocol, "size": size, "dice": 0.8 + n / 50}
        for n, (name, source, _) in enumerate(FILMS.itertuples(index=False))
        for protocol in (("test", "all") if source == "jsrt" else ("test",))
        for size in (0, 256)
    ]
    return pd.DataFrame(rows).assign(iou=0.9, hd95=1.0, hd=1.0, assd=1.0)


def test_a_film_is_in_the_group_of_its_age_and_view_once(scores):
    table = grouped(scores, FILMS).set_index("name")
    assert table["age"].to_dict() == AGES
    views = dict.fromkeys("abcdegh", "PA") | {"f": "not said", "i": "AP"}
    assert table["view"].to_dict() == views and table.loc["h", "protocol"] == "all"


def test_sets_are_pooled_without_those_of_another_convention(scores):
    found = by_group(grouped(scores, FILMS)).set_index(["by", "group", "source"])
    young = found.loc[("age", "under 10")]
    assert young["n"].to_dict() == {"all": 3, "kermany": 1, "montgomery": 1, "shenzhen": 2}
    assert young.loc["all", "dice"] == pytest.approx((0.8 + 0.9 + 0.92) / 3, abs=1e-4)
    assert young.loc["all", "worst_film"] == "a" and young.loc["all", "share_below_0.90"] == pytest.approx(
        1 / 3, abs=1e-4
    )
    assert ("view", "AP", "all") not in found.index and found.loc[("view", "AP", "kermany"), "n"] == 1
