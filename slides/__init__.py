"""The notebooks as slides: ``python -m slides.make``."""

from benchmarks import tell_missing_packages_in_a_line

tell_missing_packages_in_a_line()
