"""docs/own_loop.md, as its reader runs it."""

import re
from pathlib import Path

import pytest

import mlmlab


def test_the_loop_of_the_document_trains_as_the_frameworks_own_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    document = (Path(mlmlab.__file__).parents[1] / "docs" / "own_loop.md").read_text()
    code = document.split("```python\n")[1].split("```")[0]
    fewer = code.replace(
        "STEPS, BATCH_SIZE, LEARNING_RATE = 200,", "STEPS, BATCH_SIZE, LEARNING_RATE = 40,"
    )
    fewer = fewer.replace("mlmlab.compose()", 'mlmlab.compose("data.limit=2000")')
    assert fewer.count("40,") == fewer.count("2000") == 1
    exec(compile(fewer, "my_loop.py", "exec"), {})
    printed = capsys.readouterr().out
    (perplexity,) = re.findall(r"perplexity (\S+)", printed)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert losses[-1] < losses[0]
    summary = mlmlab.run(
        mlmlab.compose(
            "data.limit=2000", "train.max_steps=40", "train.warmup_steps=0",
            "train.weight_decay=0.01", "runtime.device=cpu", "runtime.precision=fp32",
            "run_dir=run",
        ),
        quiet=True,
    ).summary  # fmt: skip
    # Its decay leaves out biases and norms, and its AdamW is the fused one.
    assert float(perplexity) == pytest.approx(summary.eval_perplexity, rel=1e-3)
    model, _ = mlmlab.load_pretrained("my_model")
    assert model.parameter_count() > 0
