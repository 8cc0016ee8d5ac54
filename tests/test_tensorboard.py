"""TensorBoard shows what helps: what varies, curves in order, examples as the model saw them."""

import dataclasses
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from stopping import TINY, as_killed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from test_word_starts import TEXTS

import mlmlab
from mlmlab.tracking.tensorboard import hyperparameters

SHORT = (*TINY, "train.max_steps=20", "eval.every_steps=10", "train.log_every_steps=5")


def _events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=False).Reload()


def _texts(run_dir: Path, name: str) -> list[tuple[int, str]]:
    """Steps and texts, without the indentation that makes them code."""
    events = _events(run_dir).Tensors(f"{name}/text_summary")
    return [
        (event.step, textwrap.dedent(event.tensor_proto.string_val[0].decode())) for event in events
    ]


# The table of hyperparameters


def _varied(*varies: str, overrides: tuple[str, ...] = ()) -> dict[str, float | str]:
    return hyperparameters(dataclasses.replace(mlmlab.compose(*overrides), varies=varies))


def test_in_a_sweep_the_columns_are_what_varies() -> None:
    found = _varied("train.learning_rate", "seed", "train.max_steps", overrides=("seed=3",))
    assert found == {"train.learning_rate": 2e-3, "seed": "3", "train.max_steps": "null"}


def test_a_group_that_varies_is_one_column_of_what_it_changes() -> None:
    whole_word = ("masking@eval.masking=whole_word", "masking.unit=span", "masking.rate=0.2")
    found = _varied("masking", "eval.masking", overrides=whole_word)
    assert found == {"masking": "rate=0.2, unit=span", "eval.masking": "unit=word"}
    assert _varied("eval.masking") == {"eval.masking": "default"}


def test_an_option_of_ones_own_that_varies_is_a_column() -> None:
    own = ("train.schedule=my_ideas:wsd", "+train.schedule_options.decay=0.3")
    found = _varied("train.schedule_options.decay", overrides=own)
    assert found == {"train.schedule_options.decay": 0.3}


def test_outside_a_sweep_and_in_one_over_experiments_the_columns_are_the_usual_ones() -> None:
    usual = {
        "masking.rate": 0.15, "seed": "0", "train.batch_size": 64, "train.learning_rate": 2e-3,
    }  # fmt: skip
    assert _varied() == usual
    assert _varied("experiment") == usual
    assert _varied("experiment", "model.layers") == {**usual, "model.layers": 2}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    config = dataclasses.replace(
        mlmlab.compose(*SHORT, f"run_dir={folder}", "seed=1"), varies=("seed",)
    )
    mlmlab.run(config, quiet=True)
    return folder


def test_the_table_has_the_columns_and_the_figures_of_the_exported_weights(run_dir: Path) -> None:
    events = _events(run_dir)

    def content(tag: str) -> Any:
        plugin_data = events.SummaryMetadata(f"_hparams_/{tag}").plugin_data
        return HParamsPluginData.FromString(plugin_data.content)

    experiment = content("experiment").experiment
    assert [column.name for column in experiment.hparam_infos] == ["seed"]
    metrics = [metric.name.tag for metric in experiment.metric_infos]
    assert metrics == ["trained/eval_loss", "trained/eval_perplexity"]
    session = content("session_start_info").session_start_info
    assert {key: value.string_value for key, value in session.hparams.items()} == {"seed": "1"}
    (last,) = events.Scalars("trained/eval_loss")
    assert last.value == events.Scalars("eval/loss")[-1].value


# Curves


def test_the_groups_that_open_at_first_are_eval_and_train(run_dir: Path) -> None:
    tags = _events(run_dir).Tags()["scalars"]
    groups = sorted({tag.partition("/")[0] for tag in tags})
    assert groups[:2] == ["eval", "train"]
    in_train = sorted(tag for tag in tags if tag.startswith("train/"))
    assert in_train[:3] == ["train/grad_norm", "train/learning_rate", "train/loss"]


def _layout(run_dir: Path) -> Any:
    (event,) = _events(run_dir).Tensors("custom_scalars__config__")
    return Layout.FromString(event.tensor_proto.string_val[0])


def test_every_curve_of_the_layout_is_there_loss_and_perplexity_first_seconds_last(
    run_dir: Path,
) -> None:
    charts = [chart for category in _layout(run_dir).category for chart in category.chart]
    assert [chart.title for chart in charts[:2]] == ["loss", "perplexity"]
    assert charts[-1].title == "seconds"
    tags = _events(run_dir).Tags()["scalars"]
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert len([tag for tag in tags if re.search(pattern, tag)]) == 1, pattern


# Examples as the model sees them


def test_the_first_examples_are_shown_with_the_masks_that_they_are_trained_with(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    from mlmlab.data.batch import Masker

    micro_batch = Masker.micro_batch

    def noted(masker: Any, examples: Any, example_ids: Any, **arguments: Any) -> Any:
        made = micro_batch(masker, examples, example_ids, **arguments)
        seen.append((example_ids, made))
        return made

    monkeypatch.setattr(Masker, "micro_batch", noted)
    config = mlmlab.compose(*SHORT, "seed=1", f"run_dir={tmp_path / 'again'}")
    tokenizer = mlmlab.run(config, quiet=True).tokenizer
    ((step, text),) = _texts(tmp_path / "again", "masked_examples")
    assert (step, text) == (0, _texts(run_dir, "masked_examples")[0][1])
    _, *shown = text.split("\n\n")
    assert len(shown) == 3
    first_batch = next(made for ids, made in seen if len(ids) == 8)
    width = first_batch.masked.input_ids.shape[1]
    for row, one in enumerate(shown):
        ids = first_batch.masked.input_ids[row].tolist()
        begin, end = first_batch.masked.row_offsets[row : row + 2].tolist()
        assert one.startswith(f"{end - begin} of ")
        places = (first_batch.masked.positions[begin:end] - row * width).tolist()
        labels = first_batch.masked.labels[begin:end].tolist()
        expected = []
        for place, number in enumerate(ids):
            token = tokenizer.token(number)
            if place in places:
                was = tokenizer.token(labels[places.index(place)])
                if number == tokenizer.mask_id:
                    token = f"[{was}]"
                else:
                    token = f"<{was}>" if token == was else f"{{{was}>{token}}}"
            elif number in tokenizer.special_ids:
                token = f"({token})"
            expected.append(token)
        assert one.split("\n", 1)[1].split() == expected


def test_a_resumed_run_does_not_show_them_again(run_dir: Path, tmp_path: Path) -> None:
    for name, checkpoints in (("resumed", [15]), ("from the start", [])):
        killed = as_killed(run_dir, tmp_path / name, checkpoints=checkpoints)
        mlmlab.run(mlmlab.compose(f"resume='{killed}'"), quiet=True)
        assert _texts(killed, "masked_examples") == _texts(run_dir, "masked_examples")


def test_of_a_short_document_no_padding_is_shown(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_text("\n".join([*TEXTS, TEXTS[0] * 5]))
    config = mlmlab.compose(
        *SHORT, "train.max_steps=1", "data=text", f"data.path={tmp_path / 'my.txt'}",
        "data.layout=documents", "tokenizer.vocabulary_size=300", "data.block_size=128",
        "masking.rate=0.5", f"run_dir={tmp_path / 'run'}", "data.limit=null",
    )  # fmt: skip
    mlmlab.run(config, quiet=True)
    ((_, text),) = _texts(tmp_path / "run", "masked_examples")
    _, *shown = text.split("\n\n")
    for one in shown:
        assert "<pad>" not in one
        assert one.split("\n", 1)[1].startswith("(<s>) ")
        assert one.endswith(" (</s>)")


OTHER_SHAPE = """
import dataclasses

from mlmlab.masking import MaskedBatch
from mlmlab.training.objective import MaskedTokens


class Doubled(MaskedTokens):
    def prepare(self, examples, example_ids, epoch, step):
        micro = super().prepare(examples, example_ids, epoch, step)
        ids, *rest = micro.masked
        return dataclasses.replace(micro, masked=MaskedBatch(ids.repeat(2, 1), *rest))
"""


def test_an_objective_that_makes_sequences_of_another_shape_runs_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_another_shape.py").write_text(OTHER_SHAPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ("objective.name=of_another_shape:Doubled", "run_dir=run")
    mlmlab.run(mlmlab.compose(*SHORT, *overrides), quiet=True)
    assert "masked_examples/text_summary" not in _events(Path("run")).Tags()["tensors"]


# In a browser


@contextmanager
def _tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard on a folder."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("http://" in line for line in process.stderr), "TensorBoard has ended"
            yield f"http://localhost:{port}"
        finally:
            process.terminate()


@pytest.mark.slow
def test_a_browser_shows_a_sweep_by_what_varies(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlmlab.train", "-m", *SHORT, "sweep_dir=sweep"]
    command += ["train.learning_rate=1e-3,2e-3", "seed=0,1,2"]
    with Browser() as browser:
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        runs = sorted(file.parent for file in (tmp_path / "sweep").glob("*/summary.json"))
        names = [f"{run.name}/tensorboard" for run in runs]
        assert len(names) == 6
        columns = ["train.learning_rate", "seed"]
        with _tensorboard(tmp_path / "sweep") as address:
            figures = [f"trained/eval_{name}" for name in ("loss", "perplexity")]
            shown = {*names, *columns, *figures}
            table = browser.open(f"{address}/#hparams", shown.issubset)
            browser.screenshot(tmp_path / "hparams.png")
            head = table[table.index("Trial ID") : table.index(names[0])]
            assert head[2:] == ["seed", "train.learning_rate", *figures]
            rows = table[table.index(names[0]) :]
            for run, name in zip(runs, names, strict=True):
                row = rows[rows.index(name) + 1 :][:4]
                (last,) = _events(run).Scalars("trained/eval_perplexity")
                assert float(row[-1]) == pytest.approx(last.value, rel=1e-4)
            shown = {*names, "/perplexity", "/grad_norm"}
            curves = browser.open(f"{address}/#timeseries", shown.issubset)
            groups = [text for text in curves if text in ("eval", "train", "trained", "usage")]
            assert list(dict.fromkeys(groups)) == ["eval", "train", "trained", "usage"]
            assert curves[curves.index("eval") :].index("/loss") < curves.index("train")
            assert "/data_seconds" not in curves  # usage is closed until it is clicked on
            titles = ["loss", "perplexity", "learning rate"]
            charts = browser.open(f"{address}/#custom_scalars", set(titles).issubset)
            assert [text for text in charts if text in titles] == titles
            browser.open(
                f"{address}/#text",
                lambda texts: sum("tokens selected" in text for text in texts) == len(runs),
            )
