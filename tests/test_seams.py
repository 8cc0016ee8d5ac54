"""One's own schedule and optimizer: package.module:name, from a folder outside the checkout."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from stopping import TINY, as_killed, bits, events

import mlmlab
import mlmlab.evaluate
from mlmlab.errors import Code, RunFailed
from mlmlab.tracking.summary import Summary
from mlmlab.training.objective import masked_token_loss

IDEAS = '''
import torch


def wsd(step, total_steps, *, decay=0.2):
    """Warmup-stable-decay (Hu et al. 2024)."""
    left = (total_steps - step) / max(1, total_steps)
    return min(1.0, left / decay)


def sgd(groups, config, momentum=0.9):
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=momentum)


def muon(groups, config, matrix_rate=0.02):
    matrices = [group for group in groups if group["role"] == "matrix"]
    others = [group for group in groups if group["role"] != "matrix"]
    return [
        torch.optim.Muon(matrices, lr=matrix_rate),
        torch.optim.AdamW(others, lr=config.learning_rate, fused=True),
    ]


class Counting(torch.optim.SGD):
    """Keeps a count in its groups, and a list of tensors for each parameter."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
            group["lr"] /= group["steps"] ** 0.5
            for p in (p for p in group["params"] if p.grad is not None):
                sums = self.state[p].setdefault("sums", [torch.zeros_like(p).transpose(0, -1)])
                sums[0] += p.grad.transpose(0, -1)
                p.grad += 0.01 * sums[0].transpose(0, -1)
        super().step()


def counting(groups, config):
    return Counting(groups, lr=0.1)


class Opaque(torch.optim.SGD):
    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["graph"] = {1, 2}


def opaque(groups, config):
    return Opaque(groups, lr=0.1)


def forgetful(groups, config):
    return torch.optim.SGD(groups[:1], lr=config.learning_rate)


def one_argument(step):
    return 1.0


def nothing(groups, config):
    return None


number = 3


class Pairs:
    name = "pairs"

    def __init__(self, config, *, scale=1.0):
        self.scale = scale * config.train.batch_size

    def run(self, model, tokenizer, device):
        ids = torch.tensor([tokenizer.encode("the cow lives in the <mask> .")], device=device)
        assert not model.training
        logits = model(ids)
        assert not logits.requires_grad
        return {"scale": self.scale, "logit": logits.max()}


class Block:
    """Built for a run or for mlmlab.evaluate."""

    name = "block"
    built = 0

    def __init__(self, config, *, scale=1.0):
        Block.built += 1
        self.size = scale * config.data.block_size

    def run(self, model, tokenizer, device):
        assert not torch.is_grad_enabled()
        weight = model.embeddings.token.weight
        return {"size": self.size, "norm": weight.norm(), "unknown": float("nan")}


class Silent:
    name = "silent"

    def __init__(self, config):
        pass

    def run(self, model, tokenizer, device):
        return None


class Nameless:
    def __init__(self, config):
        pass
'''


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with my_ideas.py, which no other test has imported."""
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_ideas", raising=False)
    return tmp_path


def _run(*overrides: str) -> None:
    mlmlab.run(mlmlab.compose(*overrides), quiet=True)


def test_the_learning_rate_is_that_of_ones_own_schedule_after_the_warmup(ideas: Path) -> None:
    _run(
        *TINY, "run_dir=run", "train.max_steps=20", "train.schedule=my_ideas:wsd",
        "train.schedule_options.decay=0.5", "train.warmup_steps=4", "train.log_every_steps=1",
        "train.learning_rate=1e-3",
    )  # fmt: skip
    found = {e["step"]: e["train/learning_rate"] for e in events(Path("run")) if "train/loss" in e}
    expected = [(k + 1) / 4 for k in range(4)] + [min(1.0, (16 - k) / 16 / 0.5) for k in range(16)]
    assert [found[step] for step in range(1, 21)] == pytest.approx([1e-3 * f for f in expected])


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "counting"])
def test_whatever_ones_own_optimizer_keeps_is_resumed_with_the_same_bits(
    ideas: Path, optimizer: str
) -> None:
    own = (f"train.optimizer=my_ideas:{optimizer}", "train.schedule=my_ideas:wsd")
    _run(*TINY, *own, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))


def test_what_no_checkpoint_can_have_is_named(ideas: Path) -> None:
    with refusal("train.optimizer", Code.UNSUPPORTED, "graph", "set"):
        _run(*TINY, "train.optimizer=my_ideas:opaque", "run_dir=run")


def test_a_resume_refuses_code_that_has_changed(
    ideas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(*TINY, "train.schedule=my_ideas:wsd", "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    (ideas / "my_ideas.py").write_text(IDEAS.replace("decay=0.2", "decay=0.3"))
    monkeypatch.delitem(sys.modules, "my_ideas")
    with pytest.raises(mlmlab.UserError) as refused:
        _run(f"resume={killed}")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == ("train.schedule", Code.CHANGED)
    assert "my_ideas:wsd" in problem.found


def test_an_optimizer_may_not_change_and_its_options_may(ideas: Path) -> None:
    _run(*TINY, "train.optimizer=my_ideas:sgd", "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    with pytest.raises(mlmlab.UserError) as refused:
        mlmlab.compose(f"resume={killed}", "train.optimizer=adamw")
    assert [p.where for p in refused.value.problems] == ["train.optimizer"]
    _run(f"resume={killed}", "train.optimizer_options.momentum=0.5")
    (line,) = (killed / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["overrides"] == ["train.optimizer_options={'momentum': 0.5}"]


def test_a_gradient_that_is_not_finite_reaches_no_weight_whoever_steps(
    ideas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def poisoned(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = masked_token_loss(*arguments)  # type: ignore[arg-type]
        return loss * math.nan if calls == 7 else loss

    monkeypatch.setattr("mlmlab.training.objective.masked_token_loss", poisoned)
    with pytest.raises(RunFailed, match="step 7"):
        _run(*TINY, "train.optimizer=my_ideas:muon", "run_dir=run")
    kept, _ = mlmlab.load_pretrained("run/failures/step_7")
    calls = 100  # no poison
    every = ("train.save_every_steps=6", "train.keep_checkpoints=20")
    _run(*TINY, *every, "train.optimizer=my_ideas:muon", "run_dir=sound")
    sound, _ = mlmlab.load_pretrained("sound/checkpoints/step_6")
    for untouched, expected in zip(kept.parameters(), sound.parameters(), strict=True):
        assert torch.equal(untouched, expected)


PAIRS = (
    "eval.evaluators=[masked_perplexity,my_ideas:Pairs]",
    "eval.options.Pairs.scale=2.5",
)


def test_the_figures_of_ones_own_evaluator_are_logged_and_in_the_summary(ideas: Path) -> None:
    plain, own = Path("plain"), Path("own")
    _run(*TINY, f"run_dir={plain}")
    _run(*TINY, *PAIRS, f"run_dir={own}")
    found = [event for event in events(own) if "eval/loss" in event]
    assert len(found) > 2
    assert {event["eval/pairs/scale"] for event in found} == {2.5 * 8}
    summary = json.loads((own / "summary.json").read_text())
    assert summary["own_figures"] == {
        tag: found[-1][tag] for tag in ("eval/pairs/scale", "eval/pairs/logit")
    }
    weights = "export/model.safetensors"
    assert (own / weights).read_bytes() == (plain / weights).read_bytes()  # it only looked


def test_a_run_with_ones_own_evaluator_is_resumed_with_the_same_bits(ideas: Path) -> None:
    _run(*TINY, *PAIRS, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))


BLOCK = "eval.evaluators=[masked_perplexity,my_ideas:Block]"


def _strict(text: str) -> Any:
    """JSON without NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {text}"))


def test_ones_own_evaluator_is_built_once_and_answers_evaluate_as_it_answered_the_run(
    ideas: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(*TINY, "train.max_steps=10", BLOCK, "run_dir=run")
    assert sys.modules["my_ideas"].Block.built == 1
    in_run = _strict(Path("run/summary.json").read_text())["own_figures"]
    capsys.readouterr()
    scaled = ["checkpoint=run", BLOCK, "eval.options.Block.scale=2"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *scaled])
    mlmlab.evaluate.main()
    said = capsys.readouterr().out
    found = _strict(said.splitlines()[-1])["own_figures"]
    assert found == {**in_run, "eval/block/size": 2 * in_run["eval/block/size"]}
    assert (found["eval/block/size"], found["eval/block/unknown"]) == (64, None)
    (line,) = (line for line in said.splitlines() if line.startswith("evaluators"))
    assert f"block/norm {found['eval/block/norm']:.4g}" in line
    read = Summary.read(Path("run/summary.json"))
    assert math.isnan(read.own_figures["eval/block/unknown"])
    monkeypatch.setattr(sys, "argv", ["evaluate", "checkpoint=run"])
    mlmlab.evaluate.main()
    assert _strict(capsys.readouterr().out.splitlines()[-1])["own_figures"] == {}


@pytest.mark.parametrize(
    ("override", "where", "code"),
    [
        ("eval.evaluators=[masked_perplexity,my_ideas:Silent]", "eval.evaluators", Code.INVALID),
        ("eval.evaluators=['my_ideas:Block']", "eval.evaluators", Code.MISSING),
        ("eval.options.Block.scale=2", "eval.options", Code.CONFLICT),
        ("eval.monitor=eval/block/norm", "eval.monitor", Code.UNKNOWN_KEY),
    ],
)
def test_evaluate_refuses_what_does_not_fit(
    ideas: Path, override: str, where: str, code: Code
) -> None:
    _run(*TINY, "train.max_steps=2", "run_dir=run")
    with pytest.raises(mlmlab.UserError) as refused:
        mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation("checkpoint=run", override))
    (problem,) = refused.value.problems
    assert (problem.where.partition(":")[0], problem.code) == (where, code)


WRONG = {
    "train.schedule=lineer": ("train.schedule", Code.WRONG_TYPE, "linear, cosine, constant"),
    "train.schedule=no_such_module:wsd": ("train.schedule", Code.NOT_FOUND, "no_such_module"),
    "train.schedule=my_ideas:wds": ("train.schedule", Code.NOT_FOUND, "wsd"),
    "train.schedule=my_ideas:number": ("train.schedule", Code.INVALID, "int"),
    "train.schedule=my_ideas:one_argument": ("train.schedule", Code.INVALID, "(step)"),
    "train.optimizer=my_ideas:nothing": ("train.optimizer", Code.INVALID, "NoneType"),
    "eval.evaluators=[masked_perplexity,my_ideas:Silent]": (
        "eval.evaluators",
        Code.INVALID,
        "silent",
    ),
    "eval.evaluators=[masked_perplexity,my_ideas:Nameless]": (
        "eval.evaluators",
        Code.INVALID,
        "Nameless",
    ),
    "eval.evaluators=['my_ideas:Silent']": ("eval.evaluators", Code.MISSING, "masked_perplexity"),
    "eval.evaluators=[masked_perplexity,pairs]": ("eval.evaluators", Code.WRONG_TYPE, "pairs"),
    "eval.options.pairs.scale=2": ("eval.options", Code.CONFLICT, "pairs"),
    "train.optimizer=my_ideas:forgetful": ("train.optimizer", Code.INVALID, "parameters"),
}


@pytest.mark.parametrize("override", WRONG)
def test_what_does_not_fit_a_seam_is_refused(ideas: Path, override: str) -> None:
    where, code, named = WRONG[override]
    with pytest.raises(mlmlab.UserError) as refused:
        _run(*TINY, override, "run_dir=run")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == (where, code)
    assert named in problem.found + problem.expected


def test_an_option_that_ones_own_object_lacks_is_refused(ideas: Path) -> None:
    with pytest.raises(mlmlab.UserError) as refused:
        _run(*TINY, "train.schedule=my_ideas:wsd", "train.schedule_options.dekay=1", "run_dir=run")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == ("train.schedule_options", Code.INVALID)
    assert "dekay" in problem.found


def test_a_module_that_fails_when_it_is_imported_is_named(ideas: Path) -> None:
    (ideas / "broken_ideas.py").write_text("1 / 0\n")
    with pytest.raises(mlmlab.UserError) as refused:
        _run(*TINY, "train.schedule=broken_ideas:wsd", "run_dir=run")
    (problem,) = refused.value.problems
    assert problem.code is Code.INVALID
    assert "ZeroDivisionError" in problem.found


def test_fsdp_refuses_ones_own_optimizer(ideas: Path) -> None:
    with pytest.raises(mlmlab.UserError) as refused:
        mlmlab.compose("train.optimizer=my_ideas:sgd", "runtime.parallel=fsdp")
    (problem,) = refused.value.problems
    assert (problem.where, problem.code) == ("train.optimizer", Code.CONFLICT)


def test_the_document_on_extending_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(mlmlab.__file__).parents[1] / "docs" / "extending.md").read_text()
    code = document.split("```python\n")[1].split("```")[0]
    section = document.replace("\\\n", "").split("## What an evaluator gets and gives")[1]
    commands, monitored = (
        text.split("```bash\n")[1].split("```")[0].splitlines() for text in (document, section)
    )
    (tmp_path / "my_ideas.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_ideas", raising=False)
    assert len(commands) == 6
    commands[5:] = monitored  # the last is a sweep, as in test_own_folder.py
    for number, command in enumerate(commands):
        overrides = shlex.split(command.removeprefix("python -m mlmlab.train "))
        _run(*TINY, *overrides, "train.max_steps=3", f"run_dir=run{number}")
