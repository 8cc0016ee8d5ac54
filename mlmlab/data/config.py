"""Which text, cut how, and with which tokenizer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mlmlab.errors import Code, Problem
from mlmlab.schema import setting, shown


class Source(Enum):
    """Where documents come from."""

    BUILTIN = "builtin"
    FILE = "file"
    URL = "url"
    HUB = "hub"
    DOCUMENTS = "documents"


class Builtin(Enum):
    """The texts that need no file."""

    SMALL_WORLD = "small_world"
    PYTHON_DOCS = "python_docs"


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


Files = str | tuple[str, ...]
"""A file or a glob, or several of them."""


def patterns(files: Files | None) -> tuple[str, ...]:
    """The files and globs of a key, however many there are."""
    if files is None:
        return ()
    return (files,) if isinstance(files, str) else files


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and how it is cut into examples."""

    source: Source = Source.FILE
    """builtin: `builtin`. file: `path`. url: `url`, checked against `sha256`. hub: `files` of the
    data set `repository`. documents: what Python code passes to mlmlab.run."""
    builtin: Builtin = Builtin.SMALL_WORLD
    """small_world: generated English with a known optimum. python_docs: the help topics and the
    docstrings of this Python's standard library. Read only when source=builtin."""
    path: Files | None = None
    """A file or a glob, or a list of them: .txt (`document`), .jsonl, .json, .csv, .tsv, .parquet;
    each also gzipped. A file that several of them match is read once."""
    url: str | None = None
    """The file's address; read only when source=url."""
    sha256: str | None = None
    """Its checksum in hexadecimal; null: not checked. Read only when source=url."""
    repository: str | None = None
    """owner/name of a data set on the Hub; read only when source=hub."""
    revision: str | None = None
    """Its branch, tag or commit; null: main. A run's config.yaml holds the commit."""
    files: Files | None = None
    """Which of its files: a glob, or a list of them."""
    eval_files: Files | None = None
    """The files of the test documents; then all of `files` are trained on. null: `test_fraction`.
    Read only when source=hub."""
    eval_repository: str | None = None
    """owner/name[@revision] of the data set that has `eval_files`. null: `repository`."""
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
    """Take the first N documents; null: all. The small world has 24,000 by default."""
    test_fraction: float = setting(0.2, above=0, below=1)
    """Chance that a document belongs to the test set."""
    eval_path: Files | None = None
    """The test documents: a file or a glob, or a list of them; then all others are trained on.
    null: `test_fraction`."""
    seed: int = 0
    """Decides the split and the sampled examples, independent of the run's seed."""
    layout: Layout = Layout.PACKED
    """packed: documents joined and cut into blocks. lines: a document, an example, cut off where
    it is longer than a block. documents: a long document becomes several examples."""
    block_size: int = setting(128, at_least=2)
    """Tokens in an example, or of the longest one."""
    isolate_documents: bool = False
    """Whether the documents that share a packed block are hidden from each other."""
    train_examples: int | None = setting(None, at_least=1)
    """Train on this many examples, sampled without replacement by `seed`. null: all."""
    test_examples: int | None = setting(None, at_least=1)
    """Score this many examples, sampled likewise. null: all."""
    fingerprint: str | None = None
    """Of the text's content. A run fills it in, so that resuming it, replaying it or evaluating it
    with other text is refused. null: not compared."""
    eval_fingerprint: str | None = None
    """The same of `eval_path` or `eval_files`."""

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
            if self.source is source and not value:
                yield Problem(
                    f"data.{name}",
                    shown(value) or "nothing",
                    f"{what}, because data.source={source.value}",
                    f"{example}, or data.source=builtin for the small world",
                    code=Code.MISSING,
                )
            # A recipe has a url or a repository, which a user's own file replaces; nothing else is
            # there unasked.
            is_replaced = source is Source.URL or (
                source is Source.HUB and self.source is not Source.BUILTIN
            )
            if self.source is not source and value is not None and not is_replaced:
                yield Problem(
                    f"data.{name}",
                    f"{shown(value)}, with data.source={self.source.value}",
                    f"data.{name}=null, or the source that reads it",
                    f"data.source={source.value}",
                    code=Code.CONFLICT,
                )
        yield from self._test_text_problems()

    def _test_text_problems(self) -> Iterator[Problem]:
        """Two test texts, or half of one."""
        if self.eval_path is not None and not self.eval_path:
            yield Problem(
                "data.eval_path",
                shown(self.eval_path) or "nothing",
                "a file or a glob, or null",
                "data.eval_path=null",
                code=Code.INVALID,
            )
        if self.source is not Source.HUB:
            if self.eval_files is not None and self.repository is None:
                yield Problem(
                    "data.eval_files",
                    f"{shown(self.eval_files)}, with data.source={self.source.value}",
                    "null: they are files of a data set on the Hub",
                    "data.eval_path=FILE for test documents of your own",
                    code=Code.CONFLICT,
                )
            return
        if self.eval_path is not None and self.eval_files is not None:
            yield Problem(
                "data.eval_path",
                f"{shown(self.eval_path)}, with data.eval_files={shown(self.eval_files)}",
                "one test text",
                "data.eval_path=null, or data.eval_files=null",
                code=Code.CONFLICT,
            )
        if self.eval_repository is not None and self.eval_files is None:
            yield Problem(
                "data.eval_files",
                f"null, with data.eval_repository={self.eval_repository}",
                "which of its files are the test documents",
                "data.eval_files='plain_text/test-*.parquet', or data.eval_repository=null",
                code=Code.MISSING,
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
