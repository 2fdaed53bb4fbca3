"""For test_main.py and test_s3.py: of each command three processes that begin at the same moment, with the same words.

As a script, it takes modules and commands, lists in JSON, on stdin; so is the answer on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

N = 3


def at_once(folder: Path, commands: list[list[str]], modules: list[str]) -> list[list[tuple[int, str]]]:
    """Each command's status and stderr, of three processes that begin together in a folder with the modules loaded."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=folder,
        env=environment,
        check=True,
        timeout=300,
        input=json.dumps([modules, commands]),
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    from kaggle_utils.cli import main as command

    modules, commands = json.load(sys.stdin)
    for name in modules:
        importlib.import_module(name)
    json.dump([three(command, words) for words in commands], sys.stdout)


def three(command, words: list[str]) -> list[tuple[int, str]]:
    waiting, start = os.pipe()
    children = [fork(command, words, waiting, start, Path(f"stderr {n}")) for n in range(N)]
    os.close(waiting)
    os.close(start)  # which all wait for
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [(status, Path(f"stderr {n}").read_text()) for n, status in enumerate(statuses)]


def fork(command, words: list[str], waiting: int, start: int, stderr: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        os.close(start)
        os.read(waiting, 1)
        with stderr.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
            status = command(words)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
