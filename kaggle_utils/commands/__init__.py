"""What can be typed after ``unet-lung``: each command with its options beside it.

``prepare``   raw sets to a prepared folder, synthetic radiographs, shards
``training``  one network, the published protocols, tuning studies, the pages' pictures
``segment``   masks, scores, screening, the page, other runtimes
``remote``    Kaggle, S3
``common``    what a command is, and what several of them share

Nothing heavy is imported before a command runs: a mistyped path is told at once.
"""

from . import prepare, remote, segment, training
from .common import Command

COMMANDS = (*prepare.COMMANDS, *training.COMMANDS, *segment.COMMANDS)
GROUPS = {
    "kaggle": (
        "notebooks and code on Kaggle, by Kaggle's own package; run it in the folder of the clone",
        "publish or push; each has a --help of its own",
        remote.KAGGLE,
    ),
    "s3": (
        "copy folders to S3 and back, unpack archives there; credentials from the usual chain, "
        "a server other than Amazon's from AWS_ENDPOINT_URL",
        "upload, download or unzip; the same command resumes a stopped one",
        remote.S3,
    ),
}
# How help lists them.
SECTIONS = {
    "masks for your radiographs": ("predict", "screen", "app", "export"),
    "radiographs to learn from": ("prep", "synth", "fit-synth", "shards"),
    "networks and scores": ("train", "evaluate", "protocol", "tune", "plots"),
    "other machines": ("kaggle", "s3"),
}
__all__ = ["COMMANDS", "GROUPS", "SECTIONS", "Command"]
