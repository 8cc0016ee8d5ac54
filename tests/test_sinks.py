"""Where figures go: the built-in sinks and custom ones, chosen by tracking.sinks."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stopping import TINY, as_killed, bits, events

import mlmlab
from mlmlab.errors import Code

MY_SINKS = '''
import json


class Lines:
    """Notes each call that it gets."""

    def __init__(self, config, run_dir, *, name="calls.jsonl"):
        self.file = run_dir / name
        self.note("begin", config.seed, config.resume is None)

    def note(self, *call):
        with self.file.open("a") as file:
            file.write(json.dumps(call) + "\\n")

    def log(self, step, figures):
        self.note("log", step, figures)

    def text(self, step, name, value):
        self.note("text", step, name, value)

    def close(self):
        self.note("close")


class Unreachable(Lines):
    """Works until step 20, like a server before the night."""

    def log(self, step, figures):
        super().log(step, figures)
        if step > 20:
            raise ConnectionError("no route to host")


class Offline(Lines):
    def __init__(self, config, run_dir):
        raise ConnectionError("no route to host")


class Unclosable(Lines):
    def close(self):
        raise TimeoutError("three uploads are left")


class Mute:
    def __init__(self, config, run_dir):
        pass

    def log(self, step, figures):
        pass


class Older(Lines):
    def __init__(self, config):
        pass
'''


@pytest.fixture
def sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with my_sinks.py."""
    (tmp_path / "my_sinks.py").write_text(MY_SINKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_sinks", raising=False)
    return tmp_path


def _run(*overrides: str, quiet: bool = True) -> None:
    mlmlab.run(mlmlab.compose(*overrides), quiet=quiet)


def _calls(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_ones_own_sink_gets_every_event_and_text_and_is_closed(sinks: Path) -> None:
    _run(
        *TINY, "run_dir=run", "seed=3", "tracking.sinks=[jsonl,my_sinks:Lines]",
        "tracking.options.Lines.name=mine.jsonl", "eval.fill_mask=['the cow <mask> .']",
    )  # fmt: skip
    first, *logged, last = _calls(Path("run/mine.jsonl"))
    assert (first, last) == (["begin", 3, True], ["close"])
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in lines]
    assert len(expected) > 10
    found = [
        {"step": step, **(rest[0] if kind == "log" else {rest[0]: rest[1]})}
        for kind, step, *rest in logged
    ]
    assert found == expected
    expected = [event for event in expected if "epoch" in event]
    assert expected[-1]["trained/eval_loss"] == expected[-2]["eval/loss"]
    (step, name, _), *texts = [call[1:] for call in logged if call[0] == "text"]
    assert (step, name) == (0, "masked_examples")
    assert [step for step, _, _ in texts] == [e["step"] for e in expected if "eval/loss" in e]
    for _, name, text in texts:
        assert name == "fill_mask"
        asked, answers = text.splitlines()
        assert "the cow <mask> ." in asked
        assert "-> " in answers


def test_without_tensorboard_there_are_no_event_files_and_a_resume_has_the_same_bits(
    sinks: Path,
) -> None:
    _run(*TINY, "run_dir=whole", "tracking.sinks=[jsonl]")
    assert not Path("whole/tensorboard").exists()
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))


def test_event_files_are_cut_by_a_resume_that_writes_no_more_of_them(sinks: Path) -> None:
    _run(*TINY, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    (file,) = (killed / "tensorboard").iterdir()
    progress = json.loads((killed / "checkpoints/step_45/progress.json").read_text())["progress"]
    before = file.stat().st_size
    _run(f"resume={killed}", "tracking.sinks=[jsonl]")
    assert list((killed / "tensorboard").iterdir()) == [file]
    assert before > file.stat().st_size == progress["log_sizes"][f"tensorboard/{file.name}"]
    (line,) = (killed / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["overrides"] == ["tracking.sinks=[jsonl]"]


def test_a_sink_that_fails_is_named_and_left_out_and_the_run_continues(
    sinks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(*TINY, "run_dir=plain")
    capsys.readouterr()
    _run(*TINY, "run_dir=run", "tracking.sinks=[my_sinks:Unreachable,jsonl]", quiet=False)
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "FAILED" in text)
    assert line.startswith("my_sinks:Unreachable FAILED at step 21")
    assert line.endswith("ConnectionError: no route to host")
    calls = _calls(Path("run/calls.jsonl"))
    assert [call[1] for call in calls if call[0] == "log" and call[1] > 20] == [21]
    assert events(Path("run")) == events(Path("plain"))
    weights = "export/model.safetensors"
    assert Path("run", weights).read_bytes() == Path("plain", weights).read_bytes()


def test_a_sink_that_cannot_be_built_ends_the_run_before_its_first_step(sinks: Path) -> None:
    with pytest.raises(ConnectionError, match="no route to host"):
        _run(*TINY, "run_dir=run", "tracking.sinks=[jsonl,my_sinks:Offline]")
    assert not Path("run/checkpoints").exists()
    _run("resume=run", "tracking.sinks=[jsonl]")
    assert Path("run/summary.json").exists()


def test_a_sink_that_cannot_be_closed_is_named_and_the_result_is_there(
    sinks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("train.max_steps=3", "tracking.sinks=[jsonl,my_sinks:Unclosable]")
    _run(*TINY, *short, "run_dir=run", quiet=False)
    said = capsys.readouterr().out
    assert "my_sinks:Unclosable FAILED when it was closed. TimeoutError: three uploads" in said
    assert Path("run/summary.json").exists()


def test_a_resume_may_have_a_sink_whose_code_has_changed(
    sinks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(*TINY, "run_dir=whole", "tracking.sinks=[jsonl,my_sinks:Lines]")
    assert "sources: {}" in Path("whole/config.yaml").read_text()
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    (sinks / "my_sinks.py").write_text(MY_SINKS.replace('"close"', '"closed at last"'))
    monkeypatch.delitem(sys.modules, "my_sinks")
    shutil.rmtree(sinks / "__pycache__", ignore_errors=True)
    _run(f"resume={killed}")
    calls = _calls(killed / "calls.jsonl")
    assert calls[-1] == ["closed at last"]
    assert ["begin", 0, False] in calls
    assert bits(killed) == bits(Path("whole"))


WRONG = {
    "tracking.sinks=[tensorboard]": ("tracking.sinks", Code.MISSING, "jsonl"),
    "tracking.sinks=[jsonl,jsonl]": ("tracking.sinks", Code.CONFLICT, "once"),
    "tracking.sinks=[jsonl,wandb]": ("tracking.sinks", Code.WRONG_TYPE, "wandb"),
    "tracking.sinks=[jsonl,my_sinks:Line]": ("tracking.sinks", Code.NOT_FOUND, "Line"),
    "tracking.sinks=[jsonl,my_sinks:Mute]": (
        "tracking.sinks",
        Code.INVALID,
        "without text(step, name, value) and close()",
    ),
    "tracking.sinks=[jsonl,my_sinks:Older]": ("tracking.sinks", Code.INVALID, "run_dir"),
    "tracking.options.Lines.name=x": ("tracking.options", Code.CONFLICT, "Lines"),
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_no_sink_is_refused_before_the_text_is_opened(
    sinks: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        pytest.fail("the text was opened")

    monkeypatch.setattr("mlmlab.runs.setup.open_text", opened)
    where, code, named = WRONG[override]
    with pytest.raises(mlmlab.UserError) as refused:
        _run(*TINY, override, "run_dir=run")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == (where, code)
    assert named in problem.found + problem.expected
    assert not Path("run").exists()


def test_of_two_processes_rank_zero_alone_has_sinks(sinks: Path) -> None:
    _run(
        *TINY, "train.max_steps=3", "run_dir=run", "runtime.processes=2",
        "tracking.sinks=[jsonl,my_sinks:Lines]",
    )  # fmt: skip
    calls = _calls(Path("run/calls.jsonl"))
    assert [call[0] for call in calls].count("begin") == 1
    assert [call[1] for call in calls if call[0] == "log"] == [0, 3, 3, 3]


def test_the_document_on_weights_and_biases_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(mlmlab.__file__).parents[1] / "docs" / "extending.md").read_text()
    section = document.split("## What a sink gets and gives")[1]
    (tmp_path / "my_sinks.py").write_text(section.split("```python\n")[1].split("```")[0])
    command = section.split("```bash\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_sinks", raising=False)
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)
    overrides = shlex.split(command.removeprefix("python -m mlmlab.train "))
    config = mlmlab.compose(*TINY, *overrides, "run_dir=my_run", "eval.fill_mask=['a <mask> .']")
    mlmlab.run(config, quiet=True)
    hyperparameters = service.begun.pop("config")
    assert service.begun == {"project": "words", "id": "my_run", "resume": "allow"}
    assert json.loads(json.dumps(hyperparameters))["train"]["max_steps"] == 60
    lines = [json.loads(line) for line in Path("my_run/metrics.jsonl").read_text().splitlines()]
    assert service.rows == lines
    texts = [row["fill_mask"] for row in service.rows if "fill_mask" in row]
    assert len(texts) == sum("eval/loss" in line for line in lines) == 4
    assert all("a <mask> ." in text and "-> " in text for text in texts)
    assert service.is_finished


class Service(SimpleNamespace):
    """What wandb's module and its Run have of the names that the document uses."""

    def __init__(self) -> None:
        super().__init__(begun={}, rows=[], is_finished=False)

    def init(self, *, project: str, id: str, resume: str, config: dict[str, Any]) -> "Service":
        self.begun = {"project": project, "id": id, "resume": resume, "config": config}
        return self

    def log(self, data: dict[str, Any], *, step: int) -> None:
        assert not self.rows or step >= self.rows[-1]["step"]  # as the service wants it
        self.rows.append({"step": step, **data})

    def finish(self) -> None:
        self.is_finished = True
