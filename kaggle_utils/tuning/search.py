"""The study ``search``: Optuna looks for settings that no list holds, and stops runs that fall behind.

Its storage is a database that several processes, or machines, may share; the table is written from there after each
trial.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import create_engine, inspect  # comes with optuna
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from ..config import TrainConfig
from .study import Run, beside, fingerprint, read_table, train_run, write_rows

# What is searched, and how far; the widest network takes about three times as long as the default one.
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(2e-4, 2e-2, log=True),
    "weight_decay": FloatDistribution(1e-4, 0.3, log=True),
    "dice_weight": FloatDistribution(0.0, 1.0),
    "ema_decay": CategoricalDistribution((0.0, 0.9, 0.97, 0.99, 0.997)),
    "batch_size": CategoricalDistribution((4, 8, 16)),
    "base_channels": IntDistribution(8, 32, step=8),
    "augment": CategoricalDistribution(("none", "light", "full")),
}


def search(
    data: str | Path, config: TrainConfig, path: str | Path, *, storage: str, trials: int = 60, jobs: int | None = None
) -> pd.DataFrame:
    """Searches until there are so many trials; the first one is the default.

    Args:
        data: prepared set.
        config: what is not searched.
        path: table to write, see :mod:`tuning.study`; a trial that diverged counts as pruned and is recorded as
            diverged.
        storage: a URL of SQLAlchemy's.
        trials: pruned ones, and those of earlier or other calls on this storage, included.
        jobs: trials beside each other, see :func:`tuning.study.beside`.

    Raises:
        ValueError: the table has trials that the storage doesn't have for these films, this size and length.
    """
    study = open_study(data, config, storage)
    done = ended(study)
    lost = set(read_table(path)["run"]) - {_name(trial) for trial in done}
    if lost:
        raise ValueError(
            f"{path} has {len(lost)} trials of another storage, or of other films, size or epochs: "
            "name that storage, or move the table away to start anew"
        )
    default = {name: getattr(config, name) for name in SPACE}
    study.enqueue_trial(default, skip_if_exists=True)
    tasks = [(data, config, storage, trials)] * (trials - len(done))
    for _ in tqdm(
        beside(run_trial, tasks, jobs), "search", max(trials, len(done)), initial=len(done), unit="trial", disable=None
    ):
        write_rows(path, [{"study": "search", **row} for trial in ended(study) for row in trial.user_attrs["rows"]])
    return read_table(path)


def run_trial(data: str | Path, config: TrainConfig, storage: str, trials: int) -> None:
    """One trial, unless others have done the last one; its seed is its number."""
    study = open_study(data, config, storage)
    if len(ended(study)) >= trials:
        return

    trial = study.ask(SPACE)

    def prune(row: dict[str, Any]) -> bool:
        trial.report(row["val_dice"], row["epoch"])
        return row["epoch"] + 1 < config.epochs and trial.should_prune()

    try:
        rows = train_run(Run(_name(trial)), data, replace(config, **trial.params, seed=trial.number), prune)
    except BaseException:  # a full disk, Ctrl-C: it would stand there as one that runs
        study.tell(trial, state=TrialState.FAIL)
        raise
    trial.set_user_attr("rows", rows)
    if rows[-1]["status"] == "finished":
        study.tell(trial, rows[-1]["val_dice"])
    else:
        study.tell(trial, state=TrialState.PRUNED)


def open_study(data: str | Path, config: TrainConfig, storage: str) -> optuna.Study:
    """The search of these films, this size and this length in the storage; a new one if there is none.

    Raises:
        ValueError: the storage is no database that can be opened, or somebody else's.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the bar says how far it is
    shown = re.sub("://.*@", "://…@", storage)  # without a password
    try:
        there = set(inspect(create_engine(storage)).get_table_names())
        if there and "studies" not in there:
            raise ValueError(
                f"storage {shown}: a database of something else (its tables are {', '.join(sorted(there)[:3])}): "
                "name another one"
            )
        return optuna.create_study(
            study_name=f"{config.size} px, {config.epochs} epochs, films {fingerprint(data)}",
            storage=storage,
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(constant_liar=True),  # others' running trials count as bad
            pruner=optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=1),
        )
    except (SQLAlchemyError, OptunaError) as error:
        raise ValueError(
            f"storage {shown}: {str(error).splitlines()[0]}; "
            "expected is a URL of SQLAlchemy's, such as sqlite:///search.db"
        ) from None


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a kill didn't stop."""
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _name(trial: Trial | FrozenTrial) -> str:
    return f"trial {trial.number}"
