"""The cache: one process builds, the others wait and say so; digests are remembered."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from refusals import refusal
from servers import FileServer, running
from stopping import SMALLEST, results, start
from test_corpus import WORDS, Documents, opened

from mlmlab.data.formats import BadRows
from mlmlab.data.sources import FileSource
from mlmlab.data.word_starts import with_word_starts
from mlmlab.errors import Code
from mlmlab.fetch import cache
from mlmlab.fetch.cache import built_once, file_digest
from mlmlab.fetch.url import fetch_url

Result = TypeVar("Result")


class Stderr(io.StringIO):
    """Knows when a process has said that it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.has_waiter = threading.Event()

    def write(self, text: str) -> int:
        if "waiting for another process" in text:
            self.has_waiter.set()
        return super().write(text)


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Stderr:
    stream = Stderr()
    # pytest puts its own sys.stderr in place after this.
    monkeypatch.setattr(cache, "sys", SimpleNamespace(stderr=stream))
    return stream


def both(work: Callable[[], Result], has_begun: threading.Event) -> list[Result]:
    """The results of two that do the same at once; the second starts when the first is at work.

    Threads: a lock of flock is one of the open file, and keeps them apart as it does processes.
    """
    with ThreadPoolExecutor(2) as pool:
        first: Future[Result] = pool.submit(work)
        assert has_begun.wait(20)
        second = pool.submit(work)
        return [first.result(20), second.result(20)]


class Slow(Documents):
    """Documents that come when a second process waits, or reads them, too."""

    stderr: Stderr
    has_begun: threading.Event
    readers: list[int]

    def documents(self, bad_rows: BadRows | None = None) -> Iterator[str]:
        self.readers.append(1)
        if len(self.readers) > 1:
            self.stderr.has_waiter.set()
        self.has_begun.set()
        assert self.stderr.has_waiter.wait(20)
        return super().documents(bad_rows)


@pytest.fixture
def slow(stderr: Stderr) -> Slow:
    source = Slow(("w1 w2", "w3", "w4 w5 w6") * 20)
    for name, value in (("stderr", stderr), ("has_begun", threading.Event()), ("readers", [])):
        object.__setattr__(source, name, value)
    return source


# One at a time


def test_two_runs_tokenize_once_and_the_second_says_that_it_waits(
    slow: Slow, stderr: Stderr, fresh_cache: Path
) -> None:
    first, second = both(lambda: opened(slow), slow.has_begun)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert len(slow.readers) == 1
    assert second.folder == first.folder
    # It may wait for the split's index too, and then says so.
    assert stderr.getvalue().count(f"building {first.folder}\n") == 1


def test_two_runs_find_the_word_starts_once(slow: Slow, stderr: Stderr, fresh_cache: Path) -> None:
    corpus = opened(Documents(slow.texts))
    first, second = both(lambda: with_word_starts(corpus, slow, WORDS), slow.has_begun)
    assert len(slow.readers) == 1
    assert first.train.word_starts is not None
    assert second.train.word_starts is not None
    assert (first.train.word_starts == second.train.word_starts).all()


@pytest.mark.parametrize("is_verified", [True, False])
def test_two_downloads_of_one_url_are_one(
    stderr: Stderr, tmp_path: Path, is_verified: bool
) -> None:
    content = bytes(range(256)) * 5000
    sha256 = hashlib.sha256(content).hexdigest() if is_verified else None
    with running(FileServer(content)) as server:
        server.waits_for = stderr.has_waiter
        first, second = both(lambda: fetch_url(server.url(), sha256, tmp_path), server.has_begun)
        assert len(server.requests) == 1
    assert first == second
    assert first.read_bytes() == content


def test_three_runs_at_once_share_one_download_and_one_tokenization(tmp_path: Path) -> None:
    text = "\n".join(f"line {number} of {tmp_path} says {number % 7}" for number in range(400))
    with running(FileServer(text.encode())) as server:
        server.waits_for = threading.Event()
        arguments = (
            *SMALLEST, "data=text", "data.source=url", f"data.url={server.url('/text.txt')}",
            "data.block_size=32", "tokenizer.vocabulary_size=300", "masking.unit=word",
            "train.max_steps=2", "eval.fill_mask=[]", "runtime.precision=fp32", "run_dir=run",
        )  # fmt: skip
        folders = [tmp_path / f"job{number}" for number in range(3)]
        for folder in folders:
            folder.mkdir()
        runs = [start(arguments, folder) for folder in folders]

        def all_others_wait() -> bool:
            said = [run.output.read_text() for run in runs if run.output.exists()]
            return sum("waiting for another process" in text for text in said) == 2

        assert runs[0].wait_for(lambda: all_others_wait() or len(server.requests) > 1)
        server.waits_for.set()
        assert [run.status() for run in runs] == [0] * 3
        assert len(server.requests) == 1
    said = [run.output.read_text() for run in runs]
    assert sum("tokenized now" in text for text in said) == 1
    assert sum("tokenized before" in text for text in said) == 2
    first = results(folders[0] / "run")
    assert [results(folder / "run") for folder in folders] == [first] * 3


BUILD_AND_WAIT = """
import sys
from pathlib import Path
from mlmlab.fetch.cache import built_once

def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    sys.stdin.read()

built_once(Path(sys.argv[1]), build)
"""


def test_what_a_killed_process_was_building_is_built_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "thing"
    command = [sys.executable, "-c", BUILD_AND_WAIT, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"building\n"
        process.kill()
    assert not built_once(folder, lambda building: (building / "all").touch())
    assert [path.name for path in folder.iterdir()] == ["all"]
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]


def test_a_complete_cache_is_read_where_nothing_can_be_written(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Documents(("w1 w2",) * 20)
    opened(source)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache, "FileLock", refuse)
    assert opened(source).was_cached
    with refusal("the cache folder", Code.NOT_WRITABLE, "MLMLAB_CACHE"):
        opened(Documents(("w3",)))


# Digests


@pytest.fixture
def text(tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written long ago."""
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n")
    monkeypatch.setattr(cache, "_RACY_SECONDS", -60.0)
    return path


def test_a_text_is_hashed_once_for_many_starts(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = FileSource((text,)).fingerprint()
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    monkeypatch.setattr(hashlib, "file_digest", None)  # nobody hashes again
    assert FileSource((text,)).fingerprint() == fingerprint
    assert file_digest(text) == digest


def test_a_changed_text_is_hashed_again_even_with_its_old_size_and_time(text: Path) -> None:
    before = text.stat()
    first = file_digest(text)
    text.write_text("eno\nowt\n")
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert text.stat().st_size == before.st_size
    assert text.stat().st_mtime_ns == before.st_mtime_ns
    assert file_digest(text) == hashlib.sha256(b"eno\nowt\n").hexdigest() != first


def test_a_digest_of_a_file_that_has_just_changed_is_not_remembered(
    text: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("MLMLAB_CACHE", str(fresh_cache))
    monkeypatch.setattr(time, "time", lambda: text.stat().st_mtime + 1.0)
    file_digest(text)
    assert not list(fresh_cache.rglob("*"))
    monkeypatch.setattr(time, "time", lambda: text.stat().st_mtime + 10.0)
    file_digest(text)
    assert len([path for path in fresh_cache.rglob("*") if path.is_file()]) == 1


def test_a_digest_is_found_although_the_cache_cannot_be_written(
    text: Path, fresh_cache: Path
) -> None:
    fresh_cache.write_text("a file where a folder should be")
    assert file_digest(text) == hashlib.sha256(text.read_bytes()).hexdigest()


def test_a_damaged_download_is_fetched_again(
    tmp_path: Path, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytes(range(256)) * 100
    for sha256 in (hashlib.sha256(content).hexdigest(), None):
        with running(FileServer(content)) as server:
            file = fetch_url(server.url(), sha256, tmp_path)
            file.write_bytes(content + b"more")
            assert fetch_url(server.url(), sha256, tmp_path).read_bytes() == content
            assert len(server.requests) == 2
            shutil.rmtree(file.parent)
    assert capsys.readouterr().err.count("\n") == 2
