"""What a run says to a person: its plan, its result, and what to try next, in 80 columns."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlmlab.config import RunConfig
from mlmlab.inputs import Inputs
from mlmlab.tracking.progress import shown
from mlmlab.tracking.summary import Summary
from mlmlab.training.evaluation import perplexity
from mlmlab.training.loop import Horizon, Training
from mlmlab.training.precision import Compute

_LABEL_WIDTH = 11
_WIDTH = 79


def _row(label: str, text: str) -> str:
    wrapped = textwrap.wrap(
        text, _WIDTH - _LABEL_WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return f"{label:<{_LABEL_WIDTH}}" + f"\n{'':<{_LABEL_WIDTH}}".join(wrapped)


def plan(
    config: RunConfig, inputs: Inputs, compute: Compute, horizon: Horizon, run_dir: Path
) -> str:
    """What is about to happen: text, blocks, model, updates, device, folder."""
    model, train = inputs.model.config, config.train
    corpus = inputs.corpus
    documents = len(corpus.train.lengths) + len(corpus.test.lengths)
    tokens = len(corpus.train.tokens) + len(corpus.test.tokens)
    empty = f", {corpus.empty_documents:,} empty left out" if corpus.empty_documents else ""
    origin = "tokenized before" if corpus.was_cached else "tokenized now"
    accumulation = ""
    if train.micro_batch_size is not None and train.micro_batch_size < train.batch_size:
        accumulation = f" ({-(-train.batch_size // train.micro_batch_size)} micro-batches)"
    warmup = f", {train.warmup_steps:,} warm-up" if train.warmup_steps else ""
    if train.warmup_steps >= horizon.updates:
        warmup += " (as long as the run: the rate never falls)"
    rows = [
        _row("text", f"{inputs.source.description}: {documents:,} documents{empty}, "
             f"{tokens:,} tokens, {origin}"),
        _row("train", _blocks(len(corpus.train.lengths), len(corpus.train.tokens), inputs.train)),
        _row("test", _blocks(len(corpus.test.lengths), len(corpus.test.tokens), inputs.test)),
        _row("model", f"{model.family.value}, {model.layers} layers of {model.hidden_size}, "
             f"{model.heads} heads, vocabulary {model.vocabulary_size:,}: "
             f"{inputs.model.parameter_count() / 1e6:.2f} M parameters"),
        _row("masking", f"{100 * config.masking.rate:g} % of the tokens, "
             f"{config.masking.mode.value}"),
        _row("updates", f"{horizon.updates:,} of {train.batch_size} sequences{accumulation}, "
             f"learning rate {train.learning_rate:g} {train.schedule.value}{warmup}"),
        _row("compute", str(compute)),
        _row("folder", str(run_dir)),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


def _blocks(documents: int, tokens: int, blocks: Any) -> str:
    return (
        f"{documents:,} documents, {tokens:,} tokens = {len(blocks):,} blocks of "
        f"{blocks.block_size} + {blocks.dropped_tokens:,} dropped"
    )


def closing(summary: Summary, training: Training) -> str:
    """The result, and how far it is from the best possible one."""
    error = training.final.perplexity_standard_error
    last = perplexity(training.train_loss)
    rows = [
        "",
        _row("training", f"perplexity {shown(last)} on the last training batches"),
        _row(
            "result",
            f"perplexity {shown(summary.eval_perplexity)} ± {shown(error)} "
            f"on {summary.eval_masked_tokens:,} masked test tokens "
            f"(before training: {shown(summary.initial_eval_perplexity)})",
        ),
    ]
    if summary.floor_perplexity is not None:
        above = summary.eval_perplexity / summary.floor_perplexity - 1
        rows.append(
            _row(
                "floor",
                f"perplexity {shown(summary.floor_perplexity)}: the exact lowest that any model "
                f"can reach on these tokens; this one is {above:.1%} above it",
            )
        )
    rows.append(
        _row(
            "speed",
            f"{summary.tokens_per_second:,.0f} tokens/s, {summary.steps:,} updates, "
            f"{summary.seconds:.0f} s, peak memory {summary.peak_memory_bytes / 2**30:.2f} GiB",
        )
    )
    return "\n".join(rows) + "\n"


def completion(
    text: str, masks: Sequence[Sequence[dict[str, Any]]], exact: Sequence[tuple[str, float]]
) -> str:
    """A text and, for each of its masks, the best tokens with their probabilities."""
    lines = [_row("fill mask", text)]
    for number, answers in enumerate(masks):
        best = "  ".join(f"{a['token_str'].strip()} {a['score']:.2f}" for a in answers)
        truth = ""
        if exact:
            word, chance = exact[number]
            truth = f"   (exact: {word} {chance:.2f})"
        lines.append(f"{'':<{_LABEL_WIDTH}}-> {best}{truth}")
    return "\n".join(lines)


def next_commands(config: RunConfig, inputs: Inputs, run_dir: Path) -> str:
    """Where everything is, and what one might type next."""
    checkpoints = ", checkpoints/" if config.train.keep_checkpoints else ""
    logs = run_dir if config.run_dir is not None else run_dir.parent
    rows = [
        "",
        _row("written", f"{run_dir}: config.yaml, metrics.jsonl, summary.json, export/ (opens with "
             f"transformers){checkpoints}"),
        f"{'curves':<{_LABEL_WIDTH}}tensorboard --logdir {logs}",
    ]  # fmt: skip
    if inputs.is_world:
        rows += [
            f"{'next':<{_LABEL_WIDTH}}python -m mlmlab.fill_mask --checkpoint {run_dir} \\",
            f'{"":<{_LABEL_WIDTH}}    "the day after <mask> is friday ."',
            f"{'':<{_LABEL_WIDTH}}python -m mlmlab.train model.layers=4 seed=1",
            f"{'':<{_LABEL_WIDTH}}python -m mlmlab.train +experiment=finetune \\",
            f"{'':<{_LABEL_WIDTH}}    checkpoint=distilbert/distilroberta-base \\",
            f"{'':<{_LABEL_WIDTH}}    data.source=file data.path=my.txt",
        ]
    return "\n".join(rows)
