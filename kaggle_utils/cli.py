"""The command line: ``python -m kaggle_utils COMMAND --help``. Parses, looks at what was given, runs one command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from pathlib import Path

from . import __version__, files
from .commands import COMMANDS, GROUPS, SECTIONS, Command
from .config import RENAMED


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """The default after each option that has one worth saying."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default in ("", [], ()):
            return action.help or ""
        if isinstance(action.default, (list, tuple)):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action) or ""


def build_parser() -> argparse.ArgumentParser:
    """The parser, with a subcommand for each of :mod:`commands`."""
    parser = argparse.ArgumentParser(
        prog=_prog(),
        usage=f"{_prog()} [-h] [--version] COMMAND ...",
        description="Lung segmentation in chest radiographs with a U-Net.",
        epilog=_list_commands(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"unet-lung {__version__}")
    parser.set_defaults(parser=parser)
    commands = parser.add_subparsers(prog=_prog(), dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    for command in COMMANDS:
        _add(commands, command)
    for name, (about, actions, members) in GROUPS.items():
        group = commands.add_parser(name, help=about, description=about)
        within = group.add_subparsers(dest="action", required=True, metavar="ACTION", help=actions)
        for command in members:
            _add(within, command)
    return parser


def _list_commands() -> str:
    """What each command does, in sections."""
    about = {command.name: command.about for command in COMMANDS} | {name: group[0] for name, group in GROUPS.items()}
    width, lines = min(shutil.get_terminal_size().columns, 120) - 2, []
    for title, names in SECTIONS.items():
        lines.append(f"{title}:")
        for name in names:
            lines += textwrap.wrap(
                about[name].partition(";")[0], width, initial_indent=f"  {name:<11}", subsequent_indent=" " * 13
            )
        lines.append("")
    return "\n".join([*lines, f"`{_prog()} COMMAND --help` says more of one."])


def _prog() -> str:
    """The command as it was typed."""
    name = Path(sys.argv[0]).stem
    return name if name == "unet-lung" else "python -m kaggle_utils"


def _add(commands: argparse._SubParsersAction, command: Command) -> None:
    sub = commands.add_parser(command.name, help=command.about, description=command.about, formatter_class=_Help)
    sub.set_defaults(run=command, parser=sub)
    command.add_options(sub)


def _parse(argv: list[str]) -> argparse.Namespace:
    """The command's arguments; a wrong option ends the program with the command's own usage and the nearest option."""
    parser = build_parser()
    _check_names(parser, [word for word in argv if not word.startswith("-")])
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        actions = [action for action in args.parser._actions if action.help != argparse.SUPPRESS]
        options = [option for action in actions for option in action.option_strings]
        near = [get_close_matches(word.partition("=")[0], options, 1) for word in unknown if word.startswith("-")]
        advice = " and ".join(found[0] for found in near if found)
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}" + (advice and f"; did you mean {advice}?"))
    if args.command is None:
        parser.error("a COMMAND is missing; --help lists them")
    return args


def _check_names(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Ends the program at the name of a command that there isn't, with the nearest one."""
    for word in words:
        subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not subparsers:
            return
        names = subparsers[0].choices
        if word not in names:
            near = get_close_matches(word, names, 1)
            parser.error(f"no command {word}; " + (f"did you mean {near[0]}?" if near else f"try {', '.join(names)}"))
        parser = names[word]


def _tell_renamed(argv: list[str], args: argparse.Namespace) -> None:
    """Says on stderr what an option's earlier name is now."""
    given = [word.partition("=")[0] for word in argv]
    for old, new in RENAMED.items():
        for start in ("--", "--no-"):
            if start + old in given and hasattr(args, new):
                print(f"{start}{old} is now {start}{new.replace('_', '-')}", file=sys.stderr)


def _check_paths(command: Command, args: argparse.Namespace) -> None:
    """Looks at the paths that were given, before the libraries are loaded.

    Raises:
        OSError: a path is not there, or of the wrong kind.
        ValueError: an s3:// address where only a path works: it would become a folder ``s3:`` here.
    """
    from .pictures.find import check_patterns
    from .scale.s3 import is_address

    given = {name: value if isinstance(value, list) else [value] for name, value in vars(args).items()}
    for name, paths in given.items():
        address = next(filter(is_address, paths), None)
        if address and name not in command.s3:
            raise ValueError(
                f"{name} is a folder or a file of this machine, not {address}; `python -m kaggle_utils s3 --help` "
                "says how to copy"
            )
    checks = {
        "data": files.manifest_path,
        "input": files.check_input,
        "images": files.check_input,
        "weights": files.check_weights,
        "segmenter": files.check_weights,
        "path": lambda pattern: check_patterns([pattern]),
        "out": command.check_out,
    }
    for name, check in checks.items():
        for path in given.get(name, []):
            if path and not is_address(path):
                check(path)


def _lock(command: Command, args: argparse.Namespace) -> AbstractContextManager:
    """Keeps a second run from what a command writes on this machine, for as long as the first one runs."""
    from .scale.s3 import is_address

    out = command.writes(args)
    if not out or is_address(out) or not _is_main():
        return nullcontext()
    lock = Path(out) / files.LOCK
    if not command.is_folder:
        lock = Path(out).with_name(f".{Path(out).name}{files.LOCK}")
    return files.locked(lock, out)


def _is_main() -> bool:
    """Whether this process is not one of those that train beside the one that writes."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun's; PyTorch isn't loaded to be asked
        return True
    from .distributed import is_main

    return is_main()


def _explain(error: BaseException, command: Command, args: argparse.Namespace) -> str | None:
    """What a user can do about an error, in one line; None where it is a fault of this program."""
    if isinstance(error, KeyboardInterrupt):
        return f"stopped{command.way_on}"
    if isinstance(error, OSError) and error.errno in files.FULL:
        place = error.filename or getattr(args, "out", None) or "a folder"
        return f"{place}: {error.strerror}: make room there{command.way_on}"
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return str(error)
    if isinstance(error, ImportError):
        advice = "" if "pip install" in str(error) else ": pip install -r requirements.txt"
        return f"{error}{advice}"
    if _lacks_memory(error):
        smaller = [
            f"--{name.replace('_', '-')}"
            for name in ("batch_size", "size", "sizes", "base_channels", "workers", "jobs")
            if hasattr(args, name)
        ]
        advice = f": try a smaller {' or '.join(smaller)}" if smaller else ""
        return f"the memory is too small for this{advice}"
    return None


def _lacks_memory(error: BaseException) -> bool:
    """Whether it is Python's, PyTorch's or OpenCV's way of saying so; only Python's has a type known without them."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    words = ("can't allocate memory", "not enough memory", "Insufficient memory", "Unable to allocate")
    return any(word in said for word in words)


def main(argv: list[str] | None = None) -> int:
    """Runs a command; what a user can mend is one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal has no letters for ends no run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if argv is None else argv
    args = _parse(words)
    command: Command = args.run
    if _is_main():
        _tell_renamed(words, args)
    try:
        _check_paths(command, args)
        with _lock(command, args):
            return command.run(args)
    except (Exception, KeyboardInterrupt) as error:
        line = _explain(error, command, args)
        if line is None:
            raise
        print(f"unet-lung {args.command}: {files.printable(line)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    sys.exit(main())
