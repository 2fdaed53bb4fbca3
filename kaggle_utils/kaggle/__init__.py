"""Kaggle: where a notebook finds its films there, and how notebooks, code and weights get there.

- ``workspace``: the folders of a notebook: on Kaggle, in a clone, or with nothing at all
- ``publish``: code as datasets, notebooks pushed and run, by Kaggle's own package and the metadata in
  ``notebooks/kaggle``
"""

from .workspace import open_workspace

__all__ = ["open_workspace"]
