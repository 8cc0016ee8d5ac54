"""Colours, where a person sees them: on a terminal, unless NO_COLOR is set (no-color.org)."""

import os
import sys
from enum import Enum
from typing import TextIO


class Style(Enum):
    """What a text is, by its ANSI code (ECMA-48, select graphic rendition)."""

    STRONG = "1"
    LABEL = "36"
    GOOD = "32"
    WARNING = "33"
    ERROR = "1;31"
    MASKED = "30;43"
    RANDOM = "30;45"
    KEPT = "30;42"


def styled(text: str, style: Style, stream: TextIO | None = None) -> str:
    """The text in its colour, or as it is where `stream` (default: stdout) shows none."""
    stream = sys.stdout if stream is None else stream
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not stream.isatty() else f"\x1b[{style.value}m{text}\x1b[0m"
