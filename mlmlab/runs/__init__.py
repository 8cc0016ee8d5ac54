"""run(config) and evaluate_checkpoint(config): all that the commands do, as functions."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlmlab import schema
from mlmlab.config import DebugMode, EvaluateConfig, RunConfig, build, build_evaluation
from mlmlab.errors import Code, UserError
from mlmlab.runs.folder import check_version, keep_pins, read_snapshot, run_to_resume

if TYPE_CHECKING:
    from mlmlab.runs.evaluate import EvaluationReport
    from mlmlab.runs.replay import Replay
    from mlmlab.runs.result import RunResult
    from mlmlab.tracking.progress_bar import SweepJob
    from mlmlab.tracking.summary import Summary

# Each function imports what it needs: a wrong option does not wait for PyTorch.


def run(
    config: RunConfig, *, documents: Iterable[str] | None = None, quiet: bool = False
) -> "RunResult | Replay":
    """Trains, evaluates and exports; or resumes a run, or replays one of its steps.

    `runtime.processes` starts the processes of the run; under torchrun each process calls this
    function, and each gets the same result.

    Args:
        config: from `mlmlab.compose`, or made of the dataclasses in `mlmlab.config`. It is checked
            here; values may be as YAML has them ("roberta" for Family.ROBERTA).
        documents: the text of data.source=documents, a str each. They are kept in memory. A resume
            needs the same ones again.
        quiet: print nothing.

    Returns:
        The run's summary, model, tokenizer and metrics; with debug=replay, the step's loss.

    Raises:
        UserError: the config or what it names is wrong; nothing was written.
        RunFailed: the loss or a gradient became non-finite, or another process ended.
        FailedElsewhere: one of `runtime.processes` failed, and has printed why.
        Interrupted: a signal asked the run to stop; there is a checkpoint.
    """
    config = _checked(config)
    outcome = execute(config, documents=documents, quiet=quiet)
    from mlmlab.runs.replay import Replay
    from mlmlab.runs.result import RunResult

    if isinstance(outcome, Replay):
        return outcome
    return RunResult.read(outcome, Path(config.resume or outcome.run_dir))


def execute(
    config: RunConfig,
    *,
    documents: Iterable[str] | None = None,
    quiet: bool = False,
    job: "SweepJob | None" = None,
    overrides: Sequence[str] | None = None,
) -> "Summary | Replay":
    """As `run`, for the command, which has no use for a model in memory.

    Args:
        config: a checked one.
        job: what the run is in a sweep.
        overrides: what stood on the command line, for the model card; None: there was none.

    Returns:
        The content of the run's summary.json; with debug=replay, the step's loss.
    """
    texts = _texts(documents)
    if config.debug.mode is DebugMode.REPLAY:
        from mlmlab.runs.replay import replay

        return replay(config, documents=texts, quiet=quiet)
    if summary := finished(config):
        if not quiet and os.environ.get("RANK", "0") == "0":
            print(
                f"nothing left to do: {config.resume} finished with step {summary.steps:,}, "
                f"perplexity {summary.eval_perplexity:.4g}.\n"
                "train.max_steps=N or train.epochs=N with a larger N resumes it."
            )
        return summary
    from mlmlab.runs.spawn import in_processes
    from mlmlab.runs.train import train

    training = partial(train, documents=texts, job=job, overrides=overrides)
    summary = in_processes(training, config, quiet=quiet)
    if config.train.push_to_hub is not None and os.environ.get("RANK", "0") == "0":
        from mlmlab.runs.push import push_finished

        push_finished(Path(config.resume or summary.run_dir), config.train.push_to_hub, quiet=quiet)
    return summary


def evaluate_checkpoint(
    config: EvaluateConfig, *, documents: Iterable[str] | None = None, quiet: bool = False
) -> "EvaluationReport":
    """Scores a checkpoint on text.

    Args:
        config: from `mlmlab.compose_evaluation`, or made of the dataclasses in `mlmlab.config`.
        documents: the text of data.source=documents, a str each.
        quiet: print nothing.

    Raises:
        UserError: the config or what it names is wrong.
        RunFailed: another process ended.
        FailedElsewhere: one of `runtime.processes` failed, and has printed why.
    """
    from mlmlab.runs.evaluate import score
    from mlmlab.runs.spawn import in_processes

    config = build_evaluation(schema.to_mapping(config))
    return in_processes(partial(score, documents=_texts(documents)), config, quiet=quiet)


def _checked(config: RunConfig) -> RunConfig:
    """The config, with what the run that it resumes has pinned: nothing new for one that
    `mlmlab.compose` has made.

    Raises:
        UserError: what is wrong with it.
    """
    if not isinstance(config, RunConfig):
        raise UserError.of(
            "mlmlab.run",
            code=Code.WRONG_TYPE,
            found=f"{config!r:.60}",
            expected="a RunConfig",
            remedy='mlmlab.run(mlmlab.compose("train.max_steps=10")), say',
        )
    mapping = schema.to_mapping(config)
    mapping["resume"] = run_dir = run_to_resume(mapping)
    if run_dir is not None:
        snapshot = read_snapshot(Path(run_dir))
        check_version(run_dir, snapshot, mapping)
        keep_pins(snapshot, mapping)
    return build(mapping)


def _texts(documents: Iterable[str] | None) -> tuple[str, ...] | None:
    if documents is None:
        return None
    from mlmlab.data.sources import checked_documents

    return checked_documents(documents)


def finished(config: RunConfig) -> "Summary | None":
    """The summary of a run that is resumed with nothing left to do.

    Args:
        config: a checked one.
    """
    if config.resume is None:
        return None
    file = Path(config.resume) / "summary.json"
    if not file.is_file():
        return None
    from mlmlab.runs.resume import changes_of
    from mlmlab.tracking.summary import Summary

    return None if changes_of(config) else Summary.read(file)
