"""Models and data sets by id and revision, through the real huggingface_hub client on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hub_client import TOKEN, block_sockets, use
from omegaconf import OmegaConf
from reference.hub_models import VOCABULARY, write_reference
from refusals import refusal
from safetensors.torch import load_file, save_file
from servers import COMMIT, HubServer, running

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.data.sources import FileSource
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.fetch.hub import fetch_dataset, fetch_model, fetch_tokenizer

REPOSITORY = "someone/tiny-bert"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one tiny BERT."""
    folder = tmp_path / "repository"
    write_reference("bert", folder)
    word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)]).save(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read: there is a safer file")
    with running(HubServer("models", REPOSITORY, folder)) as server:
        use(server, tmp_path / "cache", monkeypatch)
        yield server


def test_a_model_by_id_is_the_model_in_the_repository(hub: HubServer) -> None:
    model, tokenizer = mlmlab.load_pretrained(REPOSITORY)
    local = load_model(str(hub.folder)).model
    ids = torch.tensor([tokenizer.encode("w1 w2 w3")])
    with torch.no_grad():
        assert torch.equal(model(ids), local(ids))


def test_the_commit_is_recorded_whatever_revision_was_asked_for(hub: HubServer) -> None:
    for source in (REPOSITORY, f"{REPOSITORY}@v1", f"{REPOSITORY}@{COMMIT}"):
        _, resolved = fetch_model(source)
        assert resolved == f"{REPOSITORY}@{COMMIT}"


def test_only_the_safest_weights_are_downloaded_and_only_once(hub: HubServer) -> None:
    fetch_model(REPOSITORY)
    assert "model.safetensors" in hub.downloads
    assert "pytorch_model.bin" not in hub.downloads
    before = list(hub.downloads)
    fetch_model(REPOSITORY)
    assert hub.downloads == before


def test_a_tokenizer_is_fetched_without_the_weights(hub: HubServer) -> None:
    folder, _ = fetch_tokenizer(REPOSITORY)
    assert (folder / "tokenizer.json").is_file()
    assert "model.safetensors" not in hub.downloads


def test_a_run_pins_its_tokenizer_to_the_commit_and_resumes_by_the_name_too(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("w1 w2 w3 w4\n" * 200)
    command = (
        "data=text", "data.path=my.txt", "data.block_size=8", "model.hidden_size=32",
        f"tokenizer.path={REPOSITORY}", "train.max_steps=2", "runtime.threads=1",
        "run_dir=run", "resume=auto",
    )  # fmt: skip
    mlmlab.run(mlmlab.compose(*command), quiet=True)
    assert OmegaConf.load("run/config.yaml").tokenizer.path == f"{REPOSITORY}@{COMMIT}"
    assert mlmlab.run(mlmlab.compose(*command), quiet=True).summary.steps == 2
    with refusal("tokenizer.path", Code.CHANGED, "owner/other"):
        mlmlab.compose(*command, "tokenizer.path=owner/other")


def test_without_a_connection_the_cached_copy_is_used_and_said(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, resolved = fetch_model(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(REPOSITORY) == (folder, resolved)
    assert f"using the cached copy {COMMIT}" in capsys.readouterr().err


def test_a_pinned_commit_in_the_cache_is_not_asked_for_again(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pinned = fetch_model(REPOSITORY)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model(pinned) == (folder, pinned)
    assert capsys.readouterr().err == ""


def test_an_unreachable_hub_is_one_message_with_a_remedy(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refusal("checkpoint", Code.UNREACHABLE, REPOSITORY, "checkpoint=DIR"):
        fetch_model(REPOSITORY)


def test_an_unknown_repository_or_revision_is_named(hub: HubServer) -> None:
    with refusal("checkpoint", Code.NOT_FOUND, "someone/no-such"):
        fetch_model("someone/no-such")
    with refusal("checkpoint", Code.NOT_FOUND, "v9", REPOSITORY):
        fetch_model(f"{REPOSITORY}@v9")


def test_a_path_that_is_not_there_is_not_asked_of_the_hub() -> None:
    for source in ("no/such/folder", "./folder", "/no/folder", "word", "a/b--c", "runs/x."):
        with refusal("checkpoint", Code.NOT_FOUND, source):
            fetch_model(source)


# What goes wrong on the way


def test_a_cached_model_takes_two_questions_by_name_and_none_by_commit(hub: HubServer) -> None:
    _, pinned = fetch_model(REPOSITORY)
    hub.requests.clear()
    fetch_model(REPOSITORY)
    asked = [f"GET {hub.api}", f"GET {hub.api}/revision/main"]  # by us, and by the client
    assert hub.requests == asked
    hub.requests.clear()
    fetch_model(pinned)
    assert hub.requests == []


def test_a_private_repository_opens_with_its_token_alone(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private, hub.token = True, TOKEN
    with refusal("checkpoint", Code.NOT_FOUND, REPOSITORY, "hf auth login"):
        fetch_model(REPOSITORY)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with refusal("checkpoint", Code.INVALID, REPOSITORY, "hf auth login"):
        fetch_model(REPOSITORY)
    assert hub.downloads == []
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch_model(REPOSITORY)[0] / "model.safetensors").is_file()


def test_a_token_that_cannot_be_sent_is_not_quoted(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x0b{TOKEN}")
    with pytest.raises(UserError) as error:
        fetch_model(REPOSITORY)
    assert "Bearer" in str(error.value)  # this message is the one that quotes it
    assert TOKEN not in str(error.value)


def test_a_busy_hub_is_asked_again(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    hub.statuses = [429]
    folder, _ = fetch_model(REPOSITORY)
    assert hub.statuses == []
    assert waited == [1.0]  # Retry-After, and one
    assert_same_files(folder, hub)


def assert_same_files(folder: Path, hub: HubServer) -> None:
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    assert "model.safetensors" in names
    for name in names:
        assert (folder / name).read_bytes() == (hub.folder / name).read_bytes()


def test_a_connection_that_is_cut_within_a_file_is_resumed_there(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    (largest,) = (f for f in hub.folder.iterdir() if f.name == "model.safetensors")
    cut = largest.stat().st_size - 100
    assert cut > max(f.stat().st_size for f in hub.folder.iterdir() if f != largest)
    hub.cuts = [cut]
    folder, _ = fetch_model(REPOSITORY)
    ranges = [r for n, r in zip(hub.downloads, hub.ranges, strict=True) if n == largest.name]
    assert ranges == [None, f"bytes={cut // 1000 * 1000}-"]
    assert_same_files(folder, hub)


def test_a_file_of_another_size_than_announced_is_refused(hub: HubServer) -> None:
    hub.announced = {"model.safetensors": 12345}
    with refusal("checkpoint", Code.UNREACHABLE, REPOSITORY, "not complete", "12345"):
        fetch_model(REPOSITORY)


def test_a_sharded_checkpoint_is_the_same_model(hub: HubServer) -> None:
    weights = hub.folder / "model.safetensors"
    tensors = load_file(str(weights))
    whole = load_model(str(hub.folder)).model.state_dict()
    weights.unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, str(hub.folder / shard))
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": places}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = load_model(REPOSITORY).model.state_dict()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)
    assert set(places.values()) <= set(hub.downloads)


def test_a_run_starts_from_a_cached_model_without_any_connection(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, pinned = fetch_model(REPOSITORY)
    block_sockets(monkeypatch)
    (tmp_path / "my.txt").write_text("w1 w2 w3 w4\n" * 200)
    for source, says in ((pinned, ""), (REPOSITORY, f"using the cached copy {COMMIT}")):
        config = mlmlab.compose(
            "+experiment=finetune", f"checkpoint={source}", f"data.path={tmp_path}/my.txt",
            "data.block_size=8", "train.max_steps=1", "runtime.threads=1",
            f"run_dir={tmp_path}/{len(says)}",
        )  # fmt: skip
        assert mlmlab.run(config, quiet=True).summary.steps == 1
        assert says in capsys.readouterr().err
        written = OmegaConf.load(tmp_path / str(len(says)) / "config.yaml")
        assert written.checkpoint == pinned


# Data sets

REVIEWS = "someone/reviews"
ROWS = [f"the {a} dog saw the {b} cat" for a in "abcdefgh" for b in "stuvwxyz"]
TRAIN = "plain_text/train-*.parquet"


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with one data set, in the layout of published ones."""
    folder = tmp_path / "reviews" / "plain_text"
    folder.mkdir(parents=True)
    for name, rows in {
        "train-00000-of-00002": ROWS[:40],
        "train-00001-of-00002": ROWS[40:],
        "test-00000-of-00001": ["a test"],
    }.items():
        pyarrow.parquet.write_table(
            pyarrow.table({"text": rows, "label": [0] * len(rows)}), folder / f"{name}.parquet"
        )
    (tmp_path / "reviews" / "README.md").write_text("# Reviews")
    with running(HubServer("datasets", REVIEWS, folder.parent)) as server:
        use(server, tmp_path / "cache", monkeypatch)
        yield server


def test_a_data_sets_files_are_read_in_order_and_nothing_else_is_downloaded(
    reviews: HubServer,
) -> None:
    files, commit = fetch_dataset(REVIEWS, None, [TRAIN])
    assert commit == COMMIT
    assert list(FileSource(files).documents()) == ROWS
    assert len(reviews.downloads) == 2
    for revision in ("main", "v1", COMMIT):
        assert fetch_dataset(REVIEWS, revision, [TRAIN])[1] == COMMIT
    assert len(reviews.downloads) == 2


def test_a_run_on_a_data_set_records_the_commit_and_runs_again_offline(
    reviews: HubServer,
    tmp_path: Path,
    fresh_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = (
        "data=text", "data.source=hub", f"data.repository={REVIEWS}", f"data.files='{TRAIN}'",
        "data.block_size=16", "tokenizer.vocabulary_size=300", "model.hidden_size=32",
        "train.max_steps=2", "runtime.threads=1",
    )  # fmt: skip
    first = mlmlab.run(mlmlab.compose(*settings, "run_dir=first"), quiet=True).summary
    config = OmegaConf.load("first/config.yaml")
    assert config.data.revision == COMMIT
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    pinned = (*settings, f"data.revision={COMMIT}", "run_dir=second")
    assert mlmlab.run(mlmlab.compose(*pinned), quiet=True).summary.eval_loss == first.eval_loss
    assert capsys.readouterr().err == ""
    by_name = (*settings, "run_dir=third")
    assert mlmlab.run(mlmlab.compose(*by_name), quiet=True).summary.eval_loss == first.eval_loss
    assert f"using the cached copy {COMMIT}" in capsys.readouterr().err


def test_files_that_are_not_cached_are_not_taken_for_those_that_are(
    reviews: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_dataset(REVIEWS, None, ["plain_text/train-00000*"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for pattern in (TRAIN, "plain_text/test-*"):
        with refusal("data.repository", Code.UNREACHABLE, REVIEWS, "data.source=file data.path="):
            fetch_dataset(REVIEWS, None, [pattern])


@pytest.mark.parametrize("pattern", [None, "*.csv"])
def test_without_a_matching_file_the_message_lists_those_there_are(
    reviews: HubServer, pattern: str | None
) -> None:
    named = (pattern or "null", REVIEWS, "README.md, plain_text/", "data.files=")
    with refusal("data.files", Code.NOT_FOUND, *named):
        fetch_dataset(REVIEWS, None, [pattern] if pattern else [])


def test_an_unknown_data_set_or_revision_is_named(reviews: HubServer) -> None:
    for repository, revision, code, named in (
        ("someone/no-such", None, Code.NOT_FOUND, ["someone/no-such"]),
        (REVIEWS, "v9", Code.NOT_FOUND, ["v9", REVIEWS]),
        ("no such name", None, Code.INVALID, ["no such name"]),
    ):
        with refusal("data.repository", code, *named):
            fetch_dataset(repository, revision, [TRAIN])
