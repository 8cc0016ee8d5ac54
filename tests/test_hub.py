"""Models by id and revision through the real huggingface_hub client, from a loopback server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from reference.hub_models import VOCABULARY, write_reference

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.errors import UserError
from mlmlab.fetch.hub import fetch_model, fetch_tokenizer

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REPOSITORY = "someone/tiny-bert"


class Hub(ThreadingHTTPServer):
    """As much of the Hub as its client asks for: one repository at one commit."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        files = sorted(file.name for file in self.server.folder.iterdir())
        if path.startswith(f"/api/models/{REPOSITORY}"):
            rest = path.removeprefix(f"/api/models/{REPOSITORY}").strip("/")
            if rest not in ("", "revision/main", "revision/v1", f"revision/{COMMIT}"):
                if not rest.startswith("tree/"):
                    self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
                    return
                sizes = [(name, (self.server.folder / name).stat().st_size) for name in files]
                tree = [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                    for name, size in sizes
                ]
                self._send(200, json.dumps(tree).encode(), {}, body)
                return
            info = {
                "id": REPOSITORY,
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            self._send(200, json.dumps(info).encode(), {}, body)
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            file = self.server.folder / path.rsplit("/", 1)[1]
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            if body:
                self.server.downloads.append(file.name)
            headers = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}
            self._send(200, file.read_bytes(), headers, body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one tiny BERT, an empty client cache, and the client pointed at both."""
    import huggingface_hub.constants as constants

    folder = tmp_path / "repository"
    write_reference("bert", folder)
    word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)]).save(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read: there is a safer file")
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    template = "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + template,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_by_id_is_the_model_in_the_repository(hub: Hub) -> None:
    model, tokenizer = mlmlab.load_pretrained(REPOSITORY)
    local = load_model(str(hub.folder)).model
    ids = torch.tensor([tokenizer.encode("w1 w2 w3")])
    with torch.no_grad():
        assert torch.equal(model(ids), local(ids))


def test_the_commit_is_recorded_whatever_revision_was_asked_for(hub: Hub) -> None:
    for source in (REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}@{COMMIT}"):
        _, resolved = fetch_model(source)
        assert resolved == f"{REPOSITORY}@{COMMIT}"


def test_only_the_safest_weights_are_downloaded_and_only_once(hub: Hub) -> None:
    fetch_model(REPOSITORY)
    assert "model.safetensors" in hub.downloads
    assert "pytorch_model.bin" not in hub.downloads
    before = list(hub.downloads)
    fetch_model(REPOSITORY)
    assert hub.downloads == before


def test_a_tokenizer_is_fetched_without_the_weights(hub: Hub) -> None:
    folder = fetch_tokenizer(REPOSITORY)
    assert (folder / "tokenizer.json").is_file()
    assert "model.safetensors" not in hub.downloads


def test_without_a_connection_the_cached_copy_is_used_and_said(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, resolved = fetch_model(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(REPOSITORY) == (folder, resolved)
    assert f"using the cached copy {COMMIT}" in capsys.readouterr().err


def test_a_pinned_commit_in_the_cache_is_not_asked_for_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pinned = fetch_model(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(pinned) == (folder, pinned)
    assert capsys.readouterr().err == ""


def test_an_unreachable_hub_is_one_message_with_a_remedy(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        fetch_model(REPOSITORY)
    assert "the Hub cannot be reached" in caught.value.problems[0].found
    assert "checkpoint=DIR" in str(caught.value)


def test_an_unknown_repository_or_revision_is_named(hub: Hub) -> None:
    with pytest.raises(UserError, match="no-such"):
        fetch_model("someone/no-such")
    with pytest.raises(UserError, match="no revision v9"):
        fetch_model(f"{REPOSITORY}@v9")


def test_a_path_that_is_not_there_is_not_asked_of_the_hub() -> None:
    for source in ("no/such/folder", "./folder", "/no/folder", "word", "a/b--c", "runs/x."):
        with pytest.raises(UserError) as caught:
            fetch_model(source)
        assert "no such folder" in caught.value.problems[0].found


@pytest.mark.hub
def test_the_published_distilroberta_gives_its_reference_scores() -> None:
    fill = mlmlab.FillMask(*mlmlab.load_pretrained("distilbert/distilroberta-base"))
    cases = {
        "Read the rest of this <mask> to understand things in more detail": {
            "article": 0.354191, "post": 0.204787, "guide": 0.071647, "essay": 0.067819,
            "blog": 0.041652,
        },
        "At a <mask> you can drink beer and wine": {
            "discount": 0.228761, "premium": 0.085849, "minimum": 0.077105, "cafe": 0.059273,
            "festival": 0.043463,
        },
        "Performing additions and subtractions is a part of <mask>": {
            "mathematics": 0.085562, "programming": 0.078970, "calculus": 0.064769,
            "arithmetic": 0.030687, "learning": 0.025549,
        },
    }  # fmt: skip
    for text, expected in cases.items():
        answers = {a["token_str"].strip(): a["score"] for a in fill(text)}
        assert answers == pytest.approx(expected, abs=1e-3)
