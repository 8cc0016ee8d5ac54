"""Downloads from a loopback server: verified, resumed, cached, and never half there."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from refusals import refusal
from servers import FileServer, running

from mlmlab.errors import Code
from mlmlab.fetch.url import fetch_url

CONTENT = bytes(range(256)) * 800
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WAY_AROUND = "data.source=file data.path=FILE"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with running(FileServer(CONTENT)) as server:
        yield server


def files(folder: Path) -> list[Path]:
    """All files but the locks, which stay."""
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_download_has_the_bytes_and_the_name_of_the_file(
    server: FileServer, tmp_path: Path
) -> None:
    file = fetch_url(server.url(), SHA256.upper(), tmp_path)
    assert file.name == "text.json.gz"
    assert file.read_bytes() == CONTENT
    assert {path.name for path in files(tmp_path)} == {"text.json.gz", "text.json.gz.sha256"}


def test_a_second_fetch_asks_nobody(server: FileServer, tmp_path: Path) -> None:
    first = fetch_url(server.url(), SHA256, tmp_path)
    assert fetch_url(server.url(), SHA256, tmp_path) == first
    assert len(server.requests) == 1


def test_another_checksum_or_address_is_another_file(server: FileServer, tmp_path: Path) -> None:
    fetched = {
        fetch_url(server.url(), SHA256, tmp_path),
        fetch_url(server.url(), None, tmp_path),
        fetch_url(server.url("/other/text.json.gz"), SHA256, tmp_path),
    }
    assert len(fetched) == 3


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    with refusal("data.sha256", Code.CORRUPT, server.url(), SHA256, "0" * 64, WAY_AROUND):
        fetch_url(server.url(), "0" * 64, tmp_path)
    assert files(tmp_path) == []


def test_a_file_that_is_not_there_is_named_with_the_servers_answer(
    server: FileServer, tmp_path: Path
) -> None:
    url = server.url("/missing.json")
    with refusal("data.url", Code.UNREACHABLE, url, "404", WAY_AROUND):
        fetch_url(url, SHA256, tmp_path)
    assert files(tmp_path) == []


def test_a_cut_connection_is_taken_up_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000, 50_000]
    assert fetch_url(server.url(), SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=1000-", "bytes=51000-"]


def test_a_server_without_ranges_starts_again(server: FileServer, tmp_path: Path) -> None:
    server.cuts, server.honours_ranges = [1000], False
    assert fetch_url(server.url(), SHA256, tmp_path).read_bytes() == CONTENT


def test_a_later_run_goes_on_with_a_download_that_failed(
    server: FileServer, tmp_path: Path
) -> None:
    server.cuts = [1000] * 4
    with refusal("data.url", Code.UNREACHABLE, server.url()):
        fetch_url(server.url(), SHA256, tmp_path)
    assert fetch_url(server.url(), SHA256, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=4000-"


def test_without_a_checksum_two_versions_are_never_joined(
    server: FileServer, tmp_path: Path
) -> None:
    server.cuts = [1000] * 4
    with refusal("data.url", Code.UNREACHABLE, server.url()):
        fetch_url(server.url(), None, tmp_path)
    server.content = CONTENT[::-1]
    assert fetch_url(server.url(), None, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_leftover_longer_than_the_file_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000] * 4
    with refusal("data.url", Code.UNREACHABLE, server.url()):
        fetch_url(server.url(), SHA256, tmp_path)
    (partial,) = files(tmp_path)
    partial.write_bytes(CONTENT + b"more")
    assert fetch_url(server.url(), SHA256, tmp_path).read_bytes() == CONTENT


def test_a_redirection_is_followed(server: FileServer, tmp_path: Path) -> None:
    file = fetch_url(server.url("/moved.json"), SHA256, tmp_path)
    assert file.name == "moved.json"
    assert file.read_bytes() == CONTENT


def test_a_server_that_stalls_is_given_up_with_a_message(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlmlab.fetch.url._TIMEOUT_SECONDS", 0.1)
    server.stalls_seconds = 1.0
    with refusal("data.url", Code.UNREACHABLE, server.url(), "0.1 seconds"):
        fetch_url(server.url(), SHA256, tmp_path)
    assert len(server.requests) == 4
    server.stalls_seconds = 0.0
    assert fetch_url(server.url(), SHA256, tmp_path).read_bytes() == CONTENT


def test_a_server_that_is_gone_is_one_message_with_the_way_around_it(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/text.json.gz"
    with refusal("data.url", Code.UNREACHABLE, url, WAY_AROUND):
        fetch_url(url, None, tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "address", ["text.json", "ftp://host/text.json", "http://host", "http://[host/text.json", ""]
)
def test_only_an_address_of_a_file_is_fetched(address: str, tmp_path: Path) -> None:
    with refusal("data.url", Code.INVALID, address, WAY_AROUND):
        fetch_url(address, None, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with refusal("the cache folder", Code.NOT_WRITABLE, tmp_path / "cache", "MLMLAB_CACHE"):
        fetch_url("http://127.0.0.1:9/text.json.gz", None, tmp_path / "cache" / "downloads")
