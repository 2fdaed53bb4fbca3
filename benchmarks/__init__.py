"""The measurements behind the pages' numbers: ``python -m benchmarks.NAME --help`` says what each of them does."""

import sys


def tell_missing_packages_in_a_line(*mendable: type[Exception]) -> None:
    """Ends a command that lacks a package of the ``dev`` extra, or raises a mendable error, without a traceback."""

    def tell(kind, error, trace):
        if isinstance(error, ModuleNotFoundError):
            print(f'{error.name} is not installed: pip install -e ".[dev]"', file=sys.stderr)
        elif isinstance(error, mendable):
            print(error, file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = tell


tell_missing_packages_in_a_line(ValueError, OSError)
