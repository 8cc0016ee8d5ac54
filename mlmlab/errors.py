"""What goes wrong, in two types: the user's input, and the run itself.

`UserError` carries problems with four parts (where, found, expected, remedy), so that every
message answers the same four questions and a test can check each of them.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Code(Enum):
    """The kind of a mistake, for programs and tests. Codes are stable; the words of a message are
    not."""

    SYNTAX = "syntax"
    """A command line that cannot be parsed."""
    UNKNOWN_KEY = "unknown_key"
    REMOVED_KEY = "removed_key"
    UNKNOWN_OPTION = "unknown_option"
    """No such option in a group."""
    WRONG_TYPE = "wrong_type"
    """A value of another type than the key's, or none of its options."""
    INVALID = "invalid"
    """A value of the right type that cannot work: out of range, say."""
    MISSING = "missing"
    """Nothing where a value is needed."""
    CONFLICT = "conflict"
    """Values that exclude each other."""
    MISMATCH = "mismatch"
    """Model, tokenizer and text that do not fit together."""
    NOT_FOUND = "not_found"
    CORRUPT = "corrupt"
    """A file that is damaged, or not what its name says."""
    UNSUPPORTED = "unsupported"
    """An intact file of a kind that mlmlab does not read."""
    ENCODING = "encoding"
    BAD_ROW = "bad_row"
    NO_TEXT = "no_text"
    """No text where there should be some, or too little of it."""
    CHANGED = "changed"
    """Something else than when the run began."""
    OTHER_VERSION = "other_version"
    """Written by another version of mlmlab."""
    NOT_WRITABLE = "not_writable"
    IN_USE = "in_use"
    """A folder that another run works in, or that is not empty."""
    UNREACHABLE = "unreachable"
    """A host that does not answer, or not with the file."""
    UNAVAILABLE = "unavailable"
    """A device that this machine lacks."""


@dataclass(frozen=True)
class Problem:
    """One mistake in the user's input."""

    where: str
    """The config key, option or file that is wrong."""
    found: str
    """What was found there."""
    expected: str
    """What is allowed there."""
    remedy: str
    """What to type or do."""
    code: Code

    def __str__(self) -> str:
        parts = [self.where]
        for label, text in (
            ("found", self.found),
            ("expected", self.expected),
            ("do", self.remedy),
        ):
            if text:
                parts.append(_indented(label, text))
        return "\n".join(parts)


def _indented(label: str, text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, 66, break_long_words=False, break_on_hyphens=False) or [""]
    return f"  {label:<9} " + "\n            ".join(lines)


class UserError(Exception):
    """The user's input is wrong. Commands print it and exit with its status."""

    status = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def of(cls, where: str, *, code: Code, found: str, expected: str, remedy: str) -> "UserError":
        """The usual case: a single problem."""
        return cls([Problem(where, found, expected, remedy, code)])


class RunFailed(Exception):  # noqa: N818 (an outcome, as KeyboardInterrupt is one)
    """The run itself failed, by a non-finite loss for instance. Commands print it and exit with its
    status."""

    status = 1


class FailedElsewhere(Exception):  # noqa: N818
    """Another process of the run failed, and prints why. Commands print nothing and exit with the
    same status: launchers report that of the first process to end."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        return f"another process of the run failed with status {self.status}"


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop by a signal, and has written a checkpoint. Commands print it and
    exit with the status that shells give to the signal: 128 and its number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signal_number
