"""What a resumed run may change, and in which folder it may resume."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from omegaconf import OmegaConf
from refusals import check, refusal, refusals
from stopping import TINY, as_killed, bits, listing, start

import mlmlab
from mlmlab.errors import Code, Interrupted, RunFailed, UserError
from mlmlab.runs.folder import run_folder
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.summary import Summary


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    mlmlab.run(mlmlab.compose(*TINY, f"run_dir={run_dir}"), quiet=True)
    return run_dir


def _resume(run_dir: Path, *overrides: str) -> Summary:
    return mlmlab.run(mlmlab.compose(f"resume={run_dir}", *overrides)).summary


@contextmanager
def _unchanged(folder: Path) -> Iterator[None]:
    before = listing(folder)
    yield
    assert listing(folder) == before


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "name=other",
        "run_dir=other",
        "checkpoint=other",
        "checkpoint_head=fresh",
        "tokenizer.path=tokenizer",
        "tokenizer.kind=wordpiece",
        "tokenizer.vocabulary_size=300",
        "data.path=other.txt",
        "data.limit=300",
        "data.test_fraction=0.3",
        "data.seed=1",
        "data.layout=lines",
        "data.block_size=16",
        "masking.rate=0.3",
        "masking.unit=word",
        "masking.mask_fraction=0.7",
        "masking.budget=exact",
        "masking.mode=static",
        "model.layers=2",
        "model.hidden_size=64",
        "model.dropout=0.2",
        "train.batch_size=4",
        "train.freeze=[head]",
        "eval.seed=1",
        "eval.mask_draws=2",
        "debug.mode=one_step",
    ],
)
def test_a_key_that_says_what_run_it_is_is_refused_by_name(whole: Path, override: str) -> None:
    key = override.partition("=")[0]
    with _unchanged(whole), refusal(key, Code.CHANGED, f"{key}="):
        _resume(whole, override)


def test_a_config_that_was_changed_in_python_is_refused_like_an_override(whole: Path) -> None:
    config = dataclasses.replace(mlmlab.compose(f"resume={whole}"), seed=1)
    with _unchanged(whole), refusal("seed", Code.CHANGED, "seed=1"):
        mlmlab.run(config)


def test_keys_that_are_refused_are_reported_together(whole: Path) -> None:
    overrides = ("seed=1", "masking.rate=0.3", "train.max_steps=70", "data.seed=0")
    with (
        _unchanged(whole),
        refusals(("seed", Code.CHANGED), ("masking.rate", Code.CHANGED)),
    ):
        _resume(whole, *overrides)


@pytest.mark.parametrize(
    "group",
    ["masking=spanbert", "model=tiny", "data=small_world", "train=finetune", "+experiment=eli5"],
)
def test_a_whole_group_is_refused_even_where_it_is_the_runs_own(whole: Path, group: str) -> None:
    name = group.lstrip("+").partition("=")[0]
    with _unchanged(whole), refusal(name, Code.CONFLICT):
        _resume(whole, group)


@pytest.mark.parametrize(
    ("override", "where", "code"),
    [
        # A null is nothing that Hydra can take away.
        ("~train.max_steps", "the command line", Code.SYNTAX),
        ("~eval.fill_mask", "the command line", Code.SYNTAX),
        ("~seed", "resume", Code.OTHER_VERSION),
        ("~data", "resume", Code.OTHER_VERSION),
    ],
)
def test_a_key_that_is_taken_away_is_refused(
    whole: Path, override: str, where: str, code: Code
) -> None:
    with _unchanged(whole), refusal(where, code, override.lstrip("~")):
        _resume(whole, override)


def test_a_refused_key_ends_the_command_with_2_and_its_name(whole: Path, tmp_path: Path) -> None:
    running = start([f"resume={whole}", "masking.rate=0.3"], tmp_path)
    assert running.status() == 2
    said = " ".join(running.output.read_text().split())
    assert said.startswith("mlmlab: masking.rate found masking.rate=0.3,")
    assert "Traceback" not in said


def test_a_changed_horizon_and_intervals_are_said_and_noted_and_config_yaml_stays(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    config = listing(run_dir)[str(run_dir / "config.yaml")]
    changes = ["train.max_steps=66", "train.log_every_steps=3", "eval.every_steps=22"]
    _resume(run_dir)
    assert "is not that of the run without a stop" not in capsys.readouterr().out
    assert _resume(run_dir, *changes).steps == 66
    said = " ".join(capsys.readouterr().out.split())
    order = ["eval.every_steps=22", "train.max_steps=66", "train.log_every_steps=3"]
    assert f"resume from step 60 ({run_dir}/checkpoints/step_60)" in said
    for change in changes:
        assert change in said
    assert "the result is not that of the run without a stop" in said
    lines = (run_dir / "resumes.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["step"], first["overrides"]) == (45, [])
    assert (second["step"], sorted(second["overrides"])) == (60, sorted(order))
    assert listing(run_dir)[str(run_dir / "config.yaml")] == config
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["step"] > 60] == [63, 66, 66, 66]


def test_what_is_no_part_of_the_run_is_no_change_of_it(whole: Path, tmp_path: Path) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    _resume(run_dir, "debug.profile_steps=2")
    assert json.loads((run_dir / "resumes.jsonl").read_text())["overrides"] == []
    assert (run_dir / "profile" / "trace.json").is_file()
    assert bits(run_dir) == bits(whole)


def test_a_run_that_is_finished_can_be_resumed_and_stays_as_it_is(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    _resume(run_dir)
    assert bits(run_dir) == bits(whole)


def test_a_finished_run_that_trains_for_longer_is_unfinished_until_then(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    with monkeypatch.context() as patched:
        patched.setattr(Interruptions, "is_stop_asked", True)
        with pytest.raises(Interrupted) as stopped:
            _resume(run_dir, "train.max_steps=80")
    assert f"resume={run_dir} train.max_steps=80 resumes it" in str(stopped.value)
    assert not (run_dir / "summary.json").exists()
    _resume(run_dir, "train.max_steps=80")
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 80


def test_a_result_that_cannot_be_written_is_written_by_a_resume(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])

    def without_room(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("mlmlab.runs.train.save_pretrained", without_room)
        with pytest.raises(RunFailed, match="No space left") as failed:
            _resume(run_dir)
    assert f"resume={run_dir} writes it" in str(failed.value)
    _resume(run_dir)
    assert bits(run_dir) == bits(whole)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, Code.NOT_FOUND),
        ("", Code.CORRUPT),
        ("- a list\n", Code.CORRUPT),
        ("seed: [1\n", Code.CORRUPT),
        ("seed: 1\n", Code.OTHER_VERSION),
    ],
)
def test_a_folder_that_holds_no_run_is_named(
    tmp_path: Path, content: str | None, code: Code
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content is not None:
        (folder / "config.yaml").write_text(content)
    with _unchanged(folder), refusal("resume", code, folder):
        _resume(folder)


def test_a_folder_where_a_run_is_at_work_is_refused_to_a_second_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start([*TINY, "train.max_steps=5000", f"run_dir={run_dir}"], tmp_path)
    try:
        assert first.wait_for((run_dir / "checkpoints" / "step_15").exists)
        for key in ("run_dir", "resume"):
            with refusal(key, Code.IN_USE, run_dir):
                mlmlab.run(mlmlab.compose(*TINY * (key == "run_dir"), f"{key}={run_dir}"))
        assert first.is_alive
        events = (run_dir / "metrics.jsonl").read_text().splitlines()
        assert json.loads(events[0])["step"] == 0
        assert not (run_dir / "resumes.jsonl").exists()
    finally:
        first.kill()
    assert _resume(run_dir, "train.max_steps=20").steps >= 15  # the kill has released it


def test_a_run_is_resumed_where_locks_are_those_of_nfs(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = as_killed(whole, tmp_path / "run", checkpoints=[15])
    flock = fcntl.flock

    def flock_of_nfs(file: IO[str], operation: int) -> None:
        """flock(2): over NFS an exclusive lock wants a file that is open for writing."""
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    config = (copy / "config.yaml").read_bytes()
    assert _resume(copy, "train.max_steps=16").steps == 16
    assert (copy / "config.yaml").read_bytes() == config


@pytest.mark.parametrize("key", ["resume", "run_dir"])
def test_a_folder_that_cannot_be_locked_is_named(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    folder = tmp_path / "run"
    if key == "resume":
        as_killed(whole, folder, checkpoints=[15])

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    config = mlmlab.compose(f"{key}={folder}")
    with refusal(key, Code.NOT_WRITABLE, folder), run_folder(config):
        pass


def test_of_two_runs_that_found_a_folder_empty_one_gets_it(tmp_path: Path) -> None:
    config = mlmlab.compose(*TINY, f"run_dir={tmp_path / 'run'}")
    with run_folder(config) as run_dir:
        written = (run_dir / "config.yaml").read_text()
        with refusal("run_dir", Code.IN_USE, run_dir), run_folder(config):
            pass
    with refusal("run_dir", Code.IN_USE, run_dir), run_folder(config):
        pass
    assert (run_dir / "config.yaml").read_text() == written != ""


def test_resume_auto_begins_goes_on_or_is_content(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [*TINY, "train.max_steps=60", f"run_dir={run_dir}", "resume=auto"]

    new = start(arguments, tmp_path)
    assert new.status() == 0, new.output.read_text()
    assert bits(run_dir) == bits(whole)
    assert not (run_dir / "resumes.jsonl").exists()

    finished = listing(run_dir)
    content = start(arguments, tmp_path)
    assert content.status() == 0
    assert "nothing left to do" in content.output.read_text()
    assert listing(run_dir) == finished

    (run_dir / "summary.json").unlink()
    shutil.rmtree(run_dir / "checkpoints" / "step_60")
    unfinished = start(arguments, tmp_path)
    assert unfinished.status() == 0, unfinished.output.read_text()
    assert "from step 45" in unfinished.output.read_text()
    assert bits(run_dir) == bits(whole)


def test_resume_auto_without_a_folder_is_refused() -> None:
    with refusal("resume", Code.MISSING, "run_dir=null"):
        mlmlab.compose("resume=auto")


def test_resume_auto_refuses_what_the_run_did_not_begin_with(whole: Path) -> None:
    with refusal("seed", Code.CHANGED, "seed=1"):
        mlmlab.run(mlmlab.compose(*TINY, "seed=1", "resume=auto", f"run_dir={whole}"))


@pytest.mark.parametrize("change", ["missing", "surplus"])
def test_a_run_of_another_version_is_refused_with_the_keys_that_differ(
    whole: Path, tmp_path: Path, change: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    config = OmegaConf.load(run_dir / "config.yaml")
    if change == "missing":
        del config.data.fingerprint
    else:
        config.eval.batch_size = 64
    OmegaConf.save(config, run_dir / "config.yaml")
    key = "data.fingerprint" if change == "missing" else "eval.batch_size"
    with _unchanged(run_dir), pytest.raises(UserError) as error:
        _resume(run_dir)
    (problem,) = error.value.problems
    check(problem, "resume", Code.OTHER_VERSION, key, run_dir)
    assert "data.path" not in problem.found


def test_a_changed_interval_of_log_lines_leaves_the_result_what_it_is(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = as_killed(whole, tmp_path / "run", checkpoints=[45])
    _resume(run_dir, "train.log_every_steps=2")
    said = capsys.readouterr().out
    assert "changed    train.log_every_steps=2\n" in said
    weights = "export/model.safetensors"
    assert (run_dir / weights).read_bytes() == (whole / weights).read_bytes()
