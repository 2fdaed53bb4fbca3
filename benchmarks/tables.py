"""The tables of README.md and docs/, each from results/ and by its name in ``TABLES``; the first row is the heading."""

from __future__ import annotations

from statistics import median

import pandas as pd

from benchmarks.common import RESULTS, read_json

SETS = {
    "montgomery": "Montgomery",
    "shenzhen": "Shenzhen",
    "kermany": "children",
    "jsrt": "JSRT",
    "all": "all three",
    "both": "both",
}
PARTS = {"test": " test", "clean": " test, clean", "all": ", all"}  # of a set
TESTED = {"montgomery": "Montgomery test", "shenzhen": "Shenzhen test", "jsrt": "JSRT, all"}
# Trained on, tested on, which radiographs of it, how README calls that, and peers' Dice.
REACHES = [
    ("all", "montgomery", "test", "Montgomery, test", "U-Net .982, nnU-Net .982 ¹"),
    ("all", "shenzhen", "test", "Shenzhen, test", "M2U-Net .955"),
    ("all", "shenzhen", "clean", "Shenzhen, test, clean", "nnU-Net .969 ¹"),
    ("all", "jsrt", "all", "JSRT, never seen", "U-Net .973 ²"),
    ("all", "kermany", "test", "children, test", ""),
    ("kermany", "kermany", "test", "children, weights lungs-ccby", ""),
    ("jsrt", "montgomery", "all", "Montgomery, trained on JSRT alone", "HybridGNet .954"),
    ("jsrt", "shenzhen", "all", "Shenzhen, trained on JSRT alone", "HybridGNet .935"),
]
# Trained on, tested on, which films of it, and what bob.ip.binseg, HybridGNet and nnU-Net report.
PROTOCOLS = [
    ("all", "montgomery", "test", ".982", "", ".982"),
    ("all", "shenzhen", "test", ".955", "", ""),
    ("all", "shenzhen", "clean", "", "", ".969"),
    ("all", "jsrt", "all", ".973 ³", "", ""),
    ("all", "kermany", "test", "", "", ""),
    ("kermany", "kermany", "test", "", "", ""),
    ("montgomery", "montgomery", "test", ".982", "", ""),
    ("montgomery", "shenzhen", "test", ".942", "", ""),
    ("montgomery", "jsrt", "test", ".973", "", ""),
    ("montgomery", "jsrt", "all", "", "", ""),
    ("shenzhen", "shenzhen", "test", ".955", "", ""),
    ("shenzhen", "montgomery", "test", ".964", "", ""),
    ("shenzhen", "jsrt", "test", ".967", "", ""),
    ("shenzhen", "jsrt", "all", "", "", ""),
    ("jsrt", "jsrt", "test", ".982", "", ""),
    ("jsrt", "montgomery", "test", ".970", "", ""),
    ("jsrt", "montgomery", "all", "", ".954", ""),
    ("jsrt", "shenzhen", "test", ".945", "", ""),
    ("jsrt", "shenzhen", "all", "", ".935", ""),
]
PEERS = ("bob.ip.binseg", "HybridGNet ¹", "nnU-Net ²")
# Trained on, tested on, how the page calls them, and what bob.med.tb reports: from scratch, from ImageNet's weights.
TB = [
    ("both", "montgomery", "both", "Montgomery test", ".870", ".948"),
    ("both", "shenzhen", "both", "Shenzhen test", ".893", ".946"),
    ("both, 5-fold", "montgomery, all", "both, 5-fold", "Montgomery, all", ".870", ".948"),
    ("both, 5-fold", "shenzhen, all", "both, 5-fold", "Shenzhen, all", ".893", ".946"),
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
# Age and view, as groups.csv has them.
GROUPS = [("age", group) for group in ("under 10", "10-17", "18-65", "over 65", "not said")] + [
    ("view", "PA"),
    ("view", "AP"),
    ("view", "not said"),
]
CHECKED = {
    "adults, test lists": "test",
    "adults, JSRT": "jsrt",
    "children, test": "children",
}  # as checks.json calls them
FLAGGED = {"Montgomery": "montgomery", "Shenzhen": "shenzhen", "JSRT": "jsrt", "children": "kermany", "with gas": "gas"}
DRAWN = "683 of 1,600 drawn ¹"  # see the note in synthetic.json


def _summary() -> pd.DataFrame:
    return pd.read_csv(RESULTS / "protocols_summary.csv").set_index(["trained_on", "source", "protocol", "size"])


def reaches() -> list[list[object]]:
    summary = _summary()
    rows: list[list[object]] = [["tested on", "n", "Dice", "95 % interval", "worst", "peers"]]
    for trained, source, protocol, name, peer in REACHES:
        one = summary.loc[(trained, source, protocol, 256)]
        rows.append([name, int(one.n), f"**{one.dice:.4f}**", _interval(one), f"{one.worst:.2f}", peer or "–"])
    return rows


def card_lungs() -> list[list[object]]:
    heads = ["head", "tested on", "n", "Dice at 256 px", "95 % interval", "worst"]
    wanted = ("jsrt", "all"), ("montgomery", "test"), ("shenzhen", "test"), ("shenzhen", "clean"), ("kermany", "test")
    head = {"jsrt": "montgomery"}  # a set never seen gets the first head
    return [heads, *([head.get(source, source), *_card_row("all", source, part)] for source, part in wanted)]


def card_ccby() -> list[list[object]]:
    heads = ["tested on", "n", "Dice at 256 px", "95 % interval", "worst"]
    wanted = ("kermany", "test"), ("montgomery", "all"), ("shenzhen", "all"), ("jsrt", "all")
    return [heads, *(_card_row("kermany", source, part) for source, part in wanted)]


def _card_row(trained: str, source: str, protocol: str) -> list[object]:
    one = _summary().loc[(trained, source, protocol, 256)]
    name = SETS[source] + PARTS[protocol]
    return [name, int(one.n), f"{one.dice:.4f}", _interval(one), f"{one.worst:.4f} ({one.worst_film})"]


def protocols() -> list[list[object]]:
    summary = _summary()
    rows: list[list[object]] = [["trained on", "tested on", "n", "Dice", "95 % interval", *PEERS]]
    for trained, source, protocol, *peers in PROTOCOLS:
        one = summary.loc[(trained, source, protocol, 256)]
        rows.append([*_names(trained, source, protocol), int(one.n), f"**{one.dice:.4f}**", _interval(one), *peers])
    return rows


def distances() -> list[list[object]]:
    summary = _summary()
    rows: list[list[object]] = [["trained on", "tested on", "sd", "worst", "HD95, px", "ASSD, px", "Dice, copy's size"]]
    for trained, source, protocol, *_ in PROTOCOLS:
        at_256, own = (summary.loc[(trained, source, protocol, size)] for size in (256, 0))
        found = (f"{at_256.sd:.4f}", f"{at_256.worst:.4f}", f"{at_256.hd95:.2f}", f"{at_256.assd:.2f}")
        rows.append([*_names(trained, source, protocol), *found, f"{own.dice:.4f}"])
    return rows


def _names(trained: str, source: str, protocol: str) -> list[object]:
    return [SETS[trained], SETS[source] + PARTS[protocol]]


def _interval(row: pd.Series, digits: int = 4) -> str:
    return f"{row.low:.{digits}f}‑{row.high:.{digits}f}"  # a hyphen that does not break


def groups() -> list[list[object]]:
    table = pd.read_csv(RESULTS / "groups.csv").query("trained_on == 'all' and source == 'all'")
    table = table.set_index(["by", "group"])
    rows: list[list[object]] = [["", "radiographs", "Dice", "95 % interval", "worst"]]
    for by, group in GROUPS:
        if (by, group) in table.index:
            one = table.loc[(by, group)]
            rows.append([f"{by} {group}", int(one.n), f"{one.dice:.4f}", _interval(one), f"{one.worst:.4f}"])
    return rows


def worse() -> list[list[object]]:
    """A mild and a hard strength of each damage, the network that ships beside others."""
    table = pd.read_csv(RESULTS / "robustness.csv")
    columns = [(source, network) for source in ("shenzhen", "montgomery") for network in table["network"].unique()]
    rows: list[list[object]] = [
        ["damage", "strength", *(f"{SETS[source]}{_other(network)}" for source, network in columns)]
    ]
    for damage in table["damage"].unique():
        for strength in table.query("damage == @damage")["strength"].unique():
            if strength in (0, 2, 4):
                some = table[(table["damage"] == damage) & (table["strength"] == strength)]
                dice = some.set_index(["source", "network"])["dice"]
                value = "" if damage == "none" else f"{some['value'].iloc[0]:g}"
                rows.append([damage, value, *(f"{dice[one]:.4f}" for one in columns)])
    return rows


def _other(network: str) -> str:
    return "" if network == "shipped" else f", {network}"


def artefacts() -> list[list[object]]:
    table = pd.read_csv(RESULTS / "artefacts.csv")
    columns = [("shipped", "test", source) for source in ("montgomery", "shenzhen", "kermany")]
    columns += [(network, "val", "shenzhen") for network in table["network"].unique()]
    dice = table.set_index(["network", "split", "source", "artefact"])["dice"]
    parts = {"test": " test", "val": " validation"}
    heads = [f"{SETS[source]}{parts[part]}{_other(network)}" for network, part, source in columns]
    return [
        ["drawn into the radiographs", *heads],
        *([one, *(f"{dice[(*column, one)]:.4f}" for column in columns)] for one in table["artefact"].unique()),
    ]


def sets() -> list[list[object]]:
    """What even drawing, heads and a larger network bring: validation Dice of short runs, by set."""
    table = pd.read_csv(RESULTS / "tuning/sets.csv").query("artefact == 'none'")
    return _dice_by_set("run", table.rename(columns={"run": "name"}))


def gains() -> list[list[object]]:
    """What training loses without one artefact, on validation films that have it drawn in and on untouched ones."""
    table = pd.read_csv(RESULTS / "tuning/artefacts.csv")
    sources = ("montgomery", "shenzhen", "kermany")
    dice = table.set_index(["run", "source", "artefact"])["dice"]
    rows: list[list[object]] = [
        ["artefact", *(f"{SETS[source]}{where}" for where in ("", ", untouched") for source in sources)]
    ]
    for run in table["run"].unique():
        if run not in ("light", "clinic"):
            left_out = run.removeprefix("clinic without ")
            on = [(source, one) for one in (left_out, "none") for source in sources]
            rows.append([left_out, *(f"{dice[('clinic', *one)] - dice[(run, *one)]:+.4f}" for one in on)])
    return rows


def average() -> list[list[object]]:
    """Two networks of one start, their mean and their ensemble: validation Dice, and with hard gray windows."""
    table = pd.read_csv(RESULTS / "average.csv").query("artefact in ('none', 'window')")
    shipped = pd.read_csv(RESULTS / "artefacts.csv").query("network == 'shipped' and split == 'val'")
    assert set(shipped["trained_by"]) <= set(table["trained_by"])  # the table is of the network that ships
    suffix = {"none": "", "window": ", hard gray windows"}
    return _dice_by_set("network", table.assign(name=table["network"] + table["artefact"].map(suffix)))


def _dice_by_set(head: str, table: pd.DataFrame) -> list[list[object]]:
    """A row per name, a column per set with its validation films' mean Dice."""
    dice = table.pivot(index="name", columns="source", values="dice").loc[table["name"].unique()]
    sources = ("montgomery", "shenzhen", "kermany")
    return [
        [head, *(SETS[source] for source in sources)],
        *([name, *(f"{row[source]:.4f}" for source in sources)] for name, row in dice.iterrows()),
    ]


def refusals() -> list[list[object]]:
    """What the checks before and after segmentation did with radiographs."""
    found = read_json(RESULTS / "checks.json")
    heads = ["", "radiographs", "refused", "corrected", "distorted", "of these refused", "of these turned wrongly"]
    rows: list[list[object]] = [heads]
    for name, key in CHECKED.items():
        whole, other = found[key]["untouched"], found[key]["taken otherwise"]
        refused, lost = (part["refused"] + part["refused after segmentation"] for part in (whole, other))
        places = [one for place, one in found[key]["positions"].items() if "mirrored" not in place]
        right = f"{sum(one['right'] for one in places):,} of {sum(one['n'] for one in places):,}"
        share = f"{lost} ({_percent(lost / other['n'])})"
        rows.append([name, whole["n"], refused, right, f"{other['n']:,}", share, other["turned"]])
    return rows


def others() -> list[list[object]]:
    """What the checks did with pictures that show no chest."""
    found = read_json(RESULTS / "checks.json")["spoilt"]["no films"]
    return [
        ["pictures of no chest", "n", "refused", "refused or noted"],
        *(
            [name, one["n"], *(_percent(one[key]) for key in ("refused", "refused or noted"))]
            for name, one in found.items()
        ),
    ]


def flags() -> list[list[object]]:
    """How many poor and good masks the estimate of quality flags, whole and damaged radiographs together."""
    found = read_json(RESULTS / "quality.json")["test"]["by set"]
    rows: list[list[object]] = [
        ["radiographs, undamaged and damaged", "n", "masks below 0.90", "of these flagged", "good ones flagged", "AUC"]
    ]
    for name, source in FLAGGED.items():
        one = found[source]["both"]
        shares = (_percent(one[key]) for key in ("poor_flagged", "good_flagged"))
        rows.append([name, f"{one['n']:,}", one["poor"], *shares, f"{one['auc']:.3f}"])
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def tb() -> list[list[object]]:
    results = pd.read_csv(RESULTS / "tb_table.csv").set_index(["trained_on", "tested_on", "variant", "standardised"])
    controls = ("whole", "box", "blanked", "thumbnail")
    head = ["trained on", "tested on", "n", "lungs alone", "95 % interval", "standardised there"]
    rows: list[list[object]] = [[*head, "whole", "box", "blanked out", "16 × 16 px", "peer", "ImageNet"]]
    for trained_on, tested, *names, scratch, imagenet in TB:
        lungs = results.loc[(trained_on, tested, "lungs", "training")]
        own = results["auc"][(trained_on, tested, "lungs", "hospital")]
        others = [f"{results['auc'][(trained_on, tested, variant, 'training')]:.3f}" for variant in controls]
        found = [f"**{lungs.auc:.3f}**", _interval(lungs, 3), f"{own:.3f}"]
        rows.append([*names, int(lungs.n), *found, *others, scratch, imagenet])
    return rows


def card_tb() -> list[list[object]]:
    results = pd.read_csv(RESULTS / "tb_table.csv").query("variant == 'lungs' and standardised == 'training'")
    rows: list[list[object]] = [["trained on", "tested on", "n", "AUC", "95 % interval", "sensitivity", "specificity"]]
    for one in results.itertuples():
        source, _, part = one.tested_on.partition(", ")
        found = (f"{one.auc:.3f}", _interval(one, 3), f"{one.sensitivity:.2f}", f"{one.specificity:.2f}")
        rows.append([SETS.get(one.trained_on, one.trained_on), SETS[source] + PARTS[part or "test"], one.n, *found])
    return rows


def tried() -> list[list[object]]:
    """What step two could do otherwise: AUC by cross-validation inside the training lists, and milliseconds."""
    table = pd.read_csv(RESULTS / "tb_tried.csv").set_index(["about", "trained_on", "tested_on"])
    columns = [("both", "montgomery"), ("both", "shenzhen"), ("montgomery", "montgomery"), ("shenzhen", "shenzhen")]
    heads = ("Montgomery, from both", "Shenzhen, from both", "Montgomery alone", "Shenzhen alone", "ms a radiograph")
    rows: list[list[object]] = [["setting", *heads]]
    for about in table.index.unique("about"):
        aucs = [f"{table.loc[(about, *one), 'auc']:.3f}" for one in columns]
        rows.append([about, *aucs, f"{table.loc[(about, *columns[0]), 'film_ms']:.0f}"])
    return rows


def screening() -> list[list[object]]:
    """The screener from file to label, on the test lists."""
    rows: list[list[object]] = [["tested on", "n", "no answer", "AUC", "95 % interval", "sensitivity", "specificity"]]
    for one in pd.read_csv(RESULTS / "tb_shipped.csv").itertuples():
        found = (f"{one.auc:.3f}", _interval(one, 3), f"{one.sensitivity:.2f}", f"{one.specificity:.2f}")
        rows.append(
            [SETS[one.tested_on] + ("" if one.tested_on == "both" else " test"), one.n, one.without_probability, *found]
        )
    return rows


def scale() -> list[list[object]]:
    speed = pd.read_csv(RESULTS / "scale.csv").query("what == 'speed'").set_index(["px", "workers"])
    rows = [["radiographs of", "1 worker", "2 workers", "CPU seconds each"]]
    for px in speed.index.unique("px"):
        one, two = speed.loc[(px, 1)], speed.loc[(px, 2)]
        rates = [f"{each.images_per_s:.2f}" for each in (one, two)]
        rows.append([f"{px} px, {two.mb_per_film:.2f} MB", *rates, f"{two.cpu_s_per_film:.4f}"])
    return rows


def time_to_dice() -> list[list[object]]:
    found = read_json(RESULTS / "time_to_dice.json")["contestants"]
    rows = [["", "parameters", "radiographs per second", "radiographs needed", "seconds to 0.95", "times ours"]]
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
    return [f"not reached: {one['best_dice']:.3f} after {films:,}", f"more than {seconds}", f"more than {times}"]


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


def speedrun() -> list[list[object]]:
    """The records of speedrun.py, the fastest first; nothing before the first one."""
    path = RESULTS / "speedrun.json"
    records = [one for one in read_json(path) if one["record"]] if path.exists() else []
    rows: list[list[object]] = [["seconds", "Dice", "worst seed", "radiographs seen", "machine", "what changed"]]
    for one in sorted(records, key=lambda one: one["seconds"])[:8]:
        scores = (f"{one['dice']:.4f}", f"{one['worst_dice']:.4f}")
        rows.append([f"**{one['seconds']:.1f}**", *scores, f"{one['films']:,}", one["machine"], one["changed"]])
    return rows if records else []


def cards() -> list[list[object]]:
    """What benchmarks/gpu.py has measured, a row per card; nothing before the first one."""
    rows: list[list[object]] = [
        ["card", "training at 256 px, images/s", "at 384 px", "31M U-Net at 572 px", "masks/s", "seconds to 0.95"]
    ]
    for found in map(read_json, sorted((RESULTS / "gpu").glob("*.json"))):
        speeds, classic = (found.get(part, {}).get("rows", []) for part in ("speeds", "classic"))
        masks = found.get("inference", {}).get("images_per_s", {}).values()
        seconds = [run["seconds"]["pooled"] for run in found.get("time_to_dice", {}).get("runs", [])]
        rates = [[row["images_per_s"] for row in speeds if row["size"] == size] for size in (256, 384)]
        rates += [[row["images_per_s"] for row in classic], masks]
        best = [f"{max(filter(None, some)):.0f}" if any(some) else "" for some in rates]
        reached = f"{median(seconds):.1f}" if seconds and None not in seconds else ""
        rows.append([f"{found['card']['card']}, {found['card']['precision']}", *best, reached])
    return rows if len(rows) > 1 else []


def pareto() -> list[list[object]]:
    rows: list[list[object]] = [["width", "depth", "patch, px", "convolutions", "size, px", "parameters", "ms", "Dice"]]
    for one in pd.read_csv(RESULTS / "pareto.csv").sort_values("ms").itertuples():
        shape = [one.base_channels, one.depth, one.patch, one.conv, one.size]
        rows.append([*shape, f"{one.parameters / 1e6:.2f}M", f"{one.ms:.1f}", f"{one.val_dice:.4f}"])
    return rows


def training() -> list[list[object]]:
    rows = [["training at 256 px, batch 8", "parameters", "radiographs per second", "times slower than the trainer"]]
    return rows + [
        [one.contestant, f"{one.parameters / 1e6:.2f}M", f"{one.images_per_s:.1f}", f"{one.trainer_is_faster_by:.2f}"]
        for one in pd.read_csv(RESULTS / "bench_train.csv").itertuples()
    ]


def synthetic() -> list[list[object]]:
    found = read_json(RESULTS / "synthetic.json")
    mixed, (real, both) = found["mixed"], found["mixed"]["training_films"]
    return [
        ["trained on", "radiographs", *TESTED.values()],
        ["synthetic radiographs alone: no real one ever seen", DRAWN, *_dice(found["alone"])],
        ["real ones alone", real, *_dice(mixed["real"])],
        ["both, at equal steps", both, *_dice(mixed["real_and_samples"])],
    ]


def synthetic_number() -> list[list[object]]:
    return _by_set("number", "synthetic radiographs, 600 steps each")


def synthetic_modes() -> list[list[object]]:
    return _by_set("modes", "texture modes, 400 radiographs, 600 steps each")


def _by_set(study: str, heading: str) -> list[list[object]]:
    found = read_json(RESULTS / "synthetic.json")[study]
    names = [name for name in found if isinstance(found[name], dict)]
    return [[heading, *names], *zip(TESTED.values(), *(_dice(found[name]) for name in names))]


def _dice(scores: dict[str, dict[str, float]]) -> list[str]:
    return [f"{scores[source]['dice']:.4f}" for source in TESTED]


TABLES = {
    table.__name__: table
    for table in (
        *(
            reaches,
            protocols,
            distances,
            groups,
            worse,
            artefacts,
            gains,
            sets,
            average,
            refusals,
            others,
            flags,
            tb,
            tried,
        ),
        *(screening, scale, speedrun, cards, time_to_dice, pareto, speed, training, synthetic, synthetic_number),
        *(synthetic_modes, card_lungs, card_ccby, card_tb),
    )
}
