"""A file becomes numbered rows, whatever its format: txt, jsonl, json array, csv, tsv, parquet.

Each may be gzipped. The content decides where it can (gzip, parquet, array or lines of JSON), else
the name's ending; a name that says nothing is text.
"""

import codecs
import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlmlab.data.config import DocumentUnit, OnBadRow
from mlmlab.data.json_file import json_array
from mlmlab.errors import Code, Problem, UserError


class Format(Enum):
    """How a file holds its rows."""

    TEXT = "txt"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


_BY_SUFFIX = {
    ".txt": Format.TEXT,
    ".jsonl": Format.JSON,
    ".ndjson": Format.JSON,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".parquet": Format.PARQUET,
}
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_NOT_READ = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"%PDF": "a PDF file",
    b"ARROW1": "an Arrow file",
}
"""Files that would otherwise be taken for lines of text, by their first bytes."""
_DELIMITERS = (",", ";", "\t")
_LONGEST_CSV_FIELD_CHARACTERS = 1 << 28
_ROWS_A_BATCH = 1024

_READABLE = "a .txt, .jsonl, .json, .csv, .tsv or .parquet file, gzipped or not"


class BadRows:
    """The rows of one reading that cannot be read: the first stops the run, or all are counted."""

    def __init__(self, policy: OnBadRow = OnBadRow.STOP) -> None:
        self.policy = policy
        self.count = 0
        self.first: str | None = None
        """The first one: where it is and what is wrong with it."""

    def add(self, problem: Problem) -> None:
        """Counts a bad row.

        Raises:
            UserError: the policy is to stop.
        """
        if self.policy is OnBadRow.STOP:
            remedy = f"{problem.remedy}; data.on_bad_row=skip leaves such rows out and counts them"
            raise UserError([replace(problem, remedy=remedy)])
        self.count += 1
        self.first = self.first or f"{problem.where}: {problem.found}"


def recognize(path: Path) -> Format:
    """The format of a file.

    Raises:
        UserError: no file; an archive, or another kind of file that is not rows of text; a file
            that cannot be read.
    """
    if not path.is_file():
        raise UserError.of(
            "data.path",
            code=Code.NOT_FOUND,
            found=f"{path}: {'a folder' if path.is_dir() else 'no such file'}",
            expected=_READABLE,
            remedy=f"data.path='{path}/*' for the files in it"
            if path.is_dir()
            else "check the path; it is relative to the folder the command runs in",
        )
    with reading(path), _binary(path) as file:
        start = file.read(8)
    for magic, name in _NOT_READ.items():
        if start.startswith(magic):
            raise UserError.of(
                "data.path",
                code=Code.UNSUPPORTED,
                found=f"{path}: {name}",
                expected=_READABLE,
                remedy="unpack it first",
            )
    if start.startswith(_PARQUET):
        return Format.PARQUET
    suffixes = [suffix.lower() for suffix in path.suffixes]
    named = next((_BY_SUFFIX[s] for s in reversed(suffixes) if s in _BY_SUFFIX), Format.TEXT)
    if named is Format.PARQUET:
        raise UserError.of(
            "data.path",
            code=Code.UNSUPPORTED,
            found=f"{path}: no parquet file (it begins with {start!r})",
            expected=_READABLE,
            remedy="download or write it again",
        )
    return named


def rows(
    path: Path,
    kind: Format,
    text_field: str,
    encoding: str,
    document: DocumentUnit,
    bad_rows: BadRows,
) -> Iterator[tuple[int, Any]]:
    """The rows of a file with their numbers from 1: a str for text and csv, else what the row is.

    Args:
        document: what a row of a text file is.

    Raises:
        UserError: the file is damaged, or has no column `text_field`.
    """
    with reading(path) as place:
        found: Iterator[tuple[int, Any]]
        if kind is Format.PARQUET:
            found = _parquet_rows(path, text_field)
        elif kind is Format.JSON:
            found = _json_rows(path, encoding, bad_rows)
        elif kind is Format.CSV:
            found = _csv_rows(path, text_field, encoding, bad_rows)
        elif document is DocumentUnit.PARAGRAPH:
            found = _paragraphs(path, encoding)
        elif document is DocumentUnit.FILE:
            found = _full_text(path, encoding)
        else:
            found = _lines(path, encoding)
        for number, row in found:
            place.row = number
            yield number, row


def _binary(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The file's bytes, unpacked."""
    with path.open("rb") as file:
        gzipped = file.read(2) == _GZIP
    return gzip.open(path, "rb") if gzipped else path.open("rb")


def _text(path: Path, encoding: str, newline: str | None = None) -> io.TextIOWrapper:
    """The file's characters. A byte that is none becomes a lone surrogate (`surrogateescape`), so
    that its row can be named."""
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)  # some of Python's codecs are not about text
    except LookupError as error:
        raise UserError.of(
            "data.encoding",
            code=Code.INVALID,
            found=encoding,
            expected="the name of a text encoding that Python knows",
            remedy="data.encoding=utf-8, or data.encoding=latin-1",
        ) from error
    # JSON and text alike may begin with a byte-order mark, which is not part of the text.
    name = "utf-8-sig" if name == "utf-8" else name
    return io.TextIOWrapper(_binary(path), name, "surrogateescape", newline)


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    with _text(path, encoding) as text:
        for number, line in enumerate(text, 1):
            if document := line.strip():  # an empty line is no document
                yield number, document


def _paragraphs(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """The lines between blank ones, joined by a space: where prose is wrapped at a width, as in the
    books of Project Gutenberg, a line ends between two words and means no more than that."""
    with _text(path, encoding) as text:
        paragraphs = groupby((line.strip() for line in text), key=bool)
        filled = (lines for is_filled, lines in paragraphs if is_filled)
        for number, lines in enumerate(filled, 1):
            yield number, " ".join(lines)


def _full_text(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """All of the file, with its line ends; it has to fit in memory."""
    with _text(path, encoding) as text:
        document = text.read().strip()
    if document:
        yield 1, document


def _json_rows(path: Path, encoding: str, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    with _text(path, encoding) as text:
        is_array = text.read(1 << 16).lstrip().startswith("[")
        text.seek(0)
        yield from json_array(text, path) if is_array else _json_lines(text, path, bad_rows)


def _json_lines(text: io.TextIOWrapper, path: Path, bad_rows: BadRows) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(map(str.strip, text), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also an endless integer, or nesting
            what = str(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} (column {error.colno})"
            bad_rows.add(
                Problem(
                    f"{path}, row {number}",
                    f"{what}: {line[:60]}",
                    "one JSON object per line",
                    "fix the line; name a plain text file .txt",
                    code=Code.BAD_ROW,
                )
            )
        else:
            yield number, row


def _csv_rows(
    path: Path, text_field: str, encoding: str, bad_rows: BadRows
) -> Iterator[tuple[int, Any]]:
    """The named column. The delimiter is the one that finds it in the first line."""
    csv.field_size_limit(_LONGEST_CSV_FIELD_CHARACTERS)
    with _text(path, encoding, newline="") as text:
        first = next(iter(text), "")
        headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in _DELIMITERS}
        delimiter = next((m for m in _DELIMITERS if text_field in headers[m]), None)
        if delimiter is None:
            columns = max(headers.values(), key=len)
            raise UserError.of(
                "data.text_field",
                code=Code.NO_TEXT,
                found=f"{text_field}, but {path} has the columns: {', '.join(columns) or 'none'}",
                expected="the column that holds the text, named in the file's first line",
                remedy="data.text_field=COLUMN",
            )
        header = headers[delimiter]
        place, number = header.index(text_field), 0
        table = csv.reader(text, delimiter=delimiter, strict=True)
        while True:
            number, found = number + 1, ""
            row: list[str] = []
            try:
                row = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                found = str(error)
            if len(row) == len(header):
                yield number, row[place]
            elif row or found:  # an empty line is no row
                bad_rows.add(
                    Problem(
                        f"{path}, row {number}",
                        found or f"{len(row)} fields",
                        f"{len(header)} fields, as in the first line; text with a delimiter, a "
                        "quote or a line end is in quotes",
                        "fix the row",
                        code=Code.BAD_ROW,
                    )
                )


def _parquet_rows(path: Path, text_field: str) -> Iterator[tuple[int, Any]]:
    with _binary(path) as file, tempfile.TemporaryFile() as unpacked:
        is_gzipped = isinstance(file, gzip.GzipFile)
        if is_gzipped:  # parquet is read from its end, which a gzip stream cannot give
            shutil.copyfileobj(file, unpacked)
        table = pq.ParquetFile(unpacked if is_gzipped else file)
        columns = table.schema_arrow.names
        column = text_field if text_field in columns else text_field.split(".")[0]
        if column not in columns:
            raise UserError.of(
                "data.text_field",
                code=Code.NO_TEXT,
                found=f"{text_field}, but {path} has the columns: {', '.join(columns)}",
                expected="the column that holds the text; dots descend: answers.text",
                remedy="data.text_field=COLUMN",
            )
        number = 0
        for batch in table.iter_batches(_ROWS_A_BATCH, columns=[column]):
            for row in batch.to_pylist():
                number += 1
                yield number, row


class _Place:
    """How far a reading is."""

    row = 0
    """The last one that could be read."""


@contextmanager
def reading(path: Path) -> Iterator[_Place]:
    """Turns what can go wrong while a file is read into a `UserError` that names file and row."""
    place = _Place()
    try:
        yield place
    except (UnicodeError, EOFError, zlib.error, OSError, pa.ArrowException) as error:
        where = f"{path}, after row {place.row}" if place.row else str(path)
        if isinstance(error, UnicodeError):
            problem = Problem(
                "data.encoding",
                f"{where}: not {getattr(error, 'encoding', 'text')} ({error})",
                "the encoding that the file was written in",
                "data.encoding=utf-8 (or latin-1, cp1252, utf-16, ...)",
                code=Code.ENCODING,
            )
        elif isinstance(error, EOFError | gzip.BadGzipFile | zlib.error):
            found = f"a damaged gzip file: {error}"
            problem = Problem(
                where, found, "a complete one", "download or compress it again", code=Code.CORRUPT
            )
        elif not isinstance(error, OSError) or error.strerror is None:  # pyarrow's
            found = f"a damaged parquet file: {str(error).splitlines()[0]}"
            problem = Problem(
                where, found, "a complete one", "download or write it again", code=Code.CORRUPT
            )
        else:
            found = str(error.strerror)
            problem = Problem(
                where, found, "a file that can be read", "check its permissions", code=Code.CORRUPT
            )
        raise UserError([problem]) from error
