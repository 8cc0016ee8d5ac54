"""run(config) -> Summary: what `python -m mlmlab.train` does, for notebooks and tests."""

import dataclasses
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from mlmlab import schema, terminal
from mlmlab.checkpoints import save_pretrained
from mlmlab.config import DebugMode, RunConfig
from mlmlab.data.order import Order
from mlmlab.data.world import TokenChain, small_world
from mlmlab.errors import UserError
from mlmlab.filling import FillMask
from mlmlab.inputs import Inputs, gather
from mlmlab.loader import EvalLoader, TrainLoader
from mlmlab.masking.floor import exact_floor, token_posteriors
from mlmlab.model_card import model_card
from mlmlab.tracking.progress import Progress
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
    _check_run_dir(config)  # now, not after an hour of tokenizing
    inputs = _gather(config, quiet)
    config = _pinned(config, inputs)
    train_loader, eval_loader = _loaders(config, inputs, pin_memory=compute.device.type == "cuda")
    fill_mask = FillMask(inputs.model, inputs.tokenizer)
    for text in _sentences(config, inputs):
        fill_mask.encode(text)  # refuses a text without a mask now, not after the training
    horizon = Horizon.of(config.train, train_loader.order.batches_per_epoch)
    run_dir = _make_run_dir(config)
    _write_config(config, run_dir)
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
        floor = _floor_perplexity(inputs, eval_loader)
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
    if config.eval.fill_mask:
        progress.line(_filled(config, inputs, fill_mask))
    progress.line(terminal.next_commands(config, inputs, run_dir))
    return summary


def _gather(config: RunConfig, quiet: bool) -> Inputs:
    with tqdm(
        desc="tokenize", unit=" documents", unit_scale=True, ncols=79, leave=False,
        disable=True if quiet else None,
    ) as bar:  # fmt: skip

        def show(documents: int, tokens: int) -> None:
            bar.update(documents - bar.n)
            bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)

        return gather(config, show)


def _pinned(config: RunConfig, inputs: Inputs) -> RunConfig:
    """The config with the checkpoint's commit in place of its branch."""
    if inputs.loaded is None:
        return config
    return dataclasses.replace(config, checkpoint=inputs.loaded.resolved)


def _loaders(config: RunConfig, inputs: Inputs, pin_memory: bool) -> tuple[TrainLoader, EvalLoader]:
    vocabulary = inputs.tokenizer.vocabulary()
    examples = len(inputs.train)
    if config.debug.mode is DebugMode.OVERFIT:
        examples = min(examples, config.train.batch_size)
    train_loader = TrainLoader(
        blocks=inputs.train,
        order=Order(examples, config.train.batch_size, config.seed),
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
        pin_memory=pin_memory,
    )
    return train_loader, eval_loader


def _check_run_dir(config: RunConfig) -> None:
    """Refuses a folder that holds something already."""
    if config.run_dir is None:
        return
    folder = Path(config.run_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError.of(
            "run_dir",
            found=f"{folder}, which is there already and not empty",
            expected="a new or empty folder: a run never writes over another",
            remedy="run_dir=ANOTHER_FOLDER, or run_dir=null for one named by the time",
        )


def _make_run_dir(config: RunConfig) -> Path:
    """Creates the run's folder: its own name, or a time that no other run has taken."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    parent = Path("runs") / config.name
    names = [stamp, *(f"{stamp}-{attempt}" for attempt in range(2, 1000))]
    try:
        if config.run_dir is not None:
            folder = Path(config.run_dir)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            with suppress(FileExistsError):
                (parent / name).mkdir()
                return parent / name
    except OSError as error:
        raise UserError.of(
            "run_dir" if config.run_dir is not None else "name",
            found=f"{config.run_dir or parent}: {error.strerror}",
            expected="a folder that can be created",
            remedy="run_dir=FOLDER",
        ) from error
    raise AssertionError("a thousand runs within one second")


def _write_config(config: RunConfig, run_dir: Path) -> None:
    text = OmegaConf.to_yaml(OmegaConf.create(schema.to_mapping(config)))
    (run_dir / "config.yaml").write_text(text, encoding="utf-8")


def _world_chain(inputs: Inputs) -> TokenChain:
    world, tokenizer = small_world(), inputs.tokenizer
    ids = tokenizer.backend.get_vocab()
    return world.token_chain(
        {word: ids[word] for word in world.words},
        tokenizer.vocabulary_size,
        ids[tokenizer.roles["cls_token"]],
        ids[tokenizer.roles["sep_token"]],
    )


def _floor_perplexity(inputs: Inputs, loader: EvalLoader) -> float | None:
    """The exact lowest perplexity on the evaluation's own blocks and masks; None if not known."""
    if not inputs.is_world:
        return None
    chain = _world_chain(inputs)
    loss_sum, count = 0.0, 0
    for chunk in loader.chunks():
        chunk_sum, chunk_count = exact_floor(
            chain,
            chunk.input_ids.numpy(),
            chunk.positions.numpy(),
            chunk.labels.numpy(),
            loader.masking,
            loader.vocabulary,
        )
        loss_sum, count = loss_sum + chunk_sum, count + chunk_count
    return perplexity(loss_sum / count) if count else None


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
    text = config.data.url or Path(config.data.path or inputs.source.description).name
    card = model_card(config, summary, text, inputs.tokenizer.mask_token)
    (export / "README.md").write_text(card, encoding="utf-8")
    summary.write(run_dir / "summary.json")


def _sentences(config: RunConfig, inputs: Inputs) -> list[str]:
    """eval.fill_mask with the tokenizer's own mask token: recipes write <mask> for any model."""
    token = inputs.tokenizer.mask_token
    return [text.replace("<mask>", token) for text in config.eval.fill_mask]


def _filled(config: RunConfig, inputs: Inputs, fill_mask: FillMask) -> str:
    """The model's completions, beside the world's own answers where they are known."""
    lines = []
    for text in _sentences(config, inputs):
        answers = fill_mask(text, top_k=3)
        rows = answers if isinstance(answers[0], list) else [answers]
        exact = _exact_answers(fill_mask.encode(text), config, inputs) if inputs.is_world else []
        lines.append(terminal.completion(text, rows, exact))
    return "\n".join(lines)


def _exact_answers(ids: list[int], config: RunConfig, inputs: Inputs) -> list[tuple[str, float]]:
    """For each mask the word that the world most likely put there, and its exact probability."""
    tokenizer = inputs.tokenizer
    places = np.flatnonzero(np.array(ids) == tokenizer.mask_id)
    try:
        posterior = token_posteriors(
            _world_chain(inputs), np.array([ids]), places, config.masking, tokenizer.vocabulary()
        )
    except ValueError:  # a sentence that the world never says has no true answer
        return []
    return [(tokenizer.decode([int(row.argmax())]), float(row.max())) for row in posterior]
