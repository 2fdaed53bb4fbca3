"""Fills README.md's tables of measurements from results/: ``python -m benchmarks.readme``.

A table stands below ``<!-- table NAME: python -m benchmarks.readme -->``, which a page doesn't show. The tests compare:
who measures anew runs this. Numbers in the text are tied to file, row and column by tests/readme_numbers.csv.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from benchmarks.common import RESULTS, ROOT, make_parser, read_json

MARK = re.compile(r"(<!-- table (\w+): python -m benchmarks\.readme -->\n)((?:\|.*\n)*)")
SETS = {"montgomery": "Montgomery", "shenzhen": "Shenzhen", "kermany": "children", "jsrt": "JSRT", "all": "all three"}
PARTS = {"test": " test", "clean": " test, clean", "all": ", all"}  # of a set
TESTED = {"montgomery": "Montgomery test", "shenzhen": "Shenzhen test", "jsrt": "JSRT, all"}
PROTOCOLS_HEAD = (
    "trained on | tested on | n | Dice at 256 px | interval | sd | worst | HD95, px | ASSD, px | at the copy's size | "
    "peers"
)
# Trained on, tested on, which films of it, and what bob.ip.binseg reports (¹ HybridGNet's notebooks, ² nnU-Net).
PROTOCOLS = [
    ("all", "montgomery", "test", ".982, ² .982"),
    ("all", "shenzhen", "test", ".955"),
    ("all", "shenzhen", "clean", "² .969"),
    ("all", "jsrt", "all", ".973, one set alone"),
    ("all", "kermany", "test", ""),
    ("kermany", "kermany", "test", ""),
    ("montgomery", "montgomery", "test", ".982"),
    ("montgomery", "shenzhen", "test", ".942"),
    ("montgomery", "jsrt", "test", ".973"),
    ("montgomery", "jsrt", "all", ""),
    ("shenzhen", "shenzhen", "test", ".955"),
    ("shenzhen", "montgomery", "test", ".964"),
    ("shenzhen", "jsrt", "test", ".967"),
    ("shenzhen", "jsrt", "all", ""),
    ("jsrt", "jsrt", "test", ".982"),
    ("jsrt", "montgomery", "test", ".970"),
    ("jsrt", "montgomery", "all", ".954 ¹"),
    ("jsrt", "shenzhen", "test", ".945"),
    ("jsrt", "shenzhen", "all", ".935 ¹"),
]
TB_HEAD = (
    "trained on | tested on | n | lungs alone | interval | whole film | lungs blanked out | peers, from scratch | "
    "ImageNet"
)
# Protocol, tested on, how the page calls them, and what bob.med.tb reports: from scratch, from ImageNet's weights.
TB = [
    ("both", "montgomery", "both", "Montgomery test", ".870", ".948"),
    ("both", "shenzhen", "both", "Shenzhen test", ".893", ".946"),
    ("folds", "montgomery", "both, 5-fold", "Montgomery, all", ".870", ".948"),
    ("folds", "shenzhen", "both, 5-fold", "Shenzhen, all", ".893", ".946"),
    ("montgomery", "shenzhen, all", "Montgomery", "Shenzhen, all", ".576-.607", ".814"),
    ("shenzhen", "montgomery, all", "Shenzhen", "Montgomery, all", "", ""),
]
RUNTIMES = {
    "PyTorch bfloat16": "PyTorch bf16",
    "PyTorch float32": "PyTorch fp32",
    "ONNX Runtime float32": "ONNX Runtime fp32",
    "OpenVINO float32": "OpenVINO fp32",
    "OpenVINO bfloat16": "OpenVINO bf16",
    "OpenVINO int8": "OpenVINO int8",
}
SPEED = [
    *(("this project", runtime) for runtime in RUNTIMES),
    ("MONAI UNet", "PyTorch bfloat16"),
    ("MONAI UNet", "ONNX Runtime float32"),
    ("MONAI BasicUNet", "ONNX Runtime float32"),
    ("classic U-Net", "PyTorch bfloat16"),
]
DRAWN = "683 of 1,600 drawn ²"  # see the note in synthetic.json


def protocols() -> list[list[object]]:
    summary = pd.read_csv(RESULTS / "protocols_summary.csv").set_index(["trained_on", "source", "protocol", "size"])
    rows = [PROTOCOLS_HEAD.split(" | ")]
    for trained, source, protocol, peer in PROTOCOLS:
        at_256, own = (summary.loc[(trained, source, protocol, size)] for size in (256, 0))
        row = [
            SETS[trained],
            SETS[source] + PARTS[protocol],
            int(at_256.n),
            f"**{at_256.dice:.4f}**",
            f"{at_256.low:.4f}-{at_256.high:.4f}",
            f"{at_256.sd:.4f}",
            f"{at_256.worst:.4f}",
            f"{at_256.hd95:.2f}",
            f"{at_256.assd:.2f}",
            f"{own.dice:.4f}",
            peer,
        ]
        rows.append(row)
    return rows


def tb() -> list[list[object]]:
    results = pd.read_csv(RESULTS / "tb.csv")
    mean = results[results["seed"].isin(["mean", "joined"])].set_index(["protocol", "tested_on", "arm"])
    rows = [TB_HEAD.split(" | ")]
    for protocol, tested, *names, scratch, imagenet in TB:
        lungs = mean.loc[(protocol, tested, "masked")]
        areas = [mean["auc"].get((protocol, tested, variant)) for variant in ("whole", "blanked")]
        others = ["" if area is None else f"{area:.3f}" for area in areas]
        interval = f"{lungs.low:.3f}-{lungs.high:.3f}"
        rows.append([*names, lungs.n, f"**{lungs.auc:.3f}**", interval, *others, scratch, imagenet])
    return rows


def scale() -> list[list[object]]:
    speed = pd.read_csv(RESULTS / "scale.csv").query("what == 'speed'").set_index(["px", "workers"])
    rows = [["films of", "1 worker", "2 workers", "CPU seconds per film"]]
    for px in speed.index.unique("px"):
        one, two = speed.loc[(px, 1)], speed.loc[(px, 2)]
        rates = [f"{each.images_per_s:.2f}" for each in (one, two)]
        rows.append([f"{px} px, {two.mb_per_film:.2f} MB", *rates, f"{two.cpu_s_per_film:.4f}"])
    return rows


def time_to_dice() -> list[list[object]]:
    found = read_json(RESULTS / "time_to_dice.json")["contestants"]
    rows = [["", "parameters", "radiographs per second", "films needed", "seconds to 0.95", "times ours"]]
    for name, one in found.items():
        label = f"{name.removesuffix(' bf16')}, {one['precision']}"
        if name == "MONAI UNet":
            label += ", as its tutorial"
        if one["seconds_to_target"] is None:
            ends = _stopped(name, one, found["ours"]["seconds_to_target"])
        else:
            guess = (", assumed", ", extrapolated") if one["extrapolated"] else ("", "")
            ends = [
                f"{one['films_to_target']:,}{guess[0]}",
                f"{one['seconds_to_target']:,.0f}{guess[1]}",
                f"{one['times_ours']:.3g}",
            ]
        rows.append([label, f"{one['parameters'] / 1e6:.2f}M", f"{one['images_per_s']:.1f}", *ends])
    return rows


def _stopped(name: str, one: dict, ours: float) -> list[str]:
    """The last columns of a contestant that was stopped at its cap."""
    films = pd.read_csv(RESULTS / "time_to_dice.csv").query("contestant == @name")["films"].max()
    seconds = int(one["trained_seconds"])
    times = int(10 * seconds / ours) / 10
    return [f"at most {one['best_dice']:.3f} in {films:,}", f"more than {seconds}", f"more than {times}"]


def speed() -> list[list[object]]:
    bench = (
        pd.read_csv(RESULTS / "bench_infer.csv").set_index(["network", "runtime", "what", "px", "films"]).sort_index()
    )
    columns = {
        "256 px": ("network", 256, 1),
        "512 px": ("network", 512, 1),
        "256 px, batch 32": ("network", 256, 32),
        "512 px PNG → mask": ("PNG to mask", 512, 1),
        "3000 px PNG → mask": ("PNG to mask", 3000, 1),
    }
    rows = [["network", "runtime", *columns]]
    for network, runtime in SPEED:
        cells = []
        for what, px, films in columns.values():
            ms = bench.median_ms.get((network, runtime, what, px, films))
            # Masks of networks that learned nothing are noise, which takes longer to clean.
            if ms is None or (network != "this project" and what != "network"):
                cells.append("")
            else:
                cells.append(f"{ms:.1f}" if ms < 100 else f"{ms:.0f}")
        parameters = bench.loc[(network, runtime)].parameters.iloc[0] / 1e6
        rows.append([f"{network.replace('this project', 'ours')}, {parameters:.2f}M", RUNTIMES[runtime], *cells])
    return rows


def training() -> list[list[object]]:
    rows = [["training at 256 px, batch 8", "parameters", "radiographs per second", "trainer is faster by"]]
    return rows + [
        [one.contestant, f"{one.parameters / 1e6:.2f}M", f"{one.images_per_s:.1f}", f"{one.trainer_is_faster_by:.2f}"]
        for one in pd.read_csv(RESULTS / "bench_train.csv").itertuples()
    ]


def synthetic() -> list[list[object]]:
    found = read_json(RESULTS / "synthetic.json")
    mixed, (real, both) = found["mixed"], found["mixed"]["training_films"]
    return [
        ["trained on", "films", *TESTED.values()],
        ["synthetic radiographs alone: no real film ever seen", DRAWN, *_dice(found["alone"])],
        ["real films alone", real, *_dice(mixed["real"])],
        ["both, at equal steps", both, *_dice(mixed["real_and_samples"])],
    ]


def synthetic_number() -> list[list[object]]:
    return _by_set("number", "synthetic radiographs, 600 steps each")


def synthetic_modes() -> list[list[object]]:
    return _by_set("modes", "texture modes, 400 films, 600 steps each")


def _by_set(study: str, heading: str) -> list[list[object]]:
    found = read_json(RESULTS / "synthetic.json")[study]
    names = [name for name in found if isinstance(found[name], dict)]
    return [[heading, *names], *zip(TESTED.values(), *(_dice(found[name]) for name in names))]


def _dice(scores: dict[str, dict[str, float]]) -> list[str]:
    return [f"{scores[source]['dice']:.4f}" for source in TESTED]


TABLES = {
    table.__name__: table
    for table in (protocols, tb, scale, time_to_dice, speed, training, synthetic, synthetic_number, synthetic_modes)
}


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table, its first row the heading."""
    lines = [f"| {' | '.join(map(str, row))} |".replace("  ", " ") for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]]) + "\n"


def fill(text: str) -> str:
    """The page with each marked table made anew."""
    return MARK.sub(lambda found: found[1] + markdown(TABLES[found[2]]()), text)


if __name__ == "__main__":
    make_parser(__doc__).parse_args()
    page = ROOT / "README.md"
    page.write_text(fill(page.read_text()))
