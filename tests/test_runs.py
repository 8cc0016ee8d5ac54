"""mlmlab.run and mlmlab.evaluate_checkpoint do what the commands do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from refusals import refusal
from stopping import TINY, bits, listing

import mlmlab
from mlmlab.errors import Code
from mlmlab.runs.replay import Replay

SHORT = (*TINY, "train.max_steps=20", "model.dropout=0.0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    mlmlab.run(mlmlab.compose(*SHORT, f"run_dir={run_dir}"), quiet=True)
    return run_dir


def test_run_replays_a_step_and_writes_nothing(finished: Path) -> None:
    before = listing(finished)
    config = mlmlab.compose(f"resume={finished}", "debug=replay", "debug.step=7")
    replayed = mlmlab.run(config, quiet=True)
    assert isinstance(replayed, Replay)
    assert replayed.step == 7
    assert listing(finished) == before


def test_run_starts_the_processes_that_the_config_asks_for(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = mlmlab.compose(*SHORT, "runtime.processes=2", f"run_dir={tmp_path / 'run'}")
    summary = mlmlab.run(config).summary
    assert "2 processes" in capfd.readouterr().out
    alone = json.loads((finished / "summary.json").read_text())
    assert summary.eval_loss == pytest.approx(alone["eval_loss"], rel=1e-5)
    assert summary.eval_masked_tokens == alone["eval_masked_tokens"]
    report = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(f"checkpoint={tmp_path / 'run'}", "runtime.processes=2"),
        quiet=True,
    )
    assert report.evaluation.loss == summary.eval_loss
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("resume", ["resume={}", "resume=auto run_dir={}"])
def test_a_finished_run_has_nothing_left_to_do_and_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str], resume: str
) -> None:
    before = listing(finished)
    summary = mlmlab.run(mlmlab.compose(*resume.format(finished).split())).summary
    assert listing(finished) == before
    assert summary.steps == 20
    assert summary.eval_loss == json.loads((finished / "summary.json").read_text())["eval_loss"]
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.parametrize("resume", ["resume={}", "resume=auto run_dir={}"])
def test_a_longer_horizon_resumes_a_finished_run(
    finished: Path, tmp_path: Path, resume: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    config = OmegaConf.load(run_dir / "config.yaml")
    config.run_dir = str(run_dir)
    OmegaConf.save(config, run_dir / "config.yaml")
    overrides = resume.format(run_dir).split()
    result = mlmlab.run(mlmlab.compose(*overrides, "train.max_steps=26"), quiet=True)
    assert result.summary.steps == 26


def test_the_summary_of_a_finished_run_may_have_an_unknown_loss(
    finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    content = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps({**content, "eval_loss": None}))
    summary = mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True).summary
    assert summary.eval_loss != summary.eval_loss


# What a run pins when it begins


TEXT = (*(key for key in TINY if not key.startswith("data.")), "data=text", "data.block_size=16",
        "tokenizer.vocabulary_size=300", "train.max_steps=6", "train.save_every_steps=3",
        "eval.every_steps=null")  # fmt: skip


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = [f"the {n}th of many lines says {n * n} and {n % 7}" for n in range(300)]
    (tmp_path / "my.txt").write_text("\n".join(lines))
    (tmp_path / "held.txt").write_text("\n".join(reversed(lines)))
    return tmp_path / "my.txt"


@pytest.mark.parametrize("named", ["my.txt", "'~/my.txt'", "'./m*.txt'"])
def test_a_run_is_found_again_from_another_folder(
    text: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    mlmlab.run(
        mlmlab.compose(*TEXT, f"data.path={named}", "data.eval_path=held.txt", "run_dir=run"),
        quiet=True,
    )
    run_dir = text.parent / "run"
    config = OmegaConf.load(run_dir / "config.yaml")
    assert Path(config.data.path).parent == text.parent
    assert config.data.eval_path == str(text.parent / "held.txt")
    before = bits(run_dir)
    (text.parent / "elsewhere").mkdir()
    monkeypatch.chdir(text.parent / "elsewhere")
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation(f"checkpoint={run_dir}"))
    assert report.evaluation.loss == json.loads((run_dir / "summary.json").read_text())["eval_loss"]
    shutil.rmtree(run_dir / "checkpoints" / "step_6")
    (run_dir / "summary.json").unlink()
    mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True)
    assert bits(run_dir) == before


def test_the_command_that_began_a_run_resumes_it_with_its_groups_and_relative_paths(
    text: Path,
) -> None:
    command = (
        "+experiment=finetune",
        "checkpoint=null",
        "model=tiny",
        *TEXT,
        "data.path=my.txt",
        "run_dir=run",
    )
    mlmlab.run(mlmlab.compose(*command, "resume=auto"), quiet=True)
    run_dir = text.parent / "run"
    before = bits(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_6")
    (run_dir / "summary.json").unlink()
    mlmlab.run(mlmlab.compose(*command, "resume=auto"), quiet=True)
    assert bits(run_dir) == before
    with refusal("masking.unit", Code.CHANGED, "masking.unit=word"):
        mlmlab.compose(*command, "masking=whole_word", "resume=auto")


def test_local_checkpoints_and_tokenizers_are_pinned_by_absolute_paths(
    finished: Path, text: Path
) -> None:
    shutil.copytree(finished / "export", text.parent / "model")
    config = mlmlab.compose(
        *(key for key in TEXT if not key.startswith("model.")), "model=from_checkpoint",
        "checkpoint=model", "tokenizer.path=model", "data.path=my.txt", "run_dir=run",
    )  # fmt: skip
    mlmlab.run(config, quiet=True)
    written = OmegaConf.load("run/config.yaml")
    assert written.checkpoint == written.tokenizer.path == str(text.parent / "model")
    assert str(text.parent) not in Path("run/export/README.md").read_text()


# Text that has changed


def _changed(text: Path) -> None:
    text.write_text(text.read_text().replace("many", "some"))


def _killed(text: Path) -> Path:
    """A run that was killed after step 3."""
    keys = (*TEXT, "data.path=my.txt", "data.eval_path=held.txt", "run_dir=run")
    mlmlab.run(mlmlab.compose(*keys), quiet=True)
    run_dir = text.parent / "run"
    shutil.rmtree(run_dir / "checkpoints" / "step_6")
    (run_dir / "summary.json").unlink()
    return run_dir


@pytest.mark.parametrize(("name", "key"), [("my.txt", "data.path"), ("held.txt", "data.eval_path")])
@pytest.mark.parametrize("overrides", [(), ("debug=replay", "debug.step=5")])
def test_a_run_on_changed_text_is_not_resumed_or_replayed(
    text: Path, name: str, key: str, overrides: tuple[str, ...]
) -> None:
    run_dir = _killed(text)
    _changed(text.parent / name)
    before = listing(run_dir)
    with refusal(key, Code.CHANGED, name):
        mlmlab.run(mlmlab.compose(f"resume={run_dir}", *overrides), quiet=True)
    assert listing(run_dir) == before


@pytest.mark.parametrize(
    ("changed", "key"), [("my.txt", "data.path"), ("held.txt", "data.eval_path")]
)
def test_a_run_is_not_evaluated_on_changed_text(text: Path, changed: str, key: str) -> None:
    run_dir = text.parent / "run"
    keys = (*TEXT, "data.path=my.txt", "data.eval_path=held.txt", "run_dir=run")
    mlmlab.run(mlmlab.compose(*keys), quiet=True)
    config = mlmlab.compose_evaluation(f"checkpoint={run_dir}")
    mlmlab.evaluate_checkpoint(config, quiet=True)
    _changed(text.parent / changed)
    with refusal(key, Code.CHANGED, changed):
        mlmlab.evaluate_checkpoint(config, quiet=True)
    named = mlmlab.compose_evaluation(f"checkpoint={run_dir}", "data.path=my.txt")
    mlmlab.evaluate_checkpoint(named, quiet=True)  # text that the user names is what it is


def test_a_touched_file_is_no_changed_text(text: Path) -> None:
    run_dir = _killed(text)
    os.utime(text, (1_000_000_000, 1_000_000_000))
    assert mlmlab.run(mlmlab.compose(f"resume={run_dir}"), quiet=True).summary.steps == 6


def test_the_file_that_changed_is_named_among_several(text: Path) -> None:
    (text.parent / "more.txt").write_text("another file\n" * 50)
    os.utime(text.parent / "more.txt", (1_000_000_000, 1_000_000_000))
    keys = (*TEXT, "data.path='m*.txt'", "run_dir=run")
    mlmlab.run(mlmlab.compose(*keys), quiet=True)
    _changed(text)
    shutil.rmtree("run/checkpoints/step_6")
    Path("run/summary.json").unlink()
    with refusal("data.path", Code.CHANGED, "my.txt"):
        mlmlab.run(mlmlab.compose("resume=run"), quiet=True)


# The commit of the code


def test_the_commit_says_where_the_code_differs_from_it(tmp_path: Path) -> None:
    root = Path(mlmlab.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("no checkout")
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)

    def commit() -> str:
        code = "from mlmlab.tracking.summary import git_commit; print(git_commit())"
        environment = {**os.environ, "PYTHONPATH": str(clone)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    clean = commit()
    assert len(clean) == 40
    with (clone / "README.md").open("a") as file:
        file.write("\n")
    assert commit() == f"{clean}-dirty"


def test_a_summary_names_the_machine_and_how_it_was_used(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["device"], summary["precision"], summary["gpu"]) == ("cpu", "fp32", None)
    assert (summary["threads"], summary["world_size"]) == (1, 1)
    assert summary["processor"]
    assert "cuda_version" in summary


# What a run gives


def test_the_result_has_the_exported_model_its_tokenizer_and_the_metrics(
    finished: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    result = mlmlab.run(mlmlab.compose(*SHORT, f"run_dir={run_dir}"), quiet=True)
    assert isinstance(result, mlmlab.RunResult)
    exported, _ = mlmlab.load_pretrained(str(run_dir), quiet=True)
    shutil.rmtree(run_dir)  # nothing is read later
    assert not result.model.training
    state = exported.state_dict()
    assert result.model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in result.model.state_dict().items())
    batch = result.tokenizer("the day after monday is <mask> .")
    assert result.model(**batch).shape[-1] == result.tokenizer.vocabulary_size
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("train/loss") for line in lines]
    assert [event.get("train/loss") for event in result.metrics] == losses
    assert result.metrics[-1]["step"] == result.summary.steps == 20
    assert result.summary.run_dir == str(run_dir)
