"""Sweeps: what their jobs are called, what a person sees of them, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import SMALLEST, TINY

import mlmlab
from mlmlab.cli import jobs
from mlmlab.cli.commands import as_command
from mlmlab.cli.jobs import folder_name, take_device
from mlmlab.errors import Interrupted
from mlmlab.runs.folder import allowed_changes
from mlmlab.tracking import progress_bar
from mlmlab.tracking.progress_bar import ProgressBar, SweepJob
from mlmlab.train import main

SHORT = (*TINY, "train.max_steps=3", "eval.max_examples=20")
AGAIN = "To run what is missing, and nothing else:\n  python -m mlmlab.train "

# Names


@pytest.mark.parametrize(
    ("varies", "overrides", "name"),
    [
        (["seed", "masking.rate"], ["seed=1", "masking.rate=0.3", "name=x"], "3_seed=1_rate=0.3"),
        (["masking.rate"], ["++masking.rate=0.3"], "3_rate=0.3"),
        (["train.learning_rate"], ["train.learning_rate=1e+18"], "3_learning_rate=1e18"),
        (["train.learning_rate"], ["train.learning_rate=-1e-05"], "3_learning_rate=-1e-05"),
        (["masking"], ["masking=whole_word"], "3_masking=whole_word"),
        (["experiment"], ["+experiment=eli5"], "3_experiment=eli5"),
        (
            ["masking.rate", "eval.masking.rate", "train.optimizer_options.rate"],
            ["masking.rate=1", "eval.masking.rate=2", "++train.optimizer_options.rate=3"],
            "3_masking.rate=1_eval.masking.rate=2_optimizer_options.rate=3",
        ),
        (
            ["masking", "eval.masking"],
            ["masking=bert", "masking@eval.masking=spanbert"],
            "3_masking=bert_eval.masking=spanbert",
        ),
        (["train.freeze"], ["train.freeze=[embeddings,'layers.*']"], "3_freeze=embeddings-layers."),
        (["masking.unit"], ["masking.unit=my_ideas:Mine"], "3_unit=my_ideas-Mine"),
        ([], ["seed=1"], "3"),
    ],
)
def test_a_folder_is_named_by_what_varies_and_by_nothing_else(
    varies: list[str], overrides: list[str], name: str
) -> None:
    constant = "checkpoint=" + "x" * 200
    assert folder_name(2, varies, overrides) == name
    assert folder_name(2, varies, [constant, *overrides, "resume=auto"]) == name
    assert re.fullmatch(r"[A-Za-z0-9._=-]+", name)


def test_a_long_name_is_cut_and_gets_a_digest_of_the_whole() -> None:
    first, second = (folder_name(0, ["data.path"], [f"data.path={'x' * 200}{n}"]) for n in "12")
    assert len(first) == len(second) == 100
    assert first[:91] == second[:91] == "1_path=" + "x" * 84
    assert re.fullmatch(r"-[0-9a-f]{8}", first[91:])
    assert first != second


def test_what_varies_is_no_change_to_a_run_that_is_resumed() -> None:
    before, now = {"varies": [], "seed": 0}, {"varies": ["seed"], "seed": 0}
    assert allowed_changes(before, now) == {}


# What a sweep does, in this process

Swept = tuple[int, str, str]
Sweep = Callable[..., Swept]


@pytest.fixture
def sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Sweep:
    """`python -m mlmlab.train -m ... sweep_dir=sweep`: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back
    monkeypatch.setattr(sys, "path", [*sys.path])  # so is this

    def run(*arguments: str) -> Swept:
        monkeypatch.setattr(sys, "argv", ["train", "-m", *arguments, "sweep_dir=sweep"])
        with pytest.raises(SystemExit) as end:
            as_command(main)
        output = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, output.out, output.err

    return run


def _folders() -> list[str]:
    return sorted(folder.name for folder in Path("sweep").iterdir() if folder.is_dir())


def test_a_sweep_says_what_varies_how_far_it_is_and_ends_with_a_table(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "duration", lambda _: "119 min")  # as long as it gets
    status, said, errors = sweep(*SHORT, "seed=0,1", "masking.rate=0.2,0.3")
    assert (status, errors) == (0, "")
    assert "(4 of 4 done)\n" in said
    assert "(1 of 4 done, about 119 min left)" in " ".join(said.split())
    lines = said.splitlines()
    assert lines[0] == "sweep      4 jobs: seed=0,1 masking.rate=0.2,0.3"
    titles = [line for line in lines if re.match(r"job \d of 4: seed", line)]
    assert titles[2] == "job 3 of 4: seed=1 masking.rate=0.2"
    assert len(titles) == 4
    results = [line for line in lines if re.match(r"job \d of 4: perplexity [\d.]+ ± ", line)]
    assert len(results) == 4
    assert said.count("\nmodel ") == 1  # the plan of the first job alone
    assert said.count("fill_mask") == 0  # nor what to type next, for each job
    table = said[said.index("\nmasking.rate ") :]
    assert re.search(r"\n0\.2 .* 2\b.*\n0\.3 .* 2\b", table)
    assert max(len(line) for line in lines if str(Path.cwd()) not in line) <= 80
    assert _folders() == [
        "1_seed=0_rate=0.2", "2_seed=0_rate=0.3", "3_seed=1_rate=0.2", "4_seed=1_rate=0.3",
    ]  # fmt: skip


def test_a_failed_job_stops_no_other_and_is_reported_with_its_folder(sweep: Sweep) -> None:
    rates = "train.learning_rate=1e18,0.001"
    status, said, errors = sweep(*SHORT, rates)
    bad, good = Path("sweep/1_learning_rate=1e18"), Path("sweep/2_learning_rate=0.001")
    assert status == 1
    assert (good / "summary.json").is_file()
    assert json.loads((bad / "error.json").read_text())["status"] == 1
    assert errors.count("Traceback") == 0
    end = errors[errors.index("mlmlab: of 2 jobs, 1 failed\n") :]
    assert f"  {bad}\n    step 2: loss " in end
    assert f"{AGAIN}-m " in end
    assert end.endswith(" resume=auto sweep_dir=sweep\n")
    assert "finished   1 of 2 jobs" in said

    # An override that all jobs share leads to the same folders. Both jobs run again.
    folders = _folders()
    longer = sweep(*SHORT, rates, "resume=auto", "train.max_steps=4")
    assert (longer[0], _folders()) == (1, folders)
    assert json.loads((good / "summary.json").read_text())["steps"] == 4
    again = sweep(*SHORT, rates, "resume=auto", "train.max_steps=4", "train.save_every_minutes=9")
    assert (again[0], _folders()) == (1, folders)


def test_a_resumed_sweep_says_a_line_for_a_finished_job_and_runs_the_others(sweep: Sweep) -> None:
    sweep(*SHORT, "seed=0,1")
    before = Path("sweep/1_seed=0/summary.json").read_bytes()
    Path("sweep/2_seed=1/summary.json").unlink()
    status, said, _ = sweep(*SHORT, "seed=0,1", "resume=auto")
    assert status == 0
    assert "job 1 of 2: seed=0 (finished before)\n" in said
    assert said.count("perplexity ") >= 1
    assert "job 1 of 2: perplexity" not in said
    assert "job 2 of 2: perplexity" in said
    assert Path("sweep/1_seed=0/summary.json").read_bytes() == before


def test_a_job_that_was_repaired_is_no_longer_a_failed_one(sweep: Sweep) -> None:
    Path("b.txt").write_text("one line of text\n" * 300)
    text = ("data=text", "data.path=a.txt,b.txt", "tokenizer.vocabulary_size=300")
    status, _, errors = sweep(*SHORT, *text)
    assert status == 2  # wrong input is the only reason
    assert re.search(r"\n  sweep/1_path=a.txt\n    data.path: .*a.txt", errors)
    Path("a.txt").write_text("another line of text\n" * 300)
    status, said, errors = sweep(*SHORT, *text, "resume=auto")
    assert (status, errors) == (0, "")
    assert "finished   2 of 2 jobs" in said
    assert not list(Path("sweep").glob("*/error.json"))


def test_a_defect_in_one_job_keeps_its_traceback_and_stops_no_other(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = jobs.execute

    def broken(config: Any, **options: Any) -> Any:
        if config.seed == 0:
            raise RuntimeError("out of memory")
        return execute(config, **options)

    monkeypatch.setattr(jobs, "execute", broken)
    status, said, errors = sweep(*SHORT, "seed=0,1")
    assert status == 1
    assert "Traceback" in errors
    assert "  sweep/1_seed=0\n    RuntimeError: out of memory\n" in errors
    assert "job 2 of 2: perplexity" in said


def test_a_signal_ends_the_sweep_and_the_message_says_how_to_resume_it(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = jobs.execute

    def interrupted(config: Any, **options: Any) -> Any:
        if config.seed == 1:
            raise Interrupted(signal.SIGTERM, "stopped by SIGTERM after step 2.\nresume=RUN_DIR")
        return execute(config, **options)

    monkeypatch.setattr(jobs, "execute", interrupted)
    status, said, errors = sweep(*SHORT, "seed=0,1,2")
    assert status == 143
    assert "job 3 of 3" not in said
    command = f"-m {' '.join(SHORT)} seed=0,1,2 resume=auto sweep_dir=sweep"
    command = command.replace("eval.fill_mask=[]", "'eval.fill_mask=[]'")
    message = f"job 2 of 3: stopped by SIGTERM after step 2.\n{AGAIN}{command}\n"
    assert errors == f"mlmlab: {message}"


def test_a_job_shows_a_line_a_minute_where_a_run_shows_ten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now)
    job = SweepJob(name="job 3", shows_plan=False, is_side_by_side=True)
    bar = ProgressBar(100, job=job)
    for _ in range(100):
        now += 1.3  # 130 seconds in all
        bar.advance()
        bar.show(1.0, 2.7, 1000.0)
    bar.plan("the plan")
    bar.line("what matters")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("/")[0] for line in lines] == [
        "job 3: step 50", "job 3: step 100", "job 3: what matters",
    ]  # fmt: skip


# Jobs side by side


def test_processes_take_devices_of_their_own_until_there_are_none_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_devices", [])
    taken = []
    for _ in range(4):  # a lock holds against the same process, too
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7a")
        take_device(tmp_path)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken[:2] == ["2", "GPU-7a"]
    assert set(taken[2:]) <= {"2", "GPU-7a"}
    jobs._devices.pop(0).close()  # as if the first process had ended
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7a")
    take_device(tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    take_device(tmp_path)  # it has one by now
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    for file in jobs._devices:
        file.close()


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mlmlab.train", "-m", *arguments, "sweep_dir=sweep"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(mlmlab.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> Swept:
    said, errors = process.communicate(timeout=300)
    return process.returncode, said, errors


SPY = """
from pathlib import Path

from mlmlab.data import corpus

tokenize = corpus._tokenize


def noted(*arguments, **options):
    with Path("tokenizations.txt").open("a") as file:
        file.write("one\\n")
    return tokenize(*arguments, **options)


corpus._tokenize = noted


class Nothing:
    name = "nothing"

    def __init__(self, config): ...

    def run(self, model, tokenizer, device):
        return {"figure": 0.0}
"""
"""A custom evaluator, imported by every process that runs jobs."""


@pytest.mark.usefixtures("fresh_cache")
def test_joblibs_jobs_run_side_by_side_and_tokenize_once(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "spy.py").write_text(SPY)
    spy = "eval.evaluators=[masked_perplexity,spy:Nothing]"
    rates = "train.learning_rate=0.001,0.002,1e18"
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    status, said, errors = _ended(_start(tmp_path, *launcher, *SHORT, spy, rates))
    assert status == 1
    assert "\n  sweep/3_learning_rate=1e18\n    step 2: loss " in errors
    assert "finished   2 of 3 jobs" in said
    assert (tmp_path / "tokenizations.txt").read_text() == "one\n"
    for number in (1, 2):
        assert f"job {number} of 3: perplexity" in said
    status, said, errors = _ended(_start(tmp_path, *launcher, *SHORT, spy, rates, "resume=auto"))
    assert said.count("(finished before)") == 2


@pytest.mark.slow
def test_sigterm_stops_joblibs_jobs_after_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    endless = ("train.max_steps=1000000", "eval.every_steps=1000000", "eval.max_examples=20")
    process = _start(
        tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1,2",
        *SMALLEST, *endless, "train.log_every_steps=1",
    )  # fmt: skip
    deadline = time.monotonic() + 120
    logs = [tmp_path / "sweep" / f"{n}_seed={n - 1}" / "metrics.jsonl" for n in (1, 2)]
    while not all(log.is_file() and "train/loss" in log.read_text() for log in logs):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    status, said, errors = _ended(process)
    assert status == 143
    assert errors.startswith(f"mlmlab: stopped by SIGTERM\n{AGAIN}")
    assert "seed=2" not in said.partition("folder")[2]
    for log in logs:
        assert list(log.parent.glob("checkpoints/step_*"))


@pytest.mark.slow
def test_submitits_jobs_are_reported_by_the_process_that_submitted_them(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    status, said, errors = _ended(
        _start(tmp_path, "hydra/launcher=submitit_local", *SHORT, "seed=0,1")
    )
    assert status == 0, errors
    assert "finished   2 of 2 jobs" in said
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/summary.json")) == [
        "1_seed=0", "2_seed=1",
    ]  # fmt: skip


def test_optuna_searches_on_after_a_job_that_failed(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = (
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1", "train.learning_rate=tag(log,interval(1e-3,1e30))",
    )  # fmt: skip
    status, said, errors = _ended(_start(tmp_path, *search, *SHORT))
    assert status == 1
    assert "mlmlab: job 2 of 3: step " in errors  # a learning rate of 6e20
    assert re.search(r"\njob 3 of 3: perplexity ", said)  # one of 0.001
    found = (tmp_path / "sweep" / "optimization_results.yaml").read_text()
    assert "train.learning_rate: 0.001" in found
