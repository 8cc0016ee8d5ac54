"""How commands end: a run's folder and status 0, or one message and status 1 or 2."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from refusals import check, refusal

import mlmlab
from mlmlab import evaluate, fill_mask
from mlmlab.cli.commands import as_command
from mlmlab.config import RunConfig
from mlmlab.errors import Code, RunFailed, UserError
from mlmlab.runs.folder import run_folder
from mlmlab.runs.setup import set_up
from mlmlab.train import main

UNREACHABLE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Finished:
    """What a command leaves behind."""

    status: int
    stdout: str
    stderr: str
    folder: Path
    """Where it ran; empty before."""

    def refusal(self) -> str:
        """The one message on stderr of a command that refuses its input, on one line."""
        assert self.status == 2
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        assert self.stderr.startswith("mlmlab: ")
        assert self.stderr.count("mlmlab: ") == 1
        return " ".join(self.stderr.split())


# Whole processes, side by side, for what only a process shows

PROCESSES: dict[str, tuple[list[str], dict[str, str]]] = {
    "unknown key": (["train.epoch=3"], {}),
    "no network": (
        ["+experiment=eli5", f"data.url={UNREACHABLE}/x.json.gz"],
        {"HF_ENDPOINT": UNREACHABLE, "HF_HUB_OFFLINE": "0"},
    ),
    "sweep": (["-m", "seed=0,1", "debug=one_step", "runtime.device=cpu"], {}),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    root = str(Path(mlmlab.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    running = {}
    for name, (arguments, changes) in PROCESSES.items():
        folder = tmp_path_factory.mktemp("process")
        running[name] = (
            folder,
            subprocess.Popen(
                [sys.executable, "-m", "mlmlab.train", *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": path,
                    "OMP_NUM_THREADS": "1",
                    "HF_HOME": str(tmp_path_factory.mktemp("hub")),
                    **changes,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ),
        )
    finished = {}
    for name, (folder, process) in running.items():
        stdout, stderr = process.communicate(timeout=300)
        finished[name] = Finished(process.returncode, stdout, stderr, folder)
    return finished


def test_an_unknown_key_ends_the_process_with_one_message_and_nothing_written(
    processes: dict[str, Finished],
) -> None:
    finished = processes["unknown key"]
    message = finished.refusal()
    assert message.startswith("mlmlab: train.epoch: ")
    assert message.endswith(" train.epochs=3")
    assert list(finished.folder.iterdir()) == []


def test_without_a_network_the_message_says_what_makes_the_recipe_run_offline(
    processes: dict[str, Finished],
) -> None:
    finished = processes["no network"]
    message = finished.refusal()
    assert "distilbert/distilroberta-base" in message
    assert "checkpoint=DIR" in message
    assert f"{UNREACHABLE}/x.json.gz" in message
    assert "data.source=file data.path=FILE" in message
    assert list(finished.folder.iterdir()) == []


def test_a_sweep_leaves_one_finished_folder_a_job(processes: dict[str, Finished]) -> None:
    finished = processes["sweep"]
    assert finished.status == 0, finished.stderr
    assert finished.stderr == ""  # nor does Hydra say anything
    (sweep,) = (finished.folder / "runs" / "small_world").iterdir()
    jobs = sorted(folder for folder in sweep.iterdir() if folder.is_dir())
    assert [job.name for job in jobs] == ["1_seed=0", "2_seed=1"]
    summaries = [json.loads((job / "summary.json").read_text()) for job in jobs]
    assert [summary["seed"] for summary in summaries] == [0, 1]
    assert [summary["steps"] for summary in summaries] == [1, 1]
    assert summaries[0]["eval_loss"] != summaries[1]["eval_loss"]


# In this process, for everything else

Command = Callable[..., Finished]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`python -m mlmlab.train ...` in an empty folder, without starting Python again."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it: this takes it back
    monkeypatch.setattr(sys, "path", [*sys.path])  # so is this

    def run(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as end:
            as_command(main)
        output = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Finished(end.value.code, output.out, output.err, folder)

    return run


def test_a_run_never_writes_over_another(command: Command, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "note.txt").write_text("keep me")
    finished = command("debug=one_step", f"run_dir={full}")
    message = finished.refusal()
    assert message.startswith(f"mlmlab: run_dir found {full},")
    assert [file.name for file in full.iterdir()] == ["note.txt"]
    assert list(finished.folder.iterdir()) == []


def test_a_checkpoint_and_a_file_that_are_missing_are_reported_together(command: Command) -> None:
    finished = command("+experiment=finetune", "checkpoint=.", "data.path=missing.txt")
    message = finished.refusal()
    assert message.startswith("mlmlab: checkpoint found ")
    assert f" data.path found {finished.folder}/missing.txt" in message


def test_a_sweep_that_an_experiment_of_ones_own_describes_is_checked_like_any_other(
    command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "mine" / "experiment" / "sweep.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,x'}}}\n")
    finished = command(
        "-m", "--config-dir", str(tmp_path / "mine"), "+experiment=sweep", "debug=one_step"
    )
    assert finished.refusal().startswith("mlmlab: seed found x ")
    assert list(finished.folder.iterdir()) == []


def test_each_job_notes_the_keys_that_the_sweep_varies(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "experiment" / "sweep.yaml"
    file.parent.mkdir(parents=True)
    params = "seed: '0,1', masking.rate: '0.2,0.3', train.weight_decay: 0.1"
    file.write_text(f"# @package _global_\nhydra: {{sweeper: {{params: {{{params}}}}}}}\n")
    finished = command(
        "-m", "--config-dir", str(tmp_path / "mine"), "+experiment=sweep", "debug=one_step",
        "seed=0", "masking@eval.masking=bert,whole_word", "sweep_dir=sweep", "runtime.device=cpu",
    )  # fmt: skip
    assert finished.status == 0, finished.stderr
    configs = [OmegaConf.load(file) for file in finished.folder.glob("sweep/*/config.yaml")]
    assert [list(c.varies) for c in configs] == [["masking.rate", "eval.masking"]] * 4


def test_help_lists_groups_and_keys_in_eighty_columns(command: Command) -> None:
    finished = command("--help")
    assert finished.status == 0
    assert finished.stderr == ""
    assert max(map(len, finished.stdout.splitlines())) <= 80
    for text in (
        "experiment: cramming, eli5",
        "finetune",
        "learning_rate:",
        "+experiment=eli5",
        " -m ",
    ):
        assert text in finished.stdout
    assert list(finished.folder.iterdir()) == []


def test_help_shows_the_options_and_values_of_an_own_folder(
    command: Command, own_options: Path
) -> None:
    finished = command("--config-dir", str(own_options), "--help", "+experiment=mine")
    assert finished.status == 0
    assert re.search(r"^experiment: cramming,[^:]* mine,", finished.stdout, re.MULTILINE)
    assert re.search(r"^pace: ", finished.stdout, re.MULTILINE)
    assert "\nname: mine\n" in finished.stdout


@pytest.mark.parametrize(
    ("main", "texts"),
    [
        (evaluate.main, ("checkpoint=DIR_OR_HUB_ID", "Examples", "mask_draws:", "on_bad_row:")),
        (fill_mask.main, ("--checkpoint", "examples", "--targets A,B", "Milky Way")),
    ],
)
def test_the_help_of_the_other_commands_shows_examples_in_eighty_columns(
    main: Callable[[], None],
    texts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with suppress(SystemExit):
        main()
    output = capsys.readouterr()
    assert output.err == ""
    assert max(map(len, output.out.splitlines())) <= 80
    for text in texts:
        assert text in output.out


def end_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train(_: RunConfig, **_options: object) -> None:
        raise error

    monkeypatch.setattr("mlmlab.runs.train.train", train)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RunFailed("the loss is not finite"), 1, "the loss is not finite"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_failed_or_interrupted_run_has_its_own_status(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    message: str,
) -> None:
    end_with(monkeypatch, error)
    finished = command()
    assert finished.status == status
    assert finished.stderr == f"mlmlab: {message}\n"


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    root = str(Path(mlmlab.__file__).parents[1])
    command = (
        f"{sys.executable} -m mlmlab.train --help train data model | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + 13
    assert done.stderr == "mlmlab: a pipe was closed: nobody reads the output any more\n"


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours"), KeyError("ours")])
def test_a_defect_of_ours_keeps_its_traceback(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    end_with(monkeypatch, error)
    with pytest.raises(type(error), match="ours"):
        command()


# The user's own options, in a separate folder


@pytest.fixture
def own_options(tmp_path: Path) -> Path:
    """A folder with an experiment, which chooses its own model, and a new group."""
    folder = tmp_path / "a folder, of mine"
    files = {
        "experiment/mine.yaml": "# @package _global_\n"
        "defaults: [override /model: small, override /masking: whole_word]\n"
        "name: mine\ntrain: {max_steps: 1}\ndata: {limit: 400}\n",
        "model/small.yaml": "defaults: [tiny]\nlayers: 1\nhidden_size: 32\n",
        "pace/fast.yaml": "# @package train\nlearning_rate: 0.5\n",
        "data/held.yaml": "defaults: [text]\npath: held.txt\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_python_finds_an_experiment_and_groups_of_ones_own(
    own_options: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = mlmlab.compose("+experiment=mine", "+pace=fast", "seed=3", config_dir=own_options)
    assert (config.name, config.seed, config.train.max_steps) == ("mine", 3, 1)
    assert (config.model.layers, config.model.heads) == (1, 4)  # ours for the rest
    assert (config.masking.unit, config.train.learning_rate) == ("word", 0.5)
    monkeypatch.chdir(own_options.parent)
    assert mlmlab.compose("+experiment=mine", config_dir=own_options.name).name == "mine"
    evaluation = mlmlab.compose_evaluation("checkpoint=x", "data=held", config_dir=own_options)
    assert evaluation.data.path == "held.txt"


def test_the_documents_experiment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(mlmlab.__file__).parents[1] / "docs" / "extending.md").read_text()
    (recipe,) = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    (tmp_path / "my_conf" / "experiment").mkdir(parents=True)
    (tmp_path / "my_conf" / "experiment" / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose("+experiment=mine", config_dir="my_conf")
    assert (config.name, config.data.path, config.masking.unit) == ("mine", "my.txt", "word")


def test_without_the_folder_its_options_are_unknown_and_a_missing_one_is_named(
    own_options: Path,
) -> None:
    with refusal("experiment", Code.UNKNOWN_OPTION, "eli5"):
        mlmlab.compose("+experiment=mine")
    for compose in (mlmlab.compose, mlmlab.compose_evaluation):
        with refusal("config_dir", Code.NOT_FOUND, own_options / "nowhere"):
            compose("checkpoint=x", config_dir=own_options / "nowhere")


def test_a_group_of_ones_own_is_a_group_for_a_resume_too(own_options: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"config_dir": own_options}
    run_dir = tmp_path / "run"
    with run_folder(mlmlab.compose("+pace=fast", f"run_dir={run_dir}", **own)):
        pass
    again = mlmlab.compose("+pace=fast", f"run_dir={run_dir}", "resume=auto", **own)
    assert (again.resume, again.train.learning_rate) == (str(run_dir), 0.5)
    with refusal("pace", Code.CONFLICT, "the complete group pace"):
        mlmlab.compose("+pace=fast", f"resume={run_dir}", **own)


def test_the_command_and_its_sweeps_find_them_too(command: Command, own_options: Path) -> None:
    own = ("--config-dir", str(own_options), "+experiment=mine", "+pace=fast", "runtime.device=cpu")
    again = (*own, "resume=auto", "run_dir=run")
    for _ in range(2):
        finished = command(*again)
        assert finished.status == 0, finished.stderr
    assert "nothing left to do" in finished.stdout
    assert OmegaConf.load(finished.folder / "run" / "config.yaml").name == "mine"
    swept = command("-m", *own, "seed=0,1", "sweep_dir=sweep")
    assert swept.status == 0, swept.stderr
    configs = map(OmegaConf.load, (swept.folder / "sweep").glob("*/config.yaml"))
    assert sorted((c.seed, c.model.layers) for c in configs) == [(0, 1), (1, 1)]


# Composition and inputs without a command


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("seed=${nothing}", "nothing"),
        ("seed", "seed"),
        ("~nothing", "nothing"),
        ("=3", "=3"),
        ("masking@other=bert", "masking@eval.masking"),
    ],
)
def test_hydras_own_errors_become_messages_of_ours(override: str, named: str) -> None:
    with refusal("the command line", Code.SYNTAX, named):
        mlmlab.compose(override)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError) as error:
        set_up(mlmlab.compose("data=text", f"data.path={tmp_path / 'empty.txt'}"))
    training, test = error.value.problems
    check(training, "data", Code.NO_TEXT, tmp_path / "empty.txt")
    check(test, "data", Code.NO_TEXT, tmp_path / "empty.txt")
