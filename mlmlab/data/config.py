"""Which text, cut how, and with which tokenizer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mlmlab.errors import Code, Problem
from mlmlab.schema import setting


class Source(Enum):
    """Where documents come from."""

    BUILTIN = "builtin"
    FILE = "file"
    URL = "url"
    HUB = "hub"
    DOCUMENTS = "documents"


class OnBadRow(Enum):
    """What becomes of a row that cannot be read."""

    STOP = "stop"
    SKIP = "skip"


class DocumentUnit(Enum):
    """What a document is in a .txt file. A blank line, or several, ends a paragraph."""

    LINE = "line"
    PARAGRAPH = "paragraph"
    FILE = "file"


class Layout(Enum):
    """How documents become examples."""

    PACKED = "packed"
    LINES = "lines"
    DOCUMENTS = "documents"


class TokenizerKind(Enum):
    """The algorithm of a tokenizer that is trained here."""

    BPE = "bpe"
    WORDPIECE = "wordpiece"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and how it is cut into examples."""

    source: Source = Source.FILE
    """builtin: the small world. file: `path`. url: `url`, checked against `sha256`. hub: `files` of
    the data set `repository`. documents: what Python code passes to mlmlab.run."""
    path: str | None = None
    """A file or a glob: .txt (`document`), .jsonl, .json, .csv, .tsv, .parquet; each also gzipped.
    """
    url: str | None = None
    """The file's address; read only when source=url."""
    sha256: str | None = None
    """Its checksum in hexadecimal; null: not checked. Read only when source=url."""
    repository: str | None = None
    """owner/name of a data set on the Hub."""
    revision: str | None = None
    """Its branch, tag or commit; null: main. A run's config.yaml holds the commit."""
    files: str | None = None
    """Which of its files: a glob."""
    text_field: str = "text"
    """The field or column that holds a row's text; dots descend: answers.text."""
    encoding: str = "utf-8"
    """How the bytes of a text file become characters."""
    document: DocumentUnit = DocumentUnit.LINE
    """What a document is in a .txt file: a line, a paragraph or all of the file. In the other
    formats it is a row, whatever this says."""
    on_bad_row: OnBadRow = OnBadRow.STOP
    """stop: a row that cannot be read ends the run. skip: it is left out and counted."""
    limit: int | None = setting(None, at_least=1)
    """Take the first so many documents; null: all. The small world has 24,000 by default."""
    test_fraction: float = setting(0.2, above=0, below=1)
    """Chance that a document belongs to the test set."""
    eval_path: str | None = None
    """A file or glob of test documents; then all others are trained on. null: `test_fraction`."""
    seed: int = 0
    """Decides the split, independent of the run's seed."""
    layout: Layout = Layout.PACKED
    """packed: documents joined and cut into blocks. lines: a document, an example, cut off where
    it is longer than a block. documents: a long document becomes several examples."""
    block_size: int = setting(128, at_least=2)
    """Tokens in an example, or of the longest one."""
    isolate_documents: bool = False
    """Whether the documents that share a packed block are hidden from each other."""
    fingerprint: str | None = None
    """Of the text's content. A run fills it in, so that resuming it, replaying it or evaluating it
    with other text is refused. null: not compared."""
    eval_fingerprint: str | None = None
    """The same of `eval_path`."""

    def problems(self) -> Iterator[Problem]:
        """A checksum that is none, and sources that lack their address."""
        if self.sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", self.sha256):
            yield Problem(
                "data.sha256",
                self.sha256 or "nothing",
                "64 hexadecimal digits, or null",
                "data.sha256=null downloads the file unchecked",
                code=Code.INVALID,
            )
        needs = {
            Source.FILE: ("path", "the file to read", "data.path=FILE"),
            Source.URL: ("url", "the address to read", "data.url=https://HOST/FILE"),
            Source.HUB: ("repository", "the data set to read", "data.repository=OWNER/NAME"),
        }
        for source, (name, what, example) in needs.items():
            value = getattr(self, name)
            if self.source is source and value is None:
                yield Problem(
                    f"data.{name}",
                    "null",
                    f"{what}, because data.source={source.value}",
                    f"{example}, or data.source=builtin for the small world",
                    code=Code.MISSING,
                )
            # A recipe has a url, which a user's own file replaces; nothing else is there unasked.
            elif self.source is not source and value is not None and source is not Source.URL:
                yield Problem(
                    f"data.{name}",
                    f"{value}, with data.source={self.source.value}",
                    f"data.{name}=null, or the source that reads it",
                    f"data.source={source.value}",
                    code=Code.CONFLICT,
                )


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """Which tokenizer."""

    path: str | None = None
    """A folder, a tokenizer.json, or owner/name on the Hub. null: the checkpoint's own; without a
    checkpoint, one trained on the corpus (the small world brings its own)."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(TokenizerChoice):
    """Which tokenizer, and how one is trained."""

    kind: TokenizerKind = TokenizerKind.BPE
    """The algorithm, where one is trained."""
    vocabulary_size: int = setting(8192, at_least=300)
    """Its size where one is trained: 256 bytes and the special tokens must fit."""
