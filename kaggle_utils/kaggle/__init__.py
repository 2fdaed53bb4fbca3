"""Kaggle: where a notebook finds its films and weights there, and how notebooks, code and weights get there.

- ``workspace``: the folders of a notebook: on Kaggle, in a clone, or with nothing at all
- ``weights``: weights as a Kaggle Model: attached, downloaded, uploaded, by kagglehub
- ``publish``: code as a dataset, notebooks pushed and run, by Kaggle's own package and the metadata in
  ``notebooks/kaggle``
"""

from .weights import find_model
from .workspace import open_workspace

__all__ = ["find_model", "open_workspace"]
