"""Files and the small world, as streams of documents (str)."""

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from mlmlab.data.world import small_world
from mlmlab.errors import UserError

WORLD_SEED = 0
"""The built-in corpus is one corpus: the same documents for every run and every machine."""
WORLD_DOCUMENTS = 24_000

_FORMATS = (".txt", ".jsonl", ".json")
_NOT_READ = (".csv", ".tsv", ".parquet", ".zip", ".bz2", ".xz", ".zst")
"""Files that would otherwise be taken for lines of text."""
_CHUNK_CHARACTERS = 1 << 20
_LONGEST_ROW_CHARACTERS = 1 << 28
_LONGEST_LITERAL = 16
"""Characters: more than a literal, an escape or a delimiter of JSON has."""


class TextSource(Protocol):
    """Something that yields documents, the same ones each time it is asked."""

    @property
    def description(self) -> str:
        """What a person calls it."""

    def fingerprint(self) -> str:
        """A text that changes whenever the documents might."""

    def documents(self) -> Iterator[str]:
        """All documents, in order."""


@dataclass(frozen=True)
class WorldSource:
    """The built-in small world (`world.py`)."""

    limit: int | None

    @property
    def description(self) -> str:
        return "the built-in small world"

    @property
    def count(self) -> int:
        """How many documents there are."""
        return WORLD_DOCUMENTS if self.limit is None else self.limit

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        world = small_world()
        digest.update(" ".join(world.words).encode())
        for table in (world.initial, world.transition, world.end, world.emission):
            digest.update(table.tobytes())
        return f"world {digest.hexdigest()} seed {WORLD_SEED} documents {self.count}"

    def documents(self) -> Iterator[str]:
        return small_world().documents(self.count, WORLD_SEED)


@dataclass(frozen=True)
class FileSource:
    """A file of documents: lines of text, lines of JSON, or a JSON array; each also gzipped.

    Raises:
        UserError: from `documents`, naming file and row, for whatever cannot be read.
    """

    path: Path
    text_field: str
    encoding: str
    limit: int | None

    @property
    def description(self) -> str:
        return str(self.path)

    def fingerprint(self) -> str:
        found = None
        if not self.path.is_file():
            found = "a folder" if self.path.is_dir() else "no such file"
        elif self.path.suffix.lower() in _NOT_READ:
            found = f"a {self.path.suffix} file"
        if found is not None:
            raise UserError.of(
                "data.path",
                found=f"{self.path}: {found}",
                expected="a .txt, .jsonl or .json file, gzipped or not",
                remedy="check the path; it is relative to the folder the command runs in",
            )
        with _Reading(self.path), self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        kind = self._format()
        return f"file {content} {kind} {self.text_field} {self.encoding} limit {self.limit}"

    def _format(self) -> str:
        """`.txt`, `.jsonl` or `.json`, whatever is around it; a name that says nothing is text."""
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        return next((suffix for suffix in reversed(suffixes) if suffix in _FORMATS), ".txt")

    def documents(self) -> Iterator[str]:
        return islice(self._all_documents(), self.limit)

    def _all_documents(self) -> Iterator[str]:
        with _Reading(self.path) as reading, self._open() as text:
            if self._format() == ".txt":
                for number, line in enumerate(text, 1):
                    reading.row = number
                    if line.strip():
                        yield line.strip()
                return
            start = text.read(_CHUNK_CHARACTERS)
            is_array = start.lstrip().startswith("[")
            rows = (_json_array if is_array else _json_lines)(start, text, self.path)
            for number, row in rows:
                reading.row = number
                yield _text_of(row, self.text_field, self.path, number)

    def _open(self) -> io.TextIOWrapper:
        try:
            encoding = codecs.lookup(self.encoding).name
            "".encode(encoding)  # some of Python's codecs are not about text
        except LookupError as error:
            raise UserError.of(
                "data.encoding",
                found=self.encoding,
                expected="the name of a text encoding that Python knows",
                remedy="data.encoding=utf-8, or data.encoding=latin-1",
            ) from error
        # JSON and text alike may begin with a byte-order mark, which is not part of the text.
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        with self.path.open("rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        if gzipped:
            return gzip.open(self.path, "rt", encoding=encoding)
        return self.path.open(encoding=encoding)


class _Reading:
    """Turns what can go wrong while a file is read into a `UserError` that names file and row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.row = 0
        """The last one that could be read."""

    def __enter__(self) -> "_Reading":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        where = f"{self.path}, after row {self.row}" if self.row else str(self.path)
        if isinstance(error, UnicodeDecodeError):
            raise UserError.of(
                "data.encoding",
                found=f"{where}: byte 0x{error.object[error.start]:02x} is not {error.encoding}",
                expected="the encoding that the file was written in",
                remedy="data.encoding=latin-1 (or cp1252, utf-16, ...)",
            ) from error
        if isinstance(error, EOFError | gzip.BadGzipFile | zlib.error):
            raise UserError.of(
                where,
                found=f"a damaged gzip file: {error}",
                expected="a complete one",
                remedy="download or compress it again",
            ) from error
        if isinstance(error, OSError):
            raise UserError.of(
                where,
                found=f"{error.strerror or error}",
                expected="a file that can be read",
                remedy="check its permissions",
            ) from error


def _json_lines(start: str, text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Any]]:
    """The objects, with the number of their line."""
    # `start` was read to look at; what follows it may begin in the middle of a line.
    pending = io.StringIO(start + text.readline())
    for number, line in enumerate(chain(pending, text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.strip())
        except json.JSONDecodeError as error:
            raise UserError.of(
                f"{path}, row {number}",
                found=f"{error.msg} (column {error.colno}): {line.strip()[:60]}",
                expected="one JSON object a line",
                remedy="mend the line; name a plain text file .txt",
            ) from error
        yield number, row


def _json_array(start: str, text: io.TextIOWrapper, path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array with their numbers, decoded one at a time: memory holds a row,
    not the file."""
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


def _text_of(row: Any, field: str, path: Path, number: int) -> str:
    """The text at a dotted path of a row; a list of texts is joined by spaces."""
    value = row
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            fields = ", ".join(value) if isinstance(value, dict) else _kind(value)
            raise UserError.of(
                "data.text_field",
                found=f"{field}, but {path}, row {number} has: {fields}",
                expected="the field that holds the text; dots descend: answers.text",
                remedy="data.text_field=FIELD",
            )
        value = value[part]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        fields = f" with {', '.join(value)}" if isinstance(value, dict) else ""
        raise UserError.of(
            "data.text_field",
            found=f"{field}: in {path}, row {number} it is {_kind(value)}{fields}",
            expected="text, or a list of texts",
            remedy="data.text_field=FIELD (dots descend into an object)",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError.of(
            f"{path}, row {number}",
            found=f"half a character ({value[error.start]!a}, a lone surrogate) in {field}",
            expected="text",
            remedy="mend the row: whatever wrote it cut a character in two",
        ) from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
