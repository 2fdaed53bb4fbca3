"""What both pages say to a visitor: of a mask's flag, and of each note in plain words."""

from __future__ import annotations

import re

FLAGS = {  # by Quality.flag
    "ok": "looks right",
    "check": "look at it before you use it",
    "reject": "probably of no use",
}
# A note, as a regular expression that takes all of it, and what it says to a visitor. Python and
# browsers know these expressions.
PLAIN = {
    "the network is unsure of many pixels": "The network is unsure where much of the lungs' edge runs.",
    "pieces or holes beside two lungs": "It found pieces beside the two lungs, or holes in them, and left them out.",
    "lungs of an unusual size for the film": "The lungs are unusually large or small for this film.",
    "lungs of an unusual shape": "The lungs' outline has an unusual shape.",
    "not two lungs|the lungs are not two, or have no corners": "It didn't find two separate lungs.",
    "no lung found": "It found no lung.",
    r"lungs of an unusual shape or place \((.+) sd\)": (
        "Few lungs have this shape or lie here: \\1 standard deviations from usual."
    ),
    r"lungs cut by the frame \((.+)\)": "The film ends before the lungs do, at its \\1 edge.",
    r"lungs (\d+) mm high, (.+) are (\d+) to (\d+): (.+)\?": (
        "By its file the lungs are \\1 mm high; \\2 are \\3 to \\4 mm: \\5?"
    ),
    "a negative: inverted": "The film is a negative: its grays were inverted.",
    "(?:lay on its side|upside down): turned by (.+)": "The film didn't stand upright: it was turned by \\1.",
    "put right as its file says": "The film was put upright as its file says.",
    "doesn't lie as its file says: put right by what is seen alone": (
        "Its file says another way up than the film shows; it was put upright by what it shows."
    ),
    r"a picture in colour \((.+) of it\)": "Part of the picture (\\1) is in colour, which radiographs aren't.",
    "hardly like a frontal chest film": "It hardly looks like a frontal chest radiograph.",
    "perhaps turned or a negative: left as it is": "It may be turned or a negative; it was left as it is.",
    "mirrored, or the heart is on the right: left as it is": (
        "It is mirrored, or the heart is on the right: right and left may be swapped."
    ),
    r"constant border: (.+)": "The film has an empty border, in pixels: \\1.",
    "no spacing": "Its file says nothing of the size of a pixel: measurements are in pixels.",
    r"no spacing: (.+) not that of a film": (
        "The size of a pixel in its file (\\1) can't be right: measurements are in pixels."
    ),
    "spacing from PixelSpacing": "Millimetres are those in the patient, by its file (PixelSpacing).",
    "spacing from ImagerPixelSpacing": (
        "Millimetres are those on the detector, a few per cent more than in the patient."
    ),
    "spacing from NominalScannedPixelSpacing": "Millimetres are those of the scanned film.",
    "MONOCHROME1 inverted": "Its file stores the grays inverted; they are shown as films are seen.",
    r"(window|VOI LUT)( \d+)?": "Its grays are shown by its own \\1\\2.",
    "burned-in annotation": "Its file says that text is burned into the picture: it may name the patient.",
    r"view (.+): not frontal": "Its file says that the view is \\1, which isn't frontal.",
    r"refused: (.+)": "It isn't segmented: \\1.",
}


def plain(note: str) -> str:
    """A note or reason in words for a visitor; as it is where there are none."""
    for pattern, text in PLAIN.items():
        found = re.fullmatch(pattern, note)
        if found:
            return found.expand(text)
    return note
