"""English that ships with every Python: its help topics, and its standard library's docstrings."""

import ast
import hashlib
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

from mlmlab.data.config import OnBadRow
from mlmlab.data.formats import BadRows
from mlmlab.errors import Code, UserError

_SKIPPED = {
    "site-packages",  # not the library's own
    "dist-packages",
    "test",  # tests, and what they test with
    "tests",
    "idlelib",  # programs
    "lib2to3",
    "turtledemo",
    "pydoc_data",  # the topics themselves
}
"""Folders whose docstrings are no documentation of the library."""


@dataclass(frozen=True)
class PythonDocsSource:
    """The help topics of `pydoc`, a document each, and then the docstrings of each module of the
    standard library together, a document a module, in the order of their names.

    The modules are parsed, not imported. Another Python has another text, with another fingerprint.

    Raises:
        UserError: from `text_fingerprint` and `documents`, where this Python has no such text.
    """

    limit: int | None
    on_bad_row: OnBadRow = OnBadRow.STOP

    @property
    def description(self) -> str:
        return f"the documentation in Python {platform.python_version()}"

    @property
    def has_line_documents(self) -> bool:
        return False

    def fingerprint(self) -> str:
        return f"python docs {self.text_fingerprint()} limit {self.limit}"

    def text_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for text in python_docs():
            digest.update(text.encode())
            digest.update(b"\0")
        return digest.hexdigest()

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        return islice(python_docs(), self.limit)


@cache
def python_docs() -> tuple[str, ...]:
    """All documents: about 600, together 2 MB, read in a few seconds.

    Raises:
        UserError: this Python has no topics, or its library is there without its source.
    """
    folder = Path(ast.__file__).parent
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _no_text("no module pydoc_data.topics") from error
    files = sorted(
        (file.relative_to(folder).as_posix(), file)
        for file in folder.rglob("*.py")
        if _SKIPPED.isdisjoint(file.relative_to(folder).parts)
    )
    modules = ["\n\n".join(docstrings(file.read_bytes())) for _, file in files]
    if not any(modules):
        raise _no_text(f"no Python source with docstrings in {folder}")
    return tuple(text for text in (*(topics[name] for name in sorted(topics)), *modules) if text)


def docstrings(source: bytes) -> Iterator[str]:
    """The docstrings of a module, its classes and functions, in the order of the source, without
    their indentation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old escape in a literal is not ours to report
        module = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(module) if isinstance(node, documented)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):  # a module has none
        if text := ast.get_docstring(node):
            yield text


def _no_text(found: str) -> UserError:
    return UserError.of(
        "data.builtin",
        code=Code.NOT_FOUND,
        found=f"python_docs, and this Python ({platform.python_version()}) has {found}",
        expected="a Python with its help topics and the source of its standard library",
        remedy="another Python; or data.builtin=small_world; or data=text data.path=FILE",
    )
