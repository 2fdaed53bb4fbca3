"""Everything that decides a training run, in one frozen dataclass; it needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

PREPARED_SIDES = (8, 8192)  # px, least and most of prepared films


def setting(default: object, about: str) -> object:
    """A field of the configuration with its unit, range or reason, which is also its help text on the command line."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. Stored whole in each checkpoint, and rebuilt from there.

    Where the defaults are from (``results/tuning/STUDY.csv``, validation films, three seeds): ``augment`` from ``augmentation`` and
    ``longer``: light was ahead in 8 and in 32 epochs. ``dice_weight`` from ``loss``: best of the mixtures, level with
    cross-entropy alone. Both together were not behind in a whole run at 384 px, one seed. ``width``, ``depth``, ``patch``
    and ``size`` are the knee of ``results/pareto.csv`` (one seed). In ``optimisation``, 8 epochs, ``weight_decay`` and ``ema``
    made no difference; higher ``lr`` and smaller ``batch`` were ahead, which whole runs have yet to show, and are left as they were.
    """

    # data
    sources: tuple[str, ...] = setting(("montgomery", "shenzhen"), "sets to train on; JSRT is for testing across sets")
    suspects: bool = setting(False, "train on the masks of splits/suspect_masks.csv too, which include heart or stomach or are displaced")
    heads: bool = setting(True, "an output for each set, whose masks alone it learns: each set's annotators drew by rules of their own")
    films: int = setting(0, "train on this many films, drawn by the seed; 0 is all")
    size: int = setting(384, "px, side of the square the network sees")
    augment: str = setting("light", "none, light or full, see data.augmentation")
    batch: int = setting(8, "films a step, of all processes together")
    workers: int = setting(-1, "loader processes; -1 is none on a CPU, which they would take from training, and all cores beside a GPU")
    # model
    width: int = setting(16, "channels of the first level, doubled at each level below")
    depth: int = setting(3, "how many times the resolution is halved")
    norm: str = setting("batch", "batch, group or instance")
    up: str = setting("bilinear", "bilinear or transposed")
    patch: int = setting(2, "px, side of the patches that the first convolution sees as channels; 1 is none, as in the paper")
    conv: str = setting("plain", "plain, or separable: depthwise and 1x1 convolutions")
    # loss
    loss: str = setting("bce_dice", "bce, dice, bce_dice, tversky or focal")
    dice_weight: float = setting(0.25, "in [0, 1], the rest is cross-entropy's")
    # optimisation
    epochs: int = setting(60, "passes over the training films")
    minutes: float = setting(0.0, "time budget; the learning rate falls with it, 0 is none")
    lr: float = setting(2e-3, "peak learning rate of AdamW")
    weight_decay: float = setting(1e-2, "of AdamW, decoupled")
    warmup: float = setting(0.05, "share of the run in which the learning rate rises")
    clip: float = setting(1.0, "largest norm of the gradient")
    ema: float = setting(0.99, "decay per step of the averaged weights, which are the ones kept; 0 is none")
    patience: int = setting(0, "epochs without a better validation Dice before stopping, 0 is never")
    # the machine
    seed: int = setting(0, "of initial weights, order and augmentation")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps (a Mac's GPU)")
    precision: str = setting("auto", "auto, fp32, bf16 or fp16; auto is the fastest the hardware has")
    compile: bool = setting(False, "torch.compile: minutes of waiting for some 10-30 percent on long runs")

    def __post_init__(self):
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision is auto, fp32, bf16 or fp16, not {self.precision!r}")
        for name, low, high in (("warmup", 0, 0.9), ("clip", 1e-6, 1e6), ("size", 16, 4096), ("batch", 1, 4096), ("epochs", 1, 100_000), ("width", 1, 1024),
                                ("depth", 1, 8), ("patch", 1, 16), ("films", 0, 1e9), ("patience", 0, 1e9),
                                ("weight_decay", 0, 10), ("minutes", 0, 1e6), ("lr", 0, 10), ("dice_weight", 0, 1), ("ema", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is in [{low}, {high}], not {getattr(self, name)}")

    @property
    def options(self) -> list[str]:
        """Every option of ``python -m kaggle_utils train`` that differs from its default."""
        words = []
        for f in fields(self):
            value, option = getattr(self, f.name), f.name.replace("_", "-")
            if isinstance(value, bool):
                words += [f"--{option}" if value else f"--no-{option}"] * (value != f.default)
            elif value != f.default:
                words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
        return words

    @property
    def command(self) -> str:
        """The command line of this run, without --data and --out."""
        return " ".join(["python -m kaggle_utils train", *self.options])

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> TrainConfig:
        """Rebuilds a stored configuration; an unknown key is an error, not a default in silence."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}; there are {', '.join(f.name for f in fields(cls))}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
