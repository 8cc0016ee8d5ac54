"""Which text, cut how, and with which tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mlmlab.errors import Problem


class Source(Enum):
    """Where documents come from."""

    BUILTIN = "builtin"
    FILE = "file"
    URL = "url"


class TokenizerKind(Enum):
    """The algorithm of a tokenizer that is trained here."""

    BPE = "bpe"
    WORDPIECE = "wordpiece"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and how it is cut into examples."""

    source: Source
    """builtin: the small world. file: `path`. url: `url`, checked against `sha256`."""
    path: str | None
    """The file: .txt (a line, a document), .jsonl or .json, each also gzipped."""
    url: str | None
    """The file's address; read only when source=url."""
    sha256: str | None
    """Its checksum in hexadecimal; null: not checked. Read only when source=url."""
    text_field: str
    """The field of a row that holds its text; dots descend: answers.text."""
    encoding: str
    """How the bytes of a text file become characters."""
    limit: int | None
    """Take the first so many documents; null: all. The small world has 24,000 by default."""
    test_fraction: float
    """Chance that a document belongs to the test set."""
    seed: int
    """Decides the split, independent of the run's seed."""
    block_size: int
    """Tokens in an example."""

    def problems(self) -> Iterator[Problem]:
        """Values out of range, and sources that lack their address."""
        if self.block_size < 2:
            yield Problem(
                "data.block_size", str(self.block_size), "at least 2 tokens", "data.block_size=128"
            )
        if not 0.0 < self.test_fraction < 1.0:
            yield Problem(
                "data.test_fraction",
                str(self.test_fraction),
                "a share above 0 and below 1: training and evaluation both need documents",
                "data.test_fraction=0.2",
            )
        if self.limit is not None and self.limit < 1:
            yield Problem(
                "data.limit", str(self.limit), "a positive number or null", "data.limit=null"
            )
        if self.source is Source.FILE and self.path is None:
            yield Problem(
                "data.path",
                "null",
                "the file to read, because data.source=file",
                "data.path=FILE, or data.source=builtin for the small world",
            )
        if self.source is Source.URL and self.url is None:
            yield Problem(
                "data.url",
                "null",
                "the address to read, because data.source=url",
                "data.url=https://..., or data.source=file data.path=FILE",
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer."""

    path: str | None
    """A folder, a tokenizer.json, or owner/name on the Hub. null: the checkpoint's own; without a
    checkpoint, one trained on the corpus (the small world brings its own)."""
    kind: TokenizerKind
    """The algorithm, where one is trained."""
    vocabulary_size: int
    """Its size, special tokens included, where one is trained."""

    def problems(self) -> Iterator[Problem]:
        """A vocabulary too small to hold the special tokens and the bytes."""
        if self.vocabulary_size < 300:
            yield Problem(
                "tokenizer.vocabulary_size",
                str(self.vocabulary_size),
                "at least 300: 256 bytes and the special tokens must fit",
                "tokenizer.vocabulary_size=8192",
            )
