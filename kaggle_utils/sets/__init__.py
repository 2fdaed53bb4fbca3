"""Raw sets: where radiographs and their masks lie, before they are prepared.

``film``    one radiograph: its files, and its masks in whatever form
``public``  Montgomery, Shenzhen, JSRT/SCR and Kermany, recognised by their names
``own``     a set of your own: two folders, or a folder and a table
"""

from pathlib import Path

from .film import RawFilm, combined_mask
from .own import find_own
from .public import find_films, read_clinical

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"  # twelve children's radiographs that may be shown
__all__ = ["EXAMPLES", "RawFilm", "combined_mask", "find_films", "find_own", "read_clinical"]
