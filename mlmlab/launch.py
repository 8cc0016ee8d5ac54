"""run(config) -> Summary: what `python -m mlmlab.train` does, for notebooks and tests."""

import dataclasses
from pathlib import Path

from mlmlab import schema, terminal
from mlmlab.checkpoints import save_pretrained
from mlmlab.config import DebugMode, RunConfig
from mlmlab.data.order import Order
from mlmlab.filling import FillMask
from mlmlab.inputs import Inputs, gather
from mlmlab.loader import EvalLoader, TrainLoader
from mlmlab.model_card import model_card
from mlmlab.optimum import SENTENCES, exact_answers, floor_perplexity
from mlmlab.run_folder import RunFolder, check_run_dir
from mlmlab.tracking.progress import Progress, tokenization_bar
from mlmlab.tracking.summary import Summary, git_commit, peak_memory_bytes, versions
from mlmlab.tracking.tracker import Tracker
from mlmlab.training.evaluation import perplexity
from mlmlab.training.loop import Horizon, Loop, Training
from mlmlab.training.precision import Compute, resolve


def run(config: RunConfig, *, quiet: bool = False) -> Summary:
    """Trains, evaluates and exports, in a folder of its own.

    Args:
        config: from `mlmlab.compose`.
        quiet: print nothing.

    Returns:
        The content of the run's summary.json.

    Raises:
        UserError: the config or what it names is wrong; nothing was written.
        RunFailed: the loss or a gradient became non-finite.
    """
    compute = resolve(config.runtime)
    check_run_dir(config)  # now, not after an hour of tokenizing
    with tokenization_bar(quiet=quiet) as show:
        inputs = gather(config, show)
    config = _pinned(config, inputs)
    train_loader, eval_loader = _loaders(config, inputs, pin_memory=compute.device.type == "cuda")
    fill_mask = FillMask(inputs.model, inputs.tokenizer)
    for text in _sentences(config, inputs):
        fill_mask.encode(text)  # refuses a text without a mask now, not after the training
    with RunFolder(config) as run_dir:
        return _run(config, inputs, (train_loader, eval_loader), fill_mask, compute, run_dir, quiet)


def _run(
    config: RunConfig,
    inputs: Inputs,
    loaders: tuple[TrainLoader, EvalLoader],
    fill_mask: FillMask,
    compute: Compute,
    run_dir: Path,
    quiet: bool,
) -> Summary:
    train_loader, eval_loader = loaders
    horizon = Horizon.of(config.train, train_loader.order.batches_per_epoch)
    progress = Progress(horizon.updates, quiet=quiet)
    progress.line(terminal.plan(config, inputs, compute, horizon, run_dir))
    if inputs.loaded is not None:
        progress.line(f"{inputs.loaded.report}\n")
    tracker = Tracker(run_dir)
    try:
        training = Loop(
            inputs.model,
            train_loader,
            eval_loader,
            config=config.train,
            eval_every_steps=config.eval.every_steps,
            seed=config.seed,
            compute=compute,
            run_dir=run_dir,
            tracker=tracker,
            progress=progress,
        ).train()
        floor = floor_perplexity(inputs, eval_loader)
        summary = _summary(config, training, compute, floor, run_dir)
        final = {
            "final/eval_loss": summary.eval_loss,
            "final/eval_perplexity": summary.eval_perplexity,
        }
        tracker.log_hyperparameters(schema.to_mapping(config), final)
    finally:
        progress.close()
        tracker.close()
    _export(config, inputs, summary, run_dir)
    progress.line(terminal.closing(summary, training))
    if _sentences(config, inputs):
        progress.line(_filled(config, inputs, fill_mask))
    progress.line(terminal.next_commands(config, inputs, run_dir))
    return summary


def _pinned(config: RunConfig, inputs: Inputs) -> RunConfig:
    """The config with commits in place of the branches of checkpoint and data set."""
    checkpoint = None if inputs.loaded is None else inputs.loaded.resolved
    return dataclasses.replace(config, checkpoint=checkpoint, data=inputs.data)


def _loaders(config: RunConfig, inputs: Inputs, pin_memory: bool) -> tuple[TrainLoader, EvalLoader]:
    vocabulary = inputs.tokenizer.vocabulary()
    examples = len(inputs.train)
    if config.debug.mode is DebugMode.OVERFIT:
        examples = min(examples, config.train.batch_size)
    order = Order(examples, config.train.batch_size, config.seed)
    train_loader = TrainLoader(
        blocks=inputs.train,
        order=order,
        updates=Horizon.of(config.train, order.batches_per_epoch).updates,
        micro_batch_size=config.train.micro_batch_size or config.train.batch_size,
        masking=config.masking,
        vocabulary=vocabulary,
        seed=config.seed,
        pin_memory=pin_memory,
    )
    eval_loader = EvalLoader(
        blocks=inputs.test,
        masking=config.masking,
        vocabulary=vocabulary,
        seed=config.eval.seed,
        batch_size=config.eval.batch_size,
        draws=config.eval.mask_draws,
        pin_memory=pin_memory,
    )
    return train_loader, eval_loader


def _summary(
    config: RunConfig, training: Training, compute: Compute, floor: float | None, run_dir: Path
) -> Summary:
    record, final = training.progress, training.final
    assert record.best_eval_loss is not None
    assert record.initial_eval_loss is not None
    return Summary(
        eval_loss=final.loss,
        eval_perplexity=final.perplexity,
        eval_loss_standard_error=final.loss_standard_error,
        eval_masked_tokens=final.masked_count,
        eval_top1_accuracy=final.top1_accuracy,
        eval_top5_accuracy=final.top5_accuracy,
        best_eval_perplexity=perplexity(record.best_eval_loss),
        initial_eval_perplexity=perplexity(record.initial_eval_loss),
        floor_perplexity=floor,
        steps=record.updates,
        tokens=record.tokens,
        seconds=training.seconds,
        tokens_per_second=record.tokens / max(training.step_seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(compute.device),
        seed=config.seed,
        git_commit=git_commit(),
        versions=versions(),
        run_dir=str(run_dir),
    )


def _export(config: RunConfig, inputs: Inputs, summary: Summary, run_dir: Path) -> None:
    """The Hub layout and its card; summary.json last, the sign of a finished run."""
    export = run_dir / "export"
    save_pretrained(inputs.model, inputs.tokenizer, export)
    # The file's name, not its path: a card is published, and the path is the user's own business.
    data = config.data
    text = data.url or data.repository or Path(data.path or inputs.text.source.description).name
    card = model_card(config, summary, text, inputs.tokenizer.mask_token)
    (export / "README.md").write_text(card, encoding="utf-8")
    summary.write(run_dir / "summary.json")


def _sentences(config: RunConfig, inputs: Inputs) -> list[str]:
    """eval.fill_mask with the tokenizer's own mask token: recipes write <mask> for any model."""
    texts = config.eval.fill_mask
    if texts is None:
        texts = SENTENCES if inputs.has_known_optimum else ()
    return [text.replace("<mask>", inputs.tokenizer.mask_token) for text in texts]


def _filled(config: RunConfig, inputs: Inputs, fill_mask: FillMask) -> str:
    """The model's completions, beside the world's own answers where they are known."""
    lines = []
    for text in _sentences(config, inputs):
        answers = fill_mask(text, top_k=3)
        rows = answers if isinstance(answers[0], list) else [answers]
        exact = []
        if inputs.has_known_optimum:
            exact = exact_answers(fill_mask.encode(text), config.masking, inputs.tokenizer)
        lines.append(terminal.completion(text, rows, exact))
    return "\n".join(lines)
