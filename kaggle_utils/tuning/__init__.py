"""Why the settings are what they are: studies, each one question and a table of runs.

- ``studies``: the questions, and what is run for each
- ``study``: one run as rows of a table, the table on disk, runs beside each other
- ``artefacts``: studies of what to learn from, compared by set and by artefact
- ``search``: Optuna looks for settings that no list holds
- ``mistakes``: bugs that training code really has, switched on one at a time
- ``protocol``: the published protocols, trained and tested
"""

from .artefacts import SCORED, run_scored
from .protocol import PROTOCOLS, run_protocol
from .studies import BASE, STUDIES, each, run_study, summarise_runs
from .study import train_run

__all__ = [
    "BASE",
    "PROTOCOLS",
    "SCORED",
    "STUDIES",
    "each",
    "run_protocol",
    "run_scored",
    "run_study",
    "summarise_runs",
    "train_run",
]
