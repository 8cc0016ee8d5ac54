"""Files that hold one JSON object, and tables of what their keys may hold."""

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmlab.errors import Problem, UserError


def read_json_object(file: Path, *, remedy: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{reprlib.repr(content)}, not an object")
        # JSON can spell half of a surrogate pair, which neither a file nor tokenizers can hold.
        json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError.of(
            str(file), found=str(error), expected="a JSON object", remedy=remedy
        ) from error
    return content


@dataclass(frozen=True)
class Kind:
    """What a key may hold."""

    expected: str
    allows: Callable[[Any], bool]


def whole_number(lowest: int, highest: int) -> Kind:
    """A JSON number without a decimal point, limits included."""
    return Kind(
        f"a whole number from {lowest} to {highest}",
        lambda value: type(value) is int and lowest <= value <= highest,
    )


def number(lowest: float, highest: float) -> Kind:
    """Any JSON number, limits included."""
    return Kind(
        f"a number from {lowest:g} to {highest:g}",
        lambda value: type(value) in (int, float) and lowest <= value <= highest,
    )


SWITCH = Kind("true, false or null", lambda value: value is None or isinstance(value, bool))


def wrong_values(
    content: Mapping[str, Any], table: Mapping[str, Kind], where: str, *, remedy: str
) -> Iterator[Problem]:
    """One problem for every key of the table that holds something else; a missing key is fine."""
    for key, kind in table.items():
        if key in content and not kind.allows(content[key]):
            found = f"{key}={reprlib.repr(content[key])}"
            yield Problem(where, found, kind.expected, remedy)
