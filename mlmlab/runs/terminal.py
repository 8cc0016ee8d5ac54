"""What a run says to a person: its plan, its result, and what to try next, in 80 columns."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlmlab.config import EvaluateConfig, RunConfig
from mlmlab.data.blocks import Blocks
from mlmlab.data.config import Layout
from mlmlab.data.loader import CHUNK_TOKENS, StepBatch
from mlmlab.evaluation.config import Split
from mlmlab.evaluation.masked_perplexity import PIECE_TOKENS, Evaluation, perplexity
from mlmlab.evaluation.small_world_floor import Floor
from mlmlab.masking import UNITS, Budget, MaskingConfig, MaskingPolicy, RateSchedule
from mlmlab.model import MaskedLanguageModel
from mlmlab.runs.folder import is_harmless
from mlmlab.runs.resume import Start
from mlmlab.runs.setup import EvaluationInputs, Inputs, Text
from mlmlab.runtime.config import Parallel
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import Ranks
from mlmlab.tracking.config import TENSORBOARD
from mlmlab.tracking.progress_bar import in_notebook, shown
from mlmlab.tracking.style import Style, styled
from mlmlab.tracking.summary import Summary
from mlmlab.training.config import TrainConfig
from mlmlab.training.loop import Training
from mlmlab.training.memory import expected_memory_bytes
from mlmlab.training.optimizer import account
from mlmlab.training.schedule import Horizon

_SHORT_DOCUMENT_TOKENS = 20
_LABEL_WIDTH = 11
_WIDTH = 79


def _row(label: str, text: str) -> str:
    wrapped = textwrap.wrap(
        text, _WIDTH - _LABEL_WIDTH, break_long_words=False, break_on_hyphens=False
    )
    return _verbatim(label, *wrapped)


def _verbatim(label: str, *lines: str) -> str:
    """A label and lines that are not wrapped: commands are there to be copied."""
    margin = f"{'':<{_LABEL_WIDTH}}"
    first = styled(f"{label:<{_LABEL_WIDTH}}", Style.LABEL) if label else margin
    return first + f"\n{margin}".join(lines)


def plan(
    config: RunConfig,
    inputs: Inputs,
    compute: Compute,
    ranks: Ranks,
    horizon: Horizon,
    run_dir: Path,
) -> str:
    """What is about to happen: text, examples, model, steps, device, memory, folder."""
    train = config.train
    rows = [_text("text", inputs.text), *_short_lines(inputs.text, config.data.layout)]
    if inputs.test_text is not inputs.text:
        rows.append(_text("test text", inputs.test_text))
    accumulation = ""
    if (micro_batches := -(-_share(config, ranks) // _micro_batch_size(config, ranks))) > 1:
        accumulation = f" ({micro_batches} micro-batches)"
    warmup_steps = train.warmup(horizon.total_steps)
    warmup = f", {warmup_steps:,} warm-up" if warmup_steps else ""
    if warmup_steps >= horizon.total_steps:
        warmup += " (as long as the run: the rate never falls)"
    isolated = ", documents isolated" if config.data.isolate_documents else ""
    rows += [
        _row("train", _examples(inputs.train) + isolated),
        _row("test", _examples(inputs.test)),
        _row("model", _model(inputs.model)),
        *_trained(inputs.model, train),
        _row("masking", _train_masking(config.masking)),
        _row("scored", masking_policy(config.eval.masking)),
        _row("steps", f"{horizon.total_steps:,} of {train.batch_size} examples{accumulation}, "
             f"learning rate {train.learning_rate:g} {train.schedule}{warmup}"),
        *_slow_head(inputs, train),
        _row("compute", _compute(compute, ranks, config.runtime.parallel)),
        _row("memory", _memory(config, inputs, compute, ranks)),
        _row("folder", str(run_dir)),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


_RATE_OF_A_NEW_HEAD = 1e-4


def _slow_head(inputs: Inputs, train: TrainConfig) -> list[str]:
    """A new head with the rate of a trained one."""
    is_new = inputs.loaded is not None and inputs.loaded.report.fresh
    if not is_new or train.learning_rate >= _RATE_OF_A_NEW_HEAD:
        return []
    text = (
        f"the head is new, and {train.learning_rate:g} hardly moves it: "
        "train.learning_rate=5e-4 train.warmup_fraction=0.06 is a start"
    )
    return [_row("", text)]


def resumption(start: Start) -> str:
    """Where a run is resumed, and what has changed."""
    if start.state is None:
        text = "no complete checkpoint yet: the run starts again"
    else:
        text = f"from step {start.record.steps:,} ({start.state})"
    rows = [_row("resume", text)]
    if start.changes:
        text = ", ".join(start.changes)
        if not all(is_harmless(change.partition("=")[0]) for change in start.changes):
            text += ": the result is not that of the run without a stop"
        rows.append(_row("changed", text))
    return "\n".join(rows) + "\n"


def replay(
    batch: StepBatch,
    loss: float,
    grad_norm: float,
    examples: Sequence[int],
    first_module: Sequence[str],
    broken: Sequence[str],
) -> str:
    """What a step came to, and where it first went wrong."""
    shown_examples = " ".join(map(str, examples[:16])) + (" ..." if len(examples) > 16 else "")
    rows = [
        _row("batch", f"{batch.number:,} of epoch {batch.epoch}: {len(examples)} examples, "
             f"{batch.masked_count:,} predicted tokens"),
        _row("examples", shown_examples),
        _row("loss", f"{loss:g}"),
        _row("gradient", f"norm {grad_norm:g}"),
        _row("forward", f"{first_module[0]} is the first module whose output is not finite"
             if first_module else "every module's output is finite"),
        _row("backward", f"not finite in {len(broken)} parameters, {broken[0]} the first of them"
             if broken else "every parameter's gradient is finite"),
    ]  # fmt: skip
    return "\n".join(rows)


def evaluation_plan(
    config: EvaluateConfig, inputs: EvaluationInputs, compute: Compute, ranks: Ranks
) -> str:
    """What is about to be scored."""
    assert inputs.loaded is not None
    draws, policy = config.eval.mask_draws, masking_policy(config.eval.masking)
    which = "the test documents" if config.eval.split is Split.TEST else "all documents"
    rows = [
        _row("checkpoint", inputs.loaded.resolved),
        _row("model", _model(inputs.model)),
        _text("text", inputs.text),
        _row("scored", f"{which}: {_examples(inputs.test)}"),
        _row("masking", policy + (f", {draws} draws" if draws > 1 else "")),
        _row("compute", _compute(compute, ranks)),
    ]  # fmt: skip
    return "\n".join(rows) + "\n"


def _compute(compute: Compute, ranks: Ranks, parallel: Parallel = Parallel.DDP) -> str:
    """Where, in how many processes, and whether each of them has all of the model."""
    is_sharded = parallel is Parallel.FSDP
    where = str(compute)
    if compute.is_emulated:
        where += " (very slow on this CPU; runtime.precision=auto is fast)"
    if ranks.size == 1:
        nothing = "; one process: runtime.parallel=fsdp has nothing to shard"
        return f"{where}{nothing if is_sharded else ''}"
    how = ", the model sharded over them (fsdp)" if is_sharded else ""
    return f"{where}, {ranks.size} processes{how}"


def masking_policy(masking: MaskingPolicy) -> str:
    """Which tokens are predicted."""
    if masking.unit not in UNITS:  # how many tokens it selects is its own business
        options = ", ".join(f"{name}={value}" for name, value in masking.options.items())
        return f"{masking.unit}({options}), rate {100 * masking.rate:g}%"
    text = f"{100 * masking.rate:g}% of the tokens"
    if masking.unit != "token":
        text += f", {masking.unit}s"
    if masking.budget is Budget.EXACT:
        text += ", exact budget"
    return text


def _train_masking(masking: MaskingConfig) -> str:
    text = masking_policy(masking)
    if masking.schedule is RateSchedule.STEPS:
        text += f"; {' '.join(masking.rate_steps)}"
    elif masking.start_rate is not None:
        text += f", from {100 * masking.start_rate:g}% ({masking.schedule.value})"
    return f"{text}, {masking.mode.value}"


def _text(label: str, text: Text) -> str:
    corpus = text.corpus
    documents = corpus.train.documents + corpus.test.documents
    tokens = corpus.train.token_count + corpus.test.token_count
    empty = f", {corpus.empty_documents:,} empty left out" if corpus.empty_documents else ""
    origin = "tokenized before" if corpus.was_cached else "tokenized now"
    row = _row(
        label,
        f"{text.source.description}: {documents:,} documents{empty}, {tokens:,} tokens, {origin}",
    )
    if corpus.bad_rows:
        row += "\n" + _row(
            "bad rows", f"{corpus.bad_rows:,} left out; the first is {corpus.first_bad_row}"
        )
    return row


def _short_lines(text: Text, layout: Layout) -> list[str]:
    """A warning where a .txt of running text may have been cut into its lines."""
    median = text.corpus.median_document_tokens
    is_joined = layout is Layout.PACKED and text.source.has_line_documents
    if not is_joined or not 0 < median < _SHORT_DOCUMENT_TOKENS:
        return []
    return [
        _row(
            "warning",
            f"half of the documents have {median:g} tokens or fewer, because each line of a .txt "
            "file is one: data.document=paragraph (or file) keeps running text together",
        )
    ]


def _examples(blocks: Blocks) -> str:
    shard = blocks.shard
    return f"{shard.documents:,} documents, {shard.token_count:,} tokens = {blocks.account()}"


def _model(model: MaskedLanguageModel) -> str:
    config = model.config
    layers = f"{config.layers} layer{'s' if config.layers > 1 else ''} of {config.hidden_size}"
    heads = f"{config.heads} head{'s' if config.heads > 1 else ''}"
    size = f"{model.parameter_count() / 1e6:.2f} M parameters"
    return (
        f"{config.family.value}, {layers}, {heads}, vocabulary {config.vocabulary_size:,}: {size}"
    )


def _trained(model: MaskedLanguageModel, train: TrainConfig) -> list[str]:
    """A table of what trains; nothing where all of the model does."""
    if not train.freeze and train.layer_decay == 1.0:
        return []
    rows = account(model, train.layer_decay)
    table = []
    for number, row in enumerate(rows):
        state = f"learning rate x {row.rate_factor:.3g}" if row.trained else "frozen"
        if 0 < row.trained < row.parameters:
            state += f" for {row.trained:,}"
        label = "" if number else "trained"
        table.append(_verbatim(label, f"{row.name:<14} {row.parameters:>13,}  {state}"))
    tied = "the decoder's weight is the token table, which "
    if model.embeddings.token.weight.requires_grad:
        tied += "trains"
    else:
        bias = "only decoder_bias" if model.head.decoder_bias.requires_grad else "nothing"
        tied += f"is frozen: of the decoder, {bias} trains"
    count = sum(row.trained for row in rows)
    return [*table, _row("", f"{count:,} of {model.parameter_count():,} parameters train; {tied}")]


def _share(config: RunConfig, ranks: Ranks) -> int:
    """Examples of a step on rank 0, which has most of them."""
    return -(-config.train.batch_size // ranks.size)


def _micro_batch_size(config: RunConfig, ranks: Ranks) -> int:
    """Examples per forward pass."""
    share = _share(config, ranks)
    return min(config.train.micro_batch_size or share, share)


def _memory(config: RunConfig, inputs: Inputs, compute: Compute, ranks: Ranks) -> str:
    """The larger one of a step and an evaluation."""
    examples, length = _micro_batch_size(config, ranks), config.data.block_size
    at_a_time = CHUNK_TOKENS if compute.is_cuda else PIECE_TOKENS
    chunk = min(max(1, at_a_time // length), len(inputs.test))
    shards = ranks.size if config.runtime.parallel is Parallel.FSDP else 1
    step = expected_memory_bytes(
        inputs.model,
        compute,
        examples=examples,
        length=length,
        masked_tokens=round(examples * length * config.masking.highest_rate),
        accumulates=examples < _share(config, ranks),
        shards=shards,
    )
    evaluation = expected_memory_bytes(
        inputs.model,
        compute,
        examples=chunk,
        length=length,
        masked_tokens=round(chunk * length * config.eval.masking.rate),
        shards=shards,
        trains=False,
    )
    needed = max(step, evaluation)
    text = f"about {needed / 2**30:.2f} GiB of tensors"
    if not compute.is_cuda:
        return text + ", in addition to the process itself"
    there = torch.cuda.get_device_properties(compute.device).total_memory
    text += f" of the device's {there / 2**30:.0f} GiB"
    if step > there:
        text += ": too much; train.micro_batch_size=N computes N examples at a time"
    return text


def host_check(optimizer: str) -> str:
    """What a run says whose optimizer has no kernel that leaves out a non-finite step."""
    return _row(
        "optimizer",
        f"{optimizer}: the host checks the gradient of every step before it is applied, because "
        "this optimizer does not (PyTorch's fused AdamW does, on the device)",
    )


def closing(summary: Summary, training: Training) -> str:
    """The result, and how far it is from the best possible one."""
    error = training.final.perplexity_standard_error
    last = math.nan if training.record.train_loss is None else training.record.train_loss
    rows = [
        "",
        *([_row("stopped", "early: the evaluations got no better")] if training.early else []),
        _row("training", f"perplexity {shown(perplexity(last))} on the last training batches"),
        _row(
            "result",
            f"perplexity {_with_error(summary.eval_perplexity, error)} "
            f"on {summary.eval_masked_tokens:,} masked test tokens "
            f"(before training: {shown(summary.initial_eval_perplexity)})",
        ),
    ]
    rows += _own_figures(summary.own_figures)
    best = Path(summary.run_dir) / "checkpoints" / f"step_{training.record.best_step}"
    if summary.exported_step != summary.steps:
        rows.append(_row("exported", f"the weights of step {summary.exported_step:,}, the best"))
    elif training.record.best_step != summary.steps and best.is_dir():
        value = ""
        if summary.monitor in summary.own_figures:
            value = f"{summary.monitor.removeprefix('eval/')} {summary.best_value:.4g}, "
        value += f"perplexity {shown(summary.best_eval_perplexity)}"
        rows.append(_row("best", f"{value}: {best}"))
    if summary.floor_perplexity is not None:
        rows.append(_floor(summary.eval_perplexity, summary.floor_perplexity))
    of_what = "GPU memory" if summary.gpu else "memory of the process"
    steps = f"{summary.steps:,} step{'s' if summary.steps != 1 else ''}"
    speed = f"{summary.tokens_per_second:,.0f} tokens/s, {steps}, "
    speed += f"{summary.seconds:.0f} s"
    if summary.peak_memory_bytes is not None:
        speed += f", peak {of_what} {summary.peak_memory_bytes / 2**30:.2f} GiB"
    rows.append(_row("speed", speed))
    return "\n".join(rows)


def job_result(summary: Summary) -> str:
    """The result of a job of a sweep, in a few words."""
    error = summary.eval_perplexity * summary.eval_loss_standard_error
    text = f"perplexity {_with_error(summary.eval_perplexity, error)}"
    if summary.monitor in summary.own_figures:
        text += f", {summary.monitor.removeprefix('eval/')} {summary.figures[summary.monitor]:.4g}"
    return text


def _own_figures(figures: Mapping[str, float]) -> list[str]:
    shown_figures = (f"{tag.removeprefix('eval/')} {x:.4g}" for tag, x in figures.items())
    return [_row("evaluators", ", ".join(shown_figures))] if figures else []


def scores(evaluation: Evaluation, floor: Floor | None, own_figures: Mapping[str, float]) -> str:
    """An evaluation, and how it differs by what stood in the predicted tokens' places.

    Args:
        own_figures: those of the user's own evaluators, by tag.
    """
    result = _with_error(evaluation.perplexity, evaluation.perplexity_standard_error)
    rows = [
        _row("result", f"perplexity {result}, loss "
             f"{_with_error(evaluation.loss, evaluation.loss_standard_error)} nats per token"),
    ]  # fmt: skip
    if floor is not None:
        rows.append(_floor(evaluation.perplexity, floor.perplexity))
    rows += _own_figures(own_figures)
    rows.append(
        _row(
            "certainty",
            f"± is one standard error, from the spread between {evaluation.documents:,} documents"
            if not math.isnan(evaluation.loss_standard_error)
            else "no standard error: it takes at least two documents",
        )
    )
    floors = {"all": floor.perplexity, **floor.parts} if floor else {}
    header = f"{'tokens':>12} {'perplexity':>12} {'top 1':>8} {'top 5':>8}"
    rows += ["", _verbatim("", header + (f" {'floor':>12}" if floors else ""))]
    for name, score in (("all", evaluation), *evaluation.parts.items()):
        columns = f"{'-':>12} {'-':>8} {'-':>8}"
        if score.masked_count:
            columns = f"{shown(score.perplexity):>12}"
            columns += f" {score.top1_accuracy:>8.1%} {score.top5_accuracy:>8.1%}"
        if name in floors:
            columns += f" {shown(floors[name]):>12}"
        rows.append(_verbatim(name, f"{score.masked_count:>12,} {columns}"))
    return "\n".join(rows) + "\n"


def _with_error(value: float, error: float) -> str:
    return shown(value) if math.isnan(error) else f"{shown(value)} ± {shown(error)}"


def _floor(perplexity: float, floor: float) -> str:
    ratio = perplexity / floor
    place = f"{100 * (ratio - 1):.1f}% above it" if ratio < 2 else f"{shown(ratio)} times as high"
    return _row(
        "floor",
        f"perplexity {shown(floor)}: the exact lowest that any model can reach on these tokens; "
        f"this one is {place}",
    )


def answers(
    masks: Sequence[Sequence[dict[str, Any]]], exact: Sequence[tuple[str, float]]
) -> list[str]:
    """For each mask of a text, the best tokens with their probabilities."""
    lines = []
    for number, completions in enumerate(masks):
        best = "  ".join(f"{c['token_str'].strip()} {c['score']:.2f}" for c in completions)
        truth = ""
        if exact:
            word, chance = exact[number]
            truth = f"   (exact: {word} {chance:.2f})"
        lines.append(f"{best}{truth}")
    return lines


def completion(text: str, answers: Sequence[str]) -> str:
    """A text and the answers for its masks."""
    indented = (f"{'':<{_LABEL_WIDTH}}-> {answer}" for answer in answers)
    return "\n".join([_row("fill mask", text), *indented])


def next_steps(config: RunConfig, inputs: Inputs, run_dir: Path) -> str:
    """Where everything is, and what one might type next: in a notebook Python, else commands."""
    checkpoints = ", checkpoints/" if config.train.keep_checkpoints else ""
    profile = ", profile/trace.json" if config.debug.profile_steps else ""
    logs = run_dir if config.run_dir is not None else run_dir.parent
    has_events = TENSORBOARD in config.tracking.sinks
    mask = inputs.tokenizer.mask_token
    text = f"the day after {mask} is friday ." if inputs.has_known_floor else f"A text with {mask}."
    written = _row(
        "written",
        f"{run_dir}: config.yaml, metrics.jsonl, summary.json, export/ (opens with "
        f"transformers){checkpoints}{profile}",
    )
    if in_notebook():
        call = f'mlmlab.FillMask(result.model, result.tokenizer)("{text}")'
        return f"\n{written}\n{_verbatim('next', call)}"
    rows = [
        "",
        written,
        *([_verbatim("curves", f"tensorboard --logdir {logs}")] if has_events else []),
        _verbatim(
            "next",
            f"python -m mlmlab.fill_mask --checkpoint {run_dir} \\",
            f'    "{text}"',
            f"python -m mlmlab.evaluate checkpoint={run_dir} \\",
            "    eval.mask_draws=4",
        ),
    ]  # fmt: skip
    if inputs.has_known_floor:
        rows.append(
            _verbatim(
                "",
                "python -m mlmlab.train model.layers=4 seed=1",
                "python -m mlmlab.train +experiment=finetune \\",
                "    checkpoint=distilbert/distilroberta-base data.path=my.txt",
            )
        )
    return "\n".join(rows)
