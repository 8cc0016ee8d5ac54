"""A run goes to the Hub and comes back: the files, the card, the token, and what can go wrong."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import TOKEN, block_sockets, use
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from reference.hub_models import VOCABULARY, write_reference
from refusals import refusal
from servers import COMMIT, HubServer, running

import mlmlab
from mlmlab import push, train
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.errors import Code
from mlmlab.runs import execute
from mlmlab.tracking import curve

REPOSITORY = "someone/tiny"
TINY = (
    "data.limit=200", "data.block_size=16", "model.layers=1", "model.hidden_size=32",
    "model.heads=2", "train.max_steps=2", "runtime.threads=1", "eval.fill_mask=[]",
)  # fmt: skip
MODEL = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json",
}  # fmt: skip
EXPORT = MODEL | {
    "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "README.md",
    "perplexity.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command."""
    folder = tmp_path_factory.mktemp("pushed") / "run"
    overrides = [*TINY, f"run_dir={folder}"]
    execute(mlmlab.compose(*overrides), overrides=overrides, quiet=True)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub without the repository, and a user who is logged in."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with running(HubServer("models", REPOSITORY, folder)) as server:
        use(server, tmp_path / "hub", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.token, server.exists = TOKEN, False
        yield server


Printed = pytest.CaptureFixture[str]


def test_a_pushed_run_is_one_commit_and_comes_back_as_the_same_model(
    hub: HubServer, run_dir: Path, capsys: Printed
) -> None:
    push.main([str(run_dir), REPOSITORY])
    assert capsys.readouterr().out == f"{hub.url}/{REPOSITORY}\n"
    (files,) = hub.commits
    assert set(files) == EXPORT
    assert not hub.private
    pushed, _ = mlmlab.load_pretrained(REPOSITORY, quiet=True)
    ours, tokenizer = mlmlab.load_pretrained(run_dir, quiet=True)
    ids = torch.tensor([tokenizer.encode("the cow lives in the barn .")])
    with torch.no_grad():
        assert torch.equal(pushed(ids), ours(ids))


def test_the_card_is_read_back_by_the_client_with_the_runs_perplexity(
    hub: HubServer, run_dir: Path
) -> None:
    push.main([str(run_dir), REPOSITORY])
    card = ModelCard.load(REPOSITORY)
    summary = OmegaConf.load(run_dir / "summary.json")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.dataset_split) == ("perplexity", "test")
    assert result.metric_value == pytest.approx(summary.eval_perplexity, abs=1e-4)
    assert card.data.pipeline_tag == "fill-mask"
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None
    before = summary.initial_eval_perplexity
    error = before * summary.initial_eval_loss_standard_error
    assert f"{before:.3f} ± {error:.3f}" in card.text
    assert f'pipeline("fill-mask", model="{REPOSITORY}")' in card.text
    assert "![Test perplexity by step](perplexity.png)" in card.text
    assert f"\n{shlex.join(['python', '-m', 'mlmlab.train', *TINY])}\n" in card.text
    for fact in (summary.processor, summary.versions.torch, summary.git_commit or "package"):
        assert fact in card.text
    assert (run_dir / "export" / "README.md").read_text().count("THIS_FOLDER_OR_REPOSITORY") == 1


def test_a_second_push_sends_no_large_file_again(hub: HubServer, run_dir: Path) -> None:
    push.main([str(run_dir), REPOSITORY])
    push.main([str(run_dir / "export"), REPOSITORY])
    assert len(hub.commits) == 2
    assert sum(request.startswith("PUT ") for request in hub.requests) == 1


def test_private_revision_and_tensorboard(hub: HubServer, run_dir: Path, capsys: Printed) -> None:
    options = ["--private", "--revision", "seed-1", "--tensorboard"]
    push.main([str(run_dir), REPOSITORY, *options])
    assert capsys.readouterr().out == f"{hub.url}/{REPOSITORY}/tree/seed-1\n"
    assert hub.private
    assert hub.branches == ["seed-1"]
    assert f"POST {hub.api}/commit/seed-1" in hub.requests
    (events,) = set(hub.commits[0]) - EXPORT
    assert events.startswith("tensorboard/events.out.tfevents.")


def test_a_dry_run_shows_files_and_card_and_connects_to_nothing(
    run_dir: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    block_sockets(monkeypatch)
    push.main([str(run_dir), REPOSITORY, "--dry-run"])
    shown = capsys.readouterr().out
    size = (run_dir / "export" / "model.safetensors").stat().st_size
    assert f"{size:,}  model.safetensors" in shown
    assert "pipeline_tag: fill-mask" in shown
    assert REPOSITORY in shown
    assert all(name in shown for name in EXPORT)


def test_without_matplotlib_there_is_no_picture_and_no_mention_of_one(
    hub: HubServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve.util, "find_spec", lambda name: None)
    push.main([str(run_dir), REPOSITORY])
    assert set(hub.commits[0]) == EXPORT - {"perplexity.png"}
    assert b"perplexity.png" not in hub.commits[0]["README.md"]


def test_a_folder_without_a_card_is_sent_as_it_is(
    hub: HubServer, tmp_path: Path, capsys: Printed
) -> None:
    write_reference("bert", tmp_path / "bert")
    word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)]).save(tmp_path / "bert")
    push.main([str(tmp_path / "bert"), REPOSITORY, "--dry-run"])
    assert "no card" in capsys.readouterr().out
    push.main([str(tmp_path / "bert"), REPOSITORY])
    assert set(hub.commits[0]) == MODEL


# What goes wrong


def test_each_refusal_of_the_hub_is_one_message_that_says_what_to_do(
    hub: HubServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusal("OWNER/NAME", Code.NOT_FOUND, "nobody/tiny", "404", "hf auth login"):
        push.main([str(run_dir), "nobody/tiny"])
    hub.may_write = False
    with refusal("OWNER/NAME", Code.NOT_WRITABLE, "403", "hf auth login"):
        push.main([str(run_dir), REPOSITORY])
    hub.exists = True  # and may be read
    with refusal("OWNER/NAME", Code.NOT_WRITABLE, "403", "hf auth login"):
        push.main([str(run_dir), REPOSITORY])
    hub.token = "hf_another"
    with refusal("OWNER/NAME", Code.INVALID, "401", "hf auth login"):
        push.main([str(run_dir), REPOSITORY])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refusal("OWNER/NAME", Code.UNREACHABLE, REPOSITORY):
        push.main([str(run_dir), REPOSITORY])
    assert hub.commits == []


def test_what_cannot_work_is_refused_without_a_request(
    hub: HubServer, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "a/b/c", "", "a/", "a b/c", "a/b--c", "a/b@main"):
        with refusal("OWNER/NAME", Code.INVALID):
            push.main([str(run_dir), name])
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\x0b{TOKEN}")
    with refusal("OWNER/NAME", Code.INVALID, "hf auth login"):
        push.main([str(run_dir), REPOSITORY])
    monkeypatch.delenv("HF_TOKEN")
    with refusal("OWNER/NAME", Code.MISSING, "hf auth login"):
        push.main([str(run_dir), REPOSITORY])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refusal("OWNER/NAME", Code.UNREACHABLE, "HF_HUB_OFFLINE"):
        push.main([str(run_dir), REPOSITORY])
    assert hub.requests == []


def test_a_folder_that_is_no_export_is_named_with_what_it_is(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").touch()
    checkpoint = run_dir / "checkpoints" / "step_2"
    for folder, named in (
        (tmp_path / "nothing", "no such folder"),
        (tmp_path / "unfinished", "resume="),
        (run_dir.parent, str(run_dir)),
        (checkpoint, "optimizer"),
        (tmp_path, "config.json"),
    ):
        with refusal("RUN_OR_EXPORT_DIR", Code.NOT_FOUND, folder, named):
            push.main([str(folder), REPOSITORY, "--dry-run"])
    shutil.copytree(run_dir / "export", tmp_path / "export")
    with refusal("--tensorboard", Code.NOT_FOUND, tmp_path):
        push.main([str(tmp_path / "export"), REPOSITORY, "--tensorboard", "--dry-run"])


# At the end of a run


def trained(tmp_path: Path, *more: str) -> Any:
    keys = (*TINY, f"run_dir={tmp_path}/run", f"train.push_to_hub={REPOSITORY}", *more)
    return mlmlab.run(mlmlab.compose(*keys))


def test_a_run_pushes_itself(hub: HubServer, tmp_path: Path, capsys: Printed) -> None:
    trained(tmp_path)
    assert set(hub.commits[0]) == EXPORT
    assert f"pushed     {hub.url}/{REPOSITORY}\n" in capsys.readouterr().out


def test_a_push_that_fails_leaves_the_run_finished_and_says_what_to_type(
    hub: HubServer, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.may_write = False
    assert trained(tmp_path).summary.steps == 2
    said = capsys.readouterr().err
    assert "403" in said
    assert f"  python -m mlmlab.push {tmp_path}/run {REPOSITORY}\n" in said

    def defective(*_: object, **__: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("mlmlab.runs.push.upload", defective)
    assert trained(tmp_path, f"run_dir={tmp_path}/second").summary.steps == 2
    assert "KeyError" in capsys.readouterr().err


def test_without_a_token_the_run_does_not_begin(
    hub: HubServer, tmp_path: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with refusal("train.push_to_hub", Code.MISSING, "hf auth login"):
        trained(tmp_path)
    assert not (tmp_path / "run").exists()
    assert not fresh_cache.exists()
    with refusal("train.push_to_hub", Code.INVALID, "tiny"):
        mlmlab.compose("train.push_to_hub=tiny")


def test_the_jobs_of_a_sweep_push_to_a_repository_each(
    hub: HubServer, tmp_path: Path, capfd: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back
    repository = "train.push_to_hub=someone/tiny-${seed}"
    arguments = ["-m", "seed=0,1", *TINY, repository, "sweep_dir=sweep"]
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    train.main()
    output = capfd.readouterr()
    for seed in (0, 1):  # the test's Hub has neither, and says so
        assert f"someone/tiny-{seed}: nothing of that name" in output.err
        card = (tmp_path / "work/sweep" / f"{seed + 1}_seed={seed}/export/README.md").read_text()
        assert f"python -m mlmlab.train seed={seed} " in card
    assert "2 of 2 done" in output.out
    assert "push_to_hub" not in output.out  # no setting that the table compares


# The card of other runs


def test_a_card_pins_the_checkpoint_and_has_no_local_path_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    write_reference("bert", folder)
    word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)]).save(folder)
    (tmp_path / "my.txt").write_text("w1 w2 w3 w4\n" * 200)
    (tmp_path / "my_sinks.py").write_text(
        "class Sink:\n"
        "    def __init__(self, config, run_dir, *, key): ...\n"
        "    def log(self, step, figures): ...\n"
        "    def text(self, step, name, value): ...\n"
        "    def close(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = [
        "+experiment=finetune", f"checkpoint={REPOSITORY}", f"data.path={tmp_path}/my.txt",
        "data.block_size=8", "train.max_steps=1", "runtime.threads=1", "resume=auto",
        f"run_dir={tmp_path}/run", "tracking.sinks=[jsonl,my_sinks:Sink]",
        "tracking.options.Sink.key=secret-of-a-sink",
    ]  # fmt: skip
    with running(HubServer("models", REPOSITORY, folder)) as server:
        use(server, tmp_path / "hub", monkeypatch)
        execute(mlmlab.compose(*overrides), overrides=overrides, quiet=True)
        more = ["train.max_steps=2", "resume=auto", f"run_dir={tmp_path}/run"]
        execute(mlmlab.compose(*more), overrides=more, quiet=True)
    card = ModelCard.load(tmp_path / "run" / "export" / "README.md")
    assert card.data.base_model == REPOSITORY
    command = (
        f"python -m mlmlab.train +experiment=finetune checkpoint={REPOSITORY}@{COMMIT} "
        "data.path=my.txt data.block_size=8 train.max_steps=1 runtime.threads=1\n"
    )
    assert command in card.text
    assert "| recipe | finetune |" in card.text
    assert "| resumed with | train.max_steps=2 |" in card.text
    assert str(tmp_path) not in card.content
    assert "secret-of-a-sink" not in card.content


# The token


@pytest.mark.parametrize("may_write", [True, False])
def test_the_token_is_neither_printed_nor_written(
    hub: HubServer, tmp_path: Path, may_write: bool
) -> None:
    hub.may_write = may_write
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-m", "mlmlab.train", *TINY, f"train.push_to_hub={REPOSITORY}"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(mlmlab.__file__).parents[1]),
        "MLMLAB_CACHE": str(work / "cache"),
        "HF_HOME": str(work / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (len(hub.commits) == 1) == may_write
    assert ("403" in done.stderr) != may_write
    pushed = [content for commit in hub.commits for content in commit.values()]
    written = [file.read_bytes() for file in work.rglob("*") if file.is_file()]
    assert len(written) > 10
    for text in (done.stdout.encode(), done.stderr.encode(), *written, *pushed):
        assert TOKEN.encode() not in text
    assert hub.exists == may_write  # the server has seen a token, and knows whose it is
