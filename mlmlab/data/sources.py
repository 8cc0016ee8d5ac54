"""Files, the small world and Python's own texts, as streams of documents (str)."""

import dataclasses
import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from mlmlab.data.config import DataConfig, DocumentUnit, Files, OnBadRow, patterns
from mlmlab.data.formats import BadRows, Format, reading, recognize, rows
from mlmlab.data.small_world.chain import small_world
from mlmlab.errors import Code, UserError
from mlmlab.fetch.cache import file_digest

SMALL_WORLD_SEED = 0
"""The built-in corpus is one corpus: the same documents for every run and every machine."""
SMALL_WORLD_DOCUMENTS = 24_000


class TextSource(Protocol):
    """Something that yields documents, the same ones each time it is asked."""

    @property
    def description(self) -> str:
        """Its name, for a person."""

    def fingerprint(self) -> str:
        """A text that changes whenever the documents might."""

    def text_fingerprint(self) -> str:
        """A digest of the text alone, in hexadecimal: however it is read, and how much of it."""

    @property
    def has_line_documents(self) -> bool:
        """Whether each line of a .txt file is a document."""

    @property
    def on_bad_row(self) -> OnBadRow:
        """Whether a row that cannot be read stops the reading or is left out."""

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        """All documents, in order.

        Args:
            bad_rows: counts the rows that cannot be read; None: a new one, as `on_bad_row` says.
        """


@dataclass(frozen=True)
class SmallWorldSource:
    """The built-in small world (`small_world/chain.py`)."""

    limit: int | None
    on_bad_row: OnBadRow = OnBadRow.STOP

    @property
    def description(self) -> str:
        return "the built-in small world"

    @property
    def count(self) -> int:
        """How many documents there are."""
        return SMALL_WORLD_DOCUMENTS if self.limit is None else self.limit

    @property
    def has_line_documents(self) -> bool:
        return False

    def fingerprint(self) -> str:
        return f"world {self.text_fingerprint()} documents {self.count}"

    def text_fingerprint(self) -> str:
        digest = hashlib.sha256()
        world = small_world()
        digest.update(" ".join(world.words).encode())
        for table in (world.initial, world.transition, world.end, world.emission):
            digest.update(table.tobytes())
        digest.update(str(SMALL_WORLD_SEED).encode())
        return digest.hexdigest()

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        return small_world().documents(self.count, SMALL_WORLD_SEED)


@dataclass(frozen=True)
class FileSource:
    """The rows of one or several files (`formats.py`), a document each, file after file.

    Raises:
        UserError: from `fingerprint` and `documents`, naming file and row, for whatever cannot be
            read.
    """

    paths: tuple[Path, ...]
    text_field: str = "text"
    encoding: str = "utf-8"
    limit: int | None = None
    on_bad_row: OnBadRow = OnBadRow.STOP
    description: str = "files"
    document: DocumentUnit = DocumentUnit.LINE

    @classmethod
    def of(cls, paths: tuple[Path, ...], config: DataConfig, description: str) -> "FileSource":
        """The files, read as the config says."""
        return cls(
            paths,
            config.text_field,
            config.encoding,
            config.limit,
            config.on_bad_row,
            description,
            config.document,
        )

    @cached_property
    def _contents(self) -> str:
        """Each file's format and checksum: read once, whoever asks."""
        found = []
        for path in self.paths:
            kind = recognize(path)
            with reading(path):
                found.append(f"{kind.value} {file_digest(path)}")
        return " ".join(found)

    def fingerprint(self) -> str:
        settings = (
            f"{self.text_field} {self.encoding} {self.on_bad_row.value} limit {self.limit} "
            f"document {self.document.value}"
        )
        return f"files {self._contents} {settings}"

    def text_fingerprint(self) -> str:
        return hashlib.sha256(self._contents.encode()).hexdigest()

    @property
    def has_line_documents(self) -> bool:
        is_text = any(recognize(path) is Format.TEXT for path in self.paths)
        return is_text and self.document is DocumentUnit.LINE

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        return islice(self._all_documents(bad_rows or BadRows(self.on_bad_row)), self.limit)

    def _all_documents(self, bad_rows: BadRows) -> Iterator[str]:
        for path in self.paths:
            kind = recognize(path)
            for number, row in rows(
                path, kind, self.text_field, self.encoding, self.document, bad_rows
            ):
                try:
                    # A row of text or csv is the text itself; one of JSON may be anything.
                    is_text = kind in (Format.TEXT, Format.CSV)
                    text = row if is_text else text_at(row, self.text_field)
                    check_characters(text, self.encoding)
                except UserError as error:
                    (problem,) = error.problems
                    found = f"{path}, row {number}: {problem.found}"
                    bad_rows.add(dataclasses.replace(problem, found=found))
                else:
                    yield text


@dataclass(frozen=True, eq=False)
class PassedDocuments:
    """Documents that Python code passes to `mlmlab.run` (`checked_documents`)."""

    texts: Sequence[str]
    limit: int | None
    on_bad_row: OnBadRow = OnBadRow.STOP
    description: str = "documents from Python"

    @property
    def has_line_documents(self) -> bool:
        return False

    def fingerprint(self) -> str:
        return f"documents {self.text_fingerprint()} limit {self.limit}"

    def text_fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        return digest.hexdigest()

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        return islice(self.texts, self.limit)


def checked_documents(documents: Iterable[str]) -> tuple[str, ...]:
    """The documents of an iterable, which is read once: a run reads them several times.

    Raises:
        UserError: it is none, or one of them is no text.
    """
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise _no_documents(f"{_kind(documents)}: {documents!r:.60}")
    texts = tuple(documents)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise _no_documents(f"documents[{number}] is {_kind(text)}: {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half a character ({text[error.start]!a}, a lone surrogate)"
            raise _no_documents(f"documents[{number}] has {half}") from error
    return texts


def _no_documents(found: str) -> UserError:
    return UserError.of(
        "documents",
        code=Code.WRONG_TYPE,
        found=found,
        expected="a list, or another iterable, of texts (str): a document each",
        remedy='documents=["one text", "another"]',
    )


def text_at(row: Any, field: str) -> str:
    """The text at a dotted path of a row; a list of texts is joined by spaces.

    A field whose own name has dots is found too, and a list of objects is descended into object
    by object.

    Raises:
        UserError: there is no such field, or it holds something else.
    """
    value = _descend(row, field, field)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = " ".join(value)
    if not isinstance(value, str):
        fields = f" with {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise UserError.of(
            "data.text_field",
            code=Code.NO_TEXT,
            found=f"{field} is {_kind(value)}{fields}",
            expected="text, or a list of texts",
            remedy="data.text_field=FIELD (dots descend into an object)",
        )
    return value


def _descend(value: Any, path: str, field: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    first, _, rest = path.partition(".")
    if not isinstance(value, dict) or first not in value or not rest:
        fields = ", ".join(map(str, value)) if isinstance(value, dict) else _kind(value)
        raise UserError.of(
            "data.text_field",
            code=Code.NO_TEXT,
            found=f"no {field}, but: {fields}",
            expected="the field that holds the text; dots descend: answers.text",
            remedy="data.text_field=FIELD",
        )
    inner = value[first]
    if isinstance(inner, list):
        return [_descend(item, rest, field) for item in inner]
    return _descend(inner, rest, field)


def check_characters(text: str, encoding: str) -> None:
    """Refuses a text with a byte that the encoding does not know, or with half a character.

    Raises:
        UserError: names the byte or the character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = text[error.start]
        byte = ord(character) - 0xDC00
        if 0x80 <= byte <= 0xFF:  # how `surrogateescape` marks what it could not decode
            raise UserError.of(
                "data.encoding",
                code=Code.ENCODING,
                found=f"byte 0x{byte:02x} is not {encoding}",
                expected="the encoding that the file was written in",
                remedy="data.encoding=latin-1 (or cp1252, utf-16, ...)",
            ) from error
        raise UserError.of(
            "data.text_field",
            code=Code.ENCODING,
            found=f"half a character ({character!a}, a lone surrogate)",
            expected="text",
            remedy="fix the row: whatever wrote it cut a character in two",
        ) from error


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", bytes: "bytes"}
    return "null" if value is None else names.get(type(value), "a number")


def matching_files(named: Files, key: str) -> tuple[Path, ...]:
    """The files that a path or a glob names, sorted, or those of several, one after the other; a
    file that several of them match comes once.

    Args:
        named: `*`, `?` and `[...]` within a name, `**` for any folders. A path that exists is never
            a glob.
        key: the config key it comes from.

    Raises:
        UserError: a glob that matches no file.
    """
    return tuple(
        dict.fromkeys(path for pattern in patterns(named) for path in _matches(pattern, key))
    )


def _matches(pattern: str, key: str) -> tuple[Path, ...]:
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return (Path(pattern),)
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 (`Path.glob` wants a relative one)
    found = sorted(path for path in map(Path, names) if path.is_file())
    if not found:
        raise UserError.of(
            key,
            code=Code.NOT_FOUND,
            found=f"{pattern}: no file matches",
            expected="a path, or a pattern with * that matches files",
            remedy="check the pattern, and quote it so that the shell leaves it alone: "
            f"{key}='FOLDER/*.txt'",
        )
    return tuple(found)
