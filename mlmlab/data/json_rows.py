"""JSON lines and JSON arrays as numbered rows; of an array only one row is in memory at a time."""

import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mlmlab.data.bad_rows import BadRows
from mlmlab.errors import UserError

_CHUNK_CHARACTERS = 1 << 20
_LONGEST_ROW_CHARACTERS = 1 << 28
_LONGEST_LITERAL = 16
"""Characters: more than a literal, an escape or a delimiter of JSON has."""


def json_rows(text: io.TextIOBase, path: Path, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    """The rows with their numbers from 1, of an array or of lines: the content decides.

    Raises:
        UserError: the array is damaged. A damaged line is a bad row.
    """
    start = text.read(_CHUNK_CHARACTERS)
    if start.lstrip().startswith("["):
        return _array(start, text, path)
    return _lines(start, text, path, bad_rows)


def _lines(
    start: str, text: io.TextIOBase, path: Path, bad_rows: BadRows
) -> Iterator[tuple[int, Any]]:
    # `start` was read to look at; what follows it may begin in the middle of a line.
    pending = io.StringIO(start + text.readline())
    for number, line in enumerate(chain(pending, text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except json.JSONDecodeError as error:
            bad_rows.add(
                f"{path}, row {number}",
                found=f"{error.msg} (column {error.colno}): {line.strip()[:60]}",
                expected="one JSON object a line",
                remedy="mend the line; name a plain text file .txt",
            )
            continue
        yield number, row


def _array(start: str, text: io.TextIOBase, path: Path) -> Iterator[tuple[int, Any]]:
    decode = json.JSONDecoder().raw_decode
    buffer, place, number = start.lstrip()[1:], 0, 0
    while True:
        place = _skip(buffer, place)
        try:
            if place < len(buffer) and buffer[place] == "]":
                _check_end(buffer[place + 1 :] + text.read(_CHUNK_CHARACTERS), path, number)
                return
            row, end = decode(buffer, place)
            end = _skip(buffer, end)
            if end == len(buffer):  # a number may go on in the next chunk
                raise json.JSONDecodeError("the array is not closed", buffer, end)
        except json.JSONDecodeError as error:
            buffer, place = buffer[place:], 0
            more = text.read(_CHUNK_CHARACTERS) if _may_be_cut(error) else ""
            if more and len(buffer) < _LONGEST_ROW_CHARACTERS:
                buffer += more
                continue
            raise UserError.of(
                f"{path}, row {number + 1}",
                found=f"{error.msg}: {buffer[:60]}",
                expected="a JSON array of objects",
                remedy="mend the file; one object a line (.jsonl) is read too",
            ) from error
        number += 1
        yield number, row
        if buffer[end] == ",":
            end += 1
        elif buffer[end] != "]":
            raise UserError.of(
                f"{path}, after row {number}",
                found=buffer[end : end + 40],
                expected="a comma or the array's end",
                remedy="mend the file",
            )
        place = end


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Whether more text could mend it: a string that does not end, or trouble at the very end."""
    at_the_end = error.pos > len(error.doc) - _LONGEST_LITERAL
    return at_the_end or error.msg.startswith("Unterminated string")


def _check_end(rest: str, path: Path, number: int) -> None:
    if rest.strip():
        raise UserError.of(
            f"{path}, after row {number}",
            found=f"text behind the array's end: {rest.strip()[:40]}",
            expected="one JSON array and nothing else",
            remedy="mend the file; one object a line (.jsonl) is read too",
        )


def _skip(buffer: str, place: int) -> int:
    while place < len(buffer) and buffer[place] in " \t\r\n":
        place += 1
    return place
