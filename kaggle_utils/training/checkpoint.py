"""Checkpoints: all that a killed run needs to end as if it had not been killed."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..files import write_bytes


@dataclass
class Epoch:
    """How far an epoch is: what a checkpoint in the middle of it has to know."""

    batches: int = 0  # learned from
    loss: float = 0.0  # sum over the films of those whose loss was read
    films: float = 0.0
    started: float = 0.0  # seconds of the run before it

    def add(self, loss: float, films: float) -> None:
        """Counts films and the sum of their losses."""
        self.loss, self.films = self.loss + loss, self.films + films

    def summary(self, seconds: float) -> dict[str, float]:
        """Mean loss and films per second, so many seconds into the run."""
        return {"train_loss": self.loss / self.films, "images_per_s": self.films / (seconds - self.started)}


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes what :meth:`Trainer.resume` needs whole or not at all, with a checksum that any damage breaks."""
    buffer = io.BytesIO()
    torch.save(state, buffer)  # a zip file; its comment, which is empty, comes last and its length before that
    body = buffer.getvalue()[:-2] + len(_checksum(b"")).to_bytes(2, "little")
    write_bytes(path, body + _checksum(body))


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`write_checkpoint` wrote, the configuration and the epoch rebuilt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no checkpoint of this version; the message says what to do.
    """
    content, length = Path(path).read_bytes(), len(_checksum(b""))
    if _checksum(content[:-length]) != content[-length:]:
        raise damaged(path, "it has no or another checksum")
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    try:
        return state | {"config": TrainConfig.from_dict(state["config"]), "begun": Epoch(**state["begun"])}
    except (LookupError, TypeError, ValueError) as error:
        raise damaged(path, error) from None


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def damaged(path: str | Path, reason: object) -> ValueError:
    """The error of a checkpoint that can't be resumed."""
    said = " ".join(str(reason).split())[:200]
    return ValueError(
        f"{path}: a damaged checkpoint, or none of this version ({said}): move it away to start anew; "
        "best.safetensors beside it stays usable"
    )


def check_folder(out: Path, resume: bool) -> Path:
    """The checkpoint in a run's folder, which need not be there yet.

    Raises:
        FileExistsError: it is there, and not to be resumed.
        ValueError: the run would replace files that no run wrote: each leaves its settings beside them first.
    """
    last = out / "last.pt"
    if last.exists() and not resume:
        raise FileExistsError(f"{last} is there: resume that run (--resume) or choose another folder")
    there = [out / name for name in ("best.safetensors", "history.csv", "config.json") if (out / name).exists()]
    if there:
        try:
            TrainConfig.from_dict(json.loads((out / "config.json").read_text()))
        except (OSError, ValueError, TypeError, AttributeError):
            raise ValueError(
                f"{there[0]}: not of an earlier run, which would replace it: choose another folder"
            ) from None
    return last
