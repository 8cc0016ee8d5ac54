"""Several processes train one model: the same batches, loss curve and folder as one process."""

import contextlib
import io
import json
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranks import (
    PATIENCE_SECONDS,
    Ended,
    Running,
    assert_same_curve,
    forked,
    forked_to_the_end,
    torchrun,
)
from stopping import SMALLEST, events

import mlmlab

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TINY = (
    *SMALLEST,
    "model.dropout=0.0",
    "train.max_steps=50",
    "train.log_every_steps=1",
    "eval.every_steps=25",
    "eval.mask_draws=3",
)


# Whole runs: one process, two under torchrun, and others in numbers and micro-batches


@dataclass(frozen=True)
class Run:
    stdout: str
    folder: Path

    @property
    def metrics(self) -> list[dict[str, float]]:
        return events(self.folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("one")
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        mlmlab.run(mlmlab.compose(*TINY, "run_dir=run"))
    return Run(printed.getvalue(), folder / "run")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, one: Run) -> Ended:
    with torchrun(tmp_path_factory.mktemp("two"), *TINY, "run_dir=run") as run:
        ended = run.end()
    assert ended.statuses == [0], ended.stderr
    return ended


def _forked_run(folder: Path, processes: int, *overrides: str) -> list[dict[str, float]]:
    forked_to_the_end(folder, *TINY, *overrides, "run_dir=run", processes=processes)
    return events(folder / "run")


def _alone(folder: Path, *overrides: str) -> list[dict[str, float]]:
    with contextlib.chdir(folder):
        mlmlab.run(mlmlab.compose(*TINY, *overrides, "run_dir=one"), quiet=True)
    return events(folder / "one")


def test_two_processes_follow_the_loss_curve_of_one(one: Run, two: Ended) -> None:
    assert [event["step"] for event in one.metrics if "train/loss" in event] == [*range(1, 51)]
    assert_same_curve(events(two.folder / "run"), one.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_torchruns_that_meet_make_one_run(one: Run, tmp_path: Path, parallel: str) -> None:
    """As those of two machines with a disk in common; here both are on this one."""
    overrides = (*TINY, f"runtime.parallel={parallel}", f"run_dir={tmp_path / 'run'}")
    meet = f"localhost:{_free_port()}"
    with (
        torchrun(tmp_path / "first", *overrides, processes=2, meet=meet) as first,
        torchrun(tmp_path / "second", *overrides, processes=1, meet=meet) as second,
    ):
        ended = first.end(), second.end()
    assert [one.statuses for one in ended] == [[0], [0]], ended
    assert sum("3 processes" in one.stdout for one in ended) == 1  # one voice
    assert_same_curve(events(tmp_path / "run"), one.metrics)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("processes", "micro_batch_size"),
    [
        pytest.param(2, 2, marks=pytest.mark.slow),  # accumulation over 2
        (1, 2),  # over 4
        (3, 8),  # 3, 3 and 2 rows
        (3, 2),  # the last of two micro-batches has 1, 1 and 0 rows
    ],
)
def test_any_division_of_a_batch_follows_the_same_curve(
    one: Run, tmp_path: Path, processes: int, micro_batch_size: int
) -> None:
    division = f"train.micro_batch_size={micro_batch_size}"
    if processes == 1:
        found = _alone(tmp_path, division)
    else:
        found = _forked_run(tmp_path, processes, division)
    assert_same_curve(found, one.metrics)


def test_the_first_evaluation_has_the_same_bits(one: Run, two: Ended) -> None:
    ours, theirs = (
        next(event for event in run if "eval/loss" in event)
        for run in (events(two.folder / "run"), one.metrics)
    )
    assert ours["step"] == 0
    assert ours["eval/loss"].hex() == theirs["eval/loss"].hex()


def test_batches_that_are_mostly_empty_follow_the_same_curve(tmp_path: Path) -> None:
    few = ("masking.rate=0.004", "train.max_steps=20", "eval.mask_draws=20")
    alone = _alone(tmp_path, *few)  # one token of 256, over all processes
    consumed = round(alone[-1]["epoch"] * 68)
    assert consumed > 25  # at least 5 batches without any predicted token
    assert_same_curve(_forked_run(tmp_path, 2, *few), alone)


def test_a_last_batch_of_fewer_rows_than_processes_follows_the_same_curve(tmp_path: Path) -> None:
    short = ("train.max_steps=null", "train.epochs=3", "eval.every_steps=null", "data.limit=40",
             "train.batch_size=17", "train.micro_batch_size=3")  # fmt: skip
    alone = _alone(tmp_path, *short)
    assert alone[-1]["step"] == 12  # 52 examples: 17, 17, 17, 1
    assert_same_curve(_forked_run(tmp_path, 3, *short), alone)


# One folder

_OF_THIS_RUN = re.compile(
    r"[\d.]+k tok/s +\d+ s left|^compute .*|^speed .*|tokenized\s+(now|before)", re.MULTILINE
)


def test_only_rank_zero_prints(one: Run, two: Ended) -> None:
    assert _OF_THIS_RUN.sub("", two.stdout) == _OF_THIS_RUN.sub("", one.stdout)
    assert "2 processes" in two.stdout
    assert two.stderr == ""


def test_there_is_one_run_folder_and_it_holds_what_a_single_process_writes(
    one: Run, two: Ended
) -> None:
    def files(folder: Path) -> list[str]:
        found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
        paths = sorted(path for path in found if path != "command.txt")  # Python began one of them
        return [re.sub(r"tfevents.*", "tfevents", path) for path in paths]

    assert {path.name for path in two.folder.iterdir()} == {"run", "stdout.txt", "stderr.txt"}
    assert files(two.folder / "run") == files(one.folder)


MISTAKES = {
    "unknown key": (forked, ["train.epoch=3"], "train.epoch: there is no such key"),
    "missing file": (torchrun, ["data=text", "data.path=missing.txt"], "missing.txt: no such file"),
    "folder in use": (forked, ["run_dir=used"], "used, which is there already and not empty"),
    "no mask": (forked, ["eval.fill_mask=[nothing]", *TINY], "nothing"),  # all of them find it
    "sweep": (forked, ["-m", "seed=0,1"], "-m under torchrun"),
}


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory, one: Run) -> dict[str, Ended]:
    with contextlib.ExitStack() as stack:
        running: dict[str, Running] = {}
        for name, (start, overrides, _) in MISTAKES.items():
            folder = tmp_path_factory.mktemp("mistake")
            (folder / "used").mkdir()
            (folder / "used" / "note.txt").touch()
            running[name] = stack.enter_context(start(folder, *overrides))
        return {name: run.end() for name, run in running.items()}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_ends_all_processes(mistakes: dict[str, Ended], name: str) -> None:
    start, _, text = MISTAKES[name]
    ended = mistakes[name]
    assert ended.stdout == ""
    assert text in ended.message()
    if start is torchrun:
        assert ended.statuses == [1]  # its own, whatever the processes'
        assert "exitcode  : 2" in ended.stderr
    else:
        assert set(ended.statuses) == {2}  # a launcher reports that of the first to end
    assert ended.seconds < PATIENCE_SECONDS
    names = {str(path.relative_to(ended.folder)) for path in ended.folder.rglob("*")}
    assert names == {"used", "used/note.txt", "stdout.txt", "stderr.txt"}


def test_a_diverging_run_keeps_one_failure_which_can_be_replayed(tmp_path: Path) -> None:
    wild = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_steps=0")
    with forked(tmp_path, *TINY, *wild, "run_dir=run") as run:
        ended = run.end()
    message = ended.message()
    assert ended.statuses == [1, 1]
    (folder,) = (tmp_path / "run" / "failures").iterdir()
    kept = json.loads((folder / "batch.json").read_text())
    assert folder.name == f"step_{kept['step']}"
    assert len(kept["example_ids"]) == 8
    assert message.startswith(f"step {kept['step']}: loss {float(kept['loss']):g}, gradient")
    replay = ("resume=run", "debug=replay", f"debug.step={kept['step']}")
    assert " ".join(replay) in message
    with forked(tmp_path, *replay) as run:
        again = run.end()
    assert again.statuses == [1, 1]
    assert again.message() == message.partition(" Its examples")[0]
    assert again.stdout.count(f"replaying step {kept['step']} ") == 1


def test_a_sound_step_is_replayed_with_the_loss_it_had(two: Ended) -> None:
    replay = ("resume=run", "debug=replay", "debug.step=30")
    ended = forked_to_the_end(two.folder, *replay)
    (then,) = [event["train/loss"] for event in events(two.folder / "run") if event["step"] == 30]
    assert f"{then:.6g}" in ended.stdout
