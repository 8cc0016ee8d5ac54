"""A training run from top to bottom, in this process or as one of several."""

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from mlmlab.checkpoints import save_pretrained
from mlmlab.config import DebugMode, RunConfig
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Order
from mlmlab.data.loader import EvalLoader, TrainLoader
from mlmlab.errors import RunFailed, UserError
from mlmlab.evaluation.evaluators import Evaluator, build_evaluators
from mlmlab.evaluation.fill_mask import FillMask
from mlmlab.evaluation.masked_perplexity import perplexity
from mlmlab.evaluation.small_world_floor import SENTENCES, Floor, exact_answers, exact_floor
from mlmlab.fetch.upload import check_access
from mlmlab.model import MaskedLanguageModel
from mlmlab.runs import terminal
from mlmlab.runs.card import COMMAND, card
from mlmlab.runs.folder import check_run_dir, run_folder
from mlmlab.runs.resume import Start, fingerprint, newest_checkpoint
from mlmlab.runs.setup import Inputs, set_up_run
from mlmlab.runtime.config import Parallel
from mlmlab.runtime.devices import Compute, torch_settings, uses_cuda
from mlmlab.runtime.distributed import Ranks, process_group
from mlmlab.runtime.signals import Interruptions
from mlmlab.tracking.masked_text import first_examples
from mlmlab.tracking.progress_bar import ProgressBar, SweepJob
from mlmlab.tracking.sinks import Sink, find_sinks
from mlmlab.tracking.summary import (
    Summary,
    git_commit,
    peak_memory_bytes,
    processor_name,
    versions,
)
from mlmlab.tracking.tensorboard import TRAINED
from mlmlab.tracking.tracker import Tracker
from mlmlab.training.backward import Loss
from mlmlab.training.loop import Loop, Outputs, Training
from mlmlab.training.objective import OBJECTIVES, find_objective, masked_token_loss
from mlmlab.training.optimizer import scales_and_suppresses
from mlmlab.training.parallel import Replica
from mlmlab.training.profiling import Profiler
from mlmlab.training.schedule import Horizon


def train(
    config: RunConfig,
    *,
    documents: Sequence[str] | None = None,
    quiet: bool = False,
    job: SweepJob | None = None,
    overrides: Sequence[str] | None = None,
) -> Summary:
    """Trains, evaluates and exports; see `execute`."""
    with (
        process_group(use_cuda=uses_cuda(config.runtime), if_lost=_IF_LOST) as ranks,
        torch_settings(config.runtime, ranks.local_rank) as device,
    ):
        quiet = quiet or not ranks.is_rank_zero
        return _train(config, ranks, device, documents, overrides, quiet=quiet, job=job)


_IF_LOST = (
    "The newest checkpoint is complete: python -m mlmlab.train resume=RUN_DIR resumes from it,\n"
    "under the same torchrun command."
)


def _train(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    documents: Sequence[str] | None,
    overrides: Sequence[str] | None,
    *,
    quiet: bool,
    job: SweepJob | None,
) -> Summary:
    with ExitStack() as stack:

        def open_folder() -> Path:
            folder = stack.enter_context(run_folder(config))
            if config.resume is None and overrides is not None:
                command = shlex.join(["python", "-m", "mlmlab.train", *overrides])
                (folder / COMMAND).write_text(f"{command}\n", encoding="utf-8")
            return folder

        def find_start() -> Start:
            if config.train.push_to_hub is not None:
                check_access("train.push_to_hub")
            if config.resume is None:
                check_run_dir(config)  # now, not after an hour of tokenizing
                return Start()
            open_folder()  # before anything in it is read
            return newest_checkpoint(config)

        start = ranks.on_rank_zero(find_start)
        evaluators, sinks = build_evaluators(config.eval, config), find_sinks(config.tracking)
        shows_no_bar = quiet or (job is not None and job.is_side_by_side)
        config, inputs = set_up_run(config, ranks, start.state, documents, quiet=shows_no_bar)
        compute = Compute.for_model(
            inputs.model.config.hidden_size,
            config.runtime,
            device,
            alone=not ranks.is_distributed,
        )
        _check_sentences(config, inputs)
        run_dir = Path(config.resume) if config.resume else ranks.on_rank_zero(open_folder)
        horizon = horizon_of(config, inputs)
        bar = ProgressBar(horizon.total_steps, start.record.steps, quiet=quiet, job=job)
        outputs = _outputs(
            config, inputs, compute, ranks, horizon, run_dir, start, sinks, stack, bar
        )
        loop = build_loop(config, inputs, ranks, compute, horizon, evaluators, outputs, start.state)
        if start.state is None:
            ranks.on_rank_zero(lambda: _show_first_examples(loop, outputs))
        if not scales_and_suppresses(loop.optimizers):
            bar.plan(terminal.host_check(config.train.optimizer))
        training = loop.train()
        model = loop.replica.unsharded_model()
        return ranks.on_rank_zero(lambda: _written(config, inputs, model, loop, training, outputs))


def _outputs(
    config: RunConfig,
    inputs: Inputs,
    compute: Compute,
    ranks: Ranks,
    horizon: Horizon,
    run_dir: Path,
    start: Start,
    sinks: Mapping[str, partial[Sink]],
    stack: ExitStack,
    bar: ProgressBar,
) -> Outputs:
    """Opens what the run writes to, and says what is about to happen."""
    stack.callback(bar.close)
    for reason in start.passed_over:
        bar.line(reason)
    bar.plan(terminal.plan(config, inputs, compute, ranks, horizon, run_dir))
    if inputs.loaded is not None:
        bar.plan(f"{inputs.loaded.report}\n")
    if config.resume is not None:
        bar.line(terminal.resumption(start))
    tracker = profiler = None

    def open_logs() -> None:
        nonlocal tracker, profiler
        if config.resume is not None:
            start.note(run_dir)
        if not horizon.is_reached(start.record):  # until then it is of a shorter run
            (run_dir / "summary.json").unlink(missing_ok=True)
        sizes = start.record.log_sizes
        tracker = Tracker(config, run_dir, sinks, sizes=sizes, tell=bar.line)
        stack.callback(tracker.close)
        if config.debug.profile_steps:
            profiler = Profiler(run_dir, config.debug.profile_steps, compute.device)
            stack.callback(profiler.close)

    ranks.on_rank_zero(open_logs)
    save_every_minutes = config.train.save_every_minutes if ranks.is_rank_zero else None
    return Outputs(
        run_dir=run_dir,
        bar=bar,
        tracker=tracker,
        tokenizer=inputs.tokenizer,
        fingerprint=fingerprint(config),
        changes=start.changes,
        interruptions=stack.enter_context(Interruptions(save_every_minutes)),
        profiler=profiler,
        completions=partial(_completions, config, inputs) if config.eval.fill_mask else None,
    )


def build_loop(
    config: RunConfig,
    inputs: Inputs,
    ranks: Ranks,
    compute: Compute,
    horizon: Horizon,
    evaluators: list[Evaluator],
    outputs: Outputs,
    state: Path | None,
) -> Loop:
    """The loop of a run, from its beginning or from the checkpoint in `state`."""
    vocabulary = inputs.tokenizer.vocabulary()
    # A custom objective may do what no recorded step can, and sees no positions but its own.
    is_own = config.objective.name in OBJECTIVES
    masker = Masker(
        config.masking,
        vocabulary,
        inputs.seeds.masks,
        horizon.total_steps,
        compute.is_cuda,
        config.masking.highest_rate if compute.fixes_shapes and is_own else None,
        compute.position_multiple if is_own else 1,
    )
    objective = find_objective(config.objective)(config, masker)
    replica = build_replica(inputs.model, ranks, compute, config.runtime.parallel, objective.loss)
    if hasattr(objective, "setup"):
        objective.setup(replica.model, compute.device)
    train_loader = TrainLoader(
        blocks=inputs.train,
        order=_order(config, inputs),
        micro_batch_size=config.train.micro_batch_size or config.train.batch_size,
        objective=objective,
        seeds=inputs.seeds,
        ranks=ranks,
        requested=outputs.interruptions.requests,
        groups_rows=is_own,
    )
    eval_loader = EvalLoader(
        blocks=inputs.test,
        masker=Masker(
            config.eval.masking,
            vocabulary,
            inputs.seeds.eval_masks,
            pin_memory=compute.is_cuda,
        ),
        draws=config.eval.mask_draws,
        max_examples=config.eval.max_examples,
    )
    return Loop(
        replica,
        train_loader,
        eval_loader,
        config=config.train,
        eval_config=config.eval,
        horizon=horizon,
        evaluators=evaluators,
        outputs=outputs,
        resumed_from=state,
    )


def horizon_of(config: RunConfig, inputs: Inputs) -> Horizon:
    """How long the run is."""
    return Horizon.of(config.train, _order(config, inputs).batches_per_epoch)


def _order(config: RunConfig, inputs: Inputs) -> Order:
    examples = len(inputs.train)
    if config.debug.mode is DebugMode.OVERFIT:
        examples = min(examples, config.train.batch_size)
    return Order(examples, config.train.batch_size, inputs.seeds.order)


def build_replica(
    model: MaskedLanguageModel,
    ranks: Ranks,
    compute: Compute,
    parallel: Parallel,
    loss: Loss = masked_token_loss,
) -> Replica:
    """The form that `runtime.parallel` names. Without torchrun there is one process, which has all
    of the model in any case."""
    if parallel is Parallel.FSDP and ranks.is_distributed:
        from mlmlab.training.sharding import ShardedReplica  # PyTorch's part of it takes 0.7 s

        return ShardedReplica(model, ranks, compute, loss)
    return Replica(model, ranks, compute, loss)


def _show_first_examples(loop: Loop, outputs: Outputs) -> None:
    """To the sinks, at the start of a run."""
    assert outputs.tracker is not None
    if text := first_examples(loop.train_loader, outputs.tokenizer):
        outputs.tracker.text(0, "masked_examples", text)


def _written(
    config: RunConfig,
    inputs: Inputs,
    model: MaskedLanguageModel | None,
    loop: Loop,
    training: Training,
    outputs: Outputs,
) -> Summary:
    """What rank 0 writes at the end."""
    bar, tracker, run_dir = outputs.bar, outputs.tracker, outputs.run_dir
    assert tracker is not None
    assert model is not None
    floor = None
    if inputs.has_known_floor:
        floor = exact_floor(inputs.tokenizer, loop.eval_loader)
    summary = _summary(config, training, loop.replica, floor, run_dir)
    completions = _completions(config, inputs, model)
    if completions and outputs.completions is None:  # else the evaluations have logged them
        tracker.text(summary.steps, "fill_mask", "\n".join(completions))
    final = {f"{TRAINED}{tag.replace('/', '_')}": x for tag, x in summary.figures.items()}
    tracker.log(summary.steps, {"epoch": loop.epoch, **final})
    try:
        training.final.by_document.write(run_dir)
        _export(config, inputs, model, summary, run_dir)
    except (OSError, SafetensorError) as error:
        raise RunFailed(
            f"the result cannot be written to {run_dir}: {error}\n"
            f"With room on the disk, python -m mlmlab.train resume={run_dir} writes it."
        ) from error
    if bar.job is None:
        bar.line(terminal.closing(summary, training))
        if completions:
            bar.line("\n" + "\n".join(completions))
        bar.line(terminal.next_steps(config, inputs, run_dir))
    return summary


def _summary(
    config: RunConfig, training: Training, replica: Replica, floor: Floor | None, run_dir: Path
) -> Summary:
    record, final, compute = training.record, training.final, replica.compute
    # Unknown where no evaluation predicted a token, for which summary.json has null.
    best_perplexity, initial_perplexity = (
        math.nan if loss is None else perplexity(loss)
        for loss in (record.best_eval_loss, record.initial_eval_loss)
    )
    return Summary(
        eval_loss=final.loss,
        eval_perplexity=final.perplexity,
        eval_loss_standard_error=final.loss_standard_error,
        eval_masked_tokens=final.masked_count,
        eval_top1_accuracy=final.top1_accuracy,
        eval_top5_accuracy=final.top5_accuracy,
        own_figures=training.own_figures,
        monitor=config.eval.monitor,
        best_value=math.nan if record.best_value is None else record.best_value,
        best_eval_perplexity=best_perplexity,
        initial_eval_perplexity=initial_perplexity,
        initial_eval_loss_standard_error=math.nan
        if record.initial_eval_loss_standard_error is None
        else record.initial_eval_loss_standard_error,
        floor_perplexity=floor.perplexity if floor else None,
        steps=record.steps,
        exported_step=training.exported_step,
        tokens=record.tokens,
        seconds=record.seconds,
        tokens_per_second=record.tokens / max(record.step_seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(compute.device),
        device=compute.device.type,
        precision=compute.precision.value,
        threads=torch.get_num_threads(),
        world_size=replica.ranks.size,
        processor=processor_name(),
        gpu=torch.cuda.get_device_name(compute.device) if compute.is_cuda else None,
        cuda_version=torch.version.cuda,
        seed=config.seed,
        git_commit=git_commit(),
        versions=versions(),
        run_dir=str(run_dir),
    )


def _export(
    config: RunConfig, inputs: Inputs, model: MaskedLanguageModel, summary: Summary, run_dir: Path
) -> None:
    """The Hub layout and its card; summary.json last, the sign of a finished run."""
    export = run_dir / "export"
    save_pretrained(model, inputs.tokenizer, export)
    text = card(config, inputs, summary, run_dir)
    (export / "README.md").write_text(text, encoding="utf-8")
    summary.write(run_dir / "summary.json")


def _sentences(config: RunConfig, inputs: Inputs) -> list[str]:
    """eval.fill_mask with the tokenizer's own mask token: recipes write <mask> for any model."""
    texts = config.eval.fill_mask
    if texts is None:
        texts = SENTENCES if inputs.has_known_floor else ()
    return [text.replace("<mask>", inputs.tokenizer.mask_token) for text in texts]


def _check_sentences(config: RunConfig, inputs: Inputs) -> None:
    """Refuses a text without a mask now, not after the training.

    Raises:
        UserError: there is one, or one that is too long.
    """
    fill_mask = FillMask(inputs.model, inputs.tokenizer)
    try:
        for text in _sentences(config, inputs):
            fill_mask.encode(text)
    except UserError as error:
        raise UserError(replace(p, where="eval.fill_mask") for p in error.problems) from error


def _completions(config: RunConfig, inputs: Inputs, model: MaskedLanguageModel) -> list[str]:
    """Each text and the model's answers for its masks, with the small world's exact ones where
    they are known, as they are printed."""
    fill_mask = FillMask(model, inputs.tokenizer)
    completions = []
    for text in _sentences(config, inputs):
        best = fill_mask(text, top_k=3)
        rows = best if isinstance(best[0], list) else [best]
        exact = []
        if inputs.has_known_floor:
            exact = exact_answers(fill_mask.encode(text), config.eval.masking, inputs.tokenizer)
        completions.append(terminal.completion(text, terminal.answers(rows, exact)))
    return completions
