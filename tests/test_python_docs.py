"""Python's own documentation as a text: what is in it, and that nothing of it is imported."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from refusals import refusal

from mlmlab.data import python_docs as module
from mlmlab.data.python_docs import PythonDocsSource, docstrings, python_docs
from mlmlab.errors import Code


def test_the_text_is_english_of_two_megabytes_in_hundreds_of_documents() -> None:
    documents = python_docs()
    assert 1_500_000 < sum(map(len, documents)) < 4_000_000
    assert len(documents) > 400
    assert all(text.strip() for text in documents)
    assert len(set(documents)) > 0.98 * len(documents)  # copies would be on both sides of the split
    together = "\n".join(documents)
    assert 'The "if" statement is used for conditional execution' in together
    assert "Command-line parsing library" in together
    assert "Unittest" not in documents[0]


def test_the_topics_come_first_and_both_parts_are_sorted_by_name() -> None:
    from pydoc_data.topics import topics

    names = sorted(topics)
    assert list(PythonDocsSource(len(names)).documents()) == [topics[name] for name in names]
    starts = [
        next(n for n, text in enumerate(python_docs()) if text.startswith(opening))
        for opening in ("Abstract Base Classes (ABCs)", "Base16, Base32", "Heap queue algorithm")
    ]
    assert all(first < second for first, second in pairwise([len(names) - 1, *starts]))


def test_docstrings_of_module_classes_and_functions_come_in_the_order_of_the_source() -> None:
    source = b'''"""The module."""
WARNING = "\\d"
class A:
    """A class.

        Indented.
    The end.
    """
    def method(self):
        """A method."""
        def inner(): "Inner."
    async def waits(self): "Waits."
def undocumented(): pass
def last(): "Last, \xc3\xa9."
'''
    assert list(docstrings(source)) == [
        "The module.", "A class.\n\n    Indented.\nThe end.", "A method.", "Inner.", "Waits.",
        "Last, é.",
    ]  # fmt: skip


def test_it_is_read_without_importing_the_library() -> None:
    script = (
        "import sys, mlmlab.data.python_docs as docs; before = set(sys.modules); "
        "docs.python_docs(); print(*sorted(set(sys.modules) - before))"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == ["pydoc_data", "pydoc_data.topics"]
    assert finished.stderr == ""


def test_the_fingerprint_is_that_of_the_text_and_the_limit_counts_documents() -> None:
    whole, part = PythonDocsSource(None), PythonDocsSource(3)
    assert list(part.documents()) == list(whole.documents())[:3]
    assert whole.text_fingerprint() == part.text_fingerprint()
    assert whole.fingerprint() != part.fingerprint()
    assert ".".join(map(str, sys.version_info[:3])) in whole.description


def test_other_text_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PythonDocsSource(None).text_fingerprint()
    monkeypatch.setattr(module, "python_docs", lambda: (*python_docs()[:-1], "changed"))
    assert PythonDocsSource(None).text_fingerprint() != before


def test_a_python_without_its_library_or_its_topics_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "other.py").write_text('"""A test."""')
    monkeypatch.setattr("ast.__file__", str(tmp_path / "ast.py"))
    with refusal("data.builtin", Code.NOT_FOUND, tmp_path, "data.builtin=small_world"):
        python_docs.__wrapped__()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with refusal("data.builtin", Code.NOT_FOUND, "pydoc_data.topics"):
        python_docs.__wrapped__()
