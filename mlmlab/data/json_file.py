"""Files that hold one JSON object, tables of what its keys may hold, and arrays of rows."""

import io
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmlab.errors import Code, Problem, UserError


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
            str(file), code=Code.CORRUPT, found=str(error), expected="a JSON object", remedy=remedy
        ) from error
    return content


@dataclass(frozen=True)
class Kind:
    """What a key may hold."""

    expected: str
    allows: Callable[[Any], bool]


def integer(lowest: int, highest: int) -> Kind:
    """A JSON number without a decimal point, limits included."""
    return Kind(
        f"an integer from {lowest} to {highest}",
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
            yield Problem(where, found, kind.expected, remedy, code=Code.CORRUPT)


_CHUNK_CHARACTERS = 1 << 20
_FIRST = re.compile(r"\s*\[\s*(\])?")
_NEXT = re.compile(r"(?:,|(\]))\s*")


def json_array(text: io.TextIOBase, path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of an array with their numbers from 1, decoded one by one: memory holds a chunk of
    the text, or the longest row.

    By hand, because ijson's parser does not read what `json.loads` reads: half a surrogate pair
    silently becomes a question mark or another character, and an integer of 65 bits an error.

    Raises:
        UserError: the array is damaged.
    """
    decode = json.JSONDecoder().raw_decode
    buffer, place, number = text.read(_CHUNK_CHARACTERS), 0, 0
    while True:
        try:
            mark = (_NEXT if number else _FIRST).match(buffer, place)
            if mark is None:
                raise json.JSONDecodeError("neither a comma nor the array's end", buffer, place)
            if mark[1]:
                break
            row, end = decode(buffer, mark.end())
            while buffer[end : end + 1].isspace():
                end += 1
            if end == len(buffer):  # a number may continue in the next chunk
                raise json.JSONDecodeError("the array is not closed", buffer, end)
        except json.JSONDecodeError as error:
            # No literal, escape or delimiter has 16 characters: this one may have been cut.
            may_be_cut = error.pos > len(buffer) - 16 or error.msg.startswith("Unterminated string")
            # As much again as there is: a long row is not decoded once per chunk.
            size = max(_CHUNK_CHARACTERS, len(buffer) - place)
            if not may_be_cut or not (more := text.read(size)):
                raise _damaged(f"{path}, row {number + 1}", error.msg, buffer[place:]) from error
            buffer, place = buffer[place:] + more, 0
        except (ValueError, RecursionError) as error:  # an endless integer, or endless nesting
            raise _damaged(f"{path}, row {number + 1}", str(error), buffer[place:]) from error
        else:
            number, place = number + 1, end
            yield number, row
    rest = (buffer[mark.end() :] + text.read(_CHUNK_CHARACTERS)).strip()
    if rest:
        what = "text after the array's end"
        raise _damaged(f"{path}, after row {number}", what, rest, "one JSON array and nothing else")


def _damaged(
    where: str, what: str, rest: str, expected: str = "a JSON array of objects"
) -> UserError:
    return UserError.of(
        where,
        code=Code.CORRUPT,
        found=f"{what}: {rest[:60]}",
        expected=expected,
        remedy="fix the file; one object per line (.jsonl) is read too",
    )
