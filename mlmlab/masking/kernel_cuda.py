# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""The masking kernel on a CUDA device, in Triton: the bits of `mask_batch`, in two launches.

    B sequences   T positions   M predicted tokens   N places for them (the capacity)

One program a row, its T positions side by side in registers (as many as the next power of two).
Launch 1 selects and hides tokens and counts them; launch 2 knows the counts of all rows and notes
positions and labels. The host waits for nothing: what is returned has shapes that it knew before.

Its twins are `kernel.py` on the CPU and, for a person, `tests/reference/masking.py`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from numpy.typing import NDArray

from mlmlab.masking.config import Budget, Corrupt, MaskingPolicy, Unit, VocabularyInfo
from mlmlab.masking.units_cuda import (
    latest,
    one_before,
    philox,
    random_words,
    span_lengths,
    span_states,
    spans_within_budget,
    within_budget,
)
from mlmlab.random import EPOCHS, Domain

IGNORED_LABEL = -100
"""The label of a place that no predicted token fills: the losses of PyTorch skip it."""
_GRAIN = 64
_DEVIATIONS = 8.0
_UNIT_TOKENS = {Unit.TOKEN: 1, Unit.WORD: 16, Unit.SPAN: 64}
"""Tokens that `default_capacity` takes to be selected together."""

_SELECT, _REPLACE, _CORRUPT, _BUDGET = (
    tl.constexpr(int(domain) << 24)
    for domain in (Domain.SELECT, Domain.REPLACE, Domain.CORRUPT, Domain.BUDGET)
)
_IGNORED = tl.constexpr(IGNORED_LABEL)


class DeviceMaskedBatch(NamedTuple):
    """A batch with some of its tokens hidden, on its device; all tensors int64."""

    input_ids: torch.Tensor
    """`[B, T]`, corrupted."""
    positions: torch.Tensor
    """`[N]`, flat indices into B*T of the first N predicted tokens, ascending; behind them 0."""
    labels: torch.Tensor
    """`[N]`, the original ids at those positions; behind them `IGNORED_LABEL`."""
    row_offsets: torch.Tensor
    """`[B + 1]`, where each row's positions begin; the last is M, even if M > N."""
    ids_outside: torch.Tensor
    """`[B]`, how many ids of a row are outside the vocabulary: to be looked at when the host waits
    anyway, because the kernel cannot raise an error. Such an id is treated as a protected one."""


@triton.jit
def _replacements(positions, epoch, low, high, k0, k1, replacement_ids, choices):  # type: ignore[no-untyped-def]
    """A random id for each position, int64 `[T]`."""
    first, second, _, _ = philox(
        positions.to(tl.uint32), (epoch | _REPLACE).to(tl.uint32), low, high, k0, k1
    )
    # floor(choices * 64-bit fraction): no vocabulary is large enough to see its bias
    carry = (second.to(tl.uint64) * choices.to(tl.uint64)) >> 32
    drawn = (first.to(tl.uint64) * choices.to(tl.uint64) + carry) >> 32
    return tl.load(replacement_ids + drawn)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch", "vocabulary_size", "choices"])
def _hide(  # type: ignore[no-untyped-def]
    input_ids, word_starts, example_ids, policy, protected, replacement_ids,
    out, selected, counts, ids_outside,
    seed_low, seed_high, epoch, vocabulary_size, choices, mask_id, length,
    HAS_WORDS: tl.constexpr, IS_SPAN: tl.constexpr, IS_EXACT: tl.constexpr,  # noqa: N803
    PER_UNIT: tl.constexpr, LENGTH: tl.constexpr, KEY_BITS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Launch 1, a row a program: which tokens are predicted, and what stands in their place."""
    row = tl.program_id(0).to(tl.int64)
    positions = tl.arange(0, LENGTH)  # [T], as everything below that is not of the whole row
    inside = positions < length
    k0, k1 = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
    identity = tl.load(example_ids + row).to(tl.uint64)
    low, high = identity.to(tl.uint32), (identity >> 32).to(tl.uint32)
    tokens = tl.load(input_ids + row * length + positions, mask=inside, other=0).to(tl.int64)
    known = inside & (tokens >= 0) & (tokens < vocabulary_size)
    free = tl.load(protected + tokens, mask=known, other=1) == 0

    words = random_words((epoch | _SELECT).to(tl.uint32), low, high, k0, k1, LENGTH)
    origin = positions  # of the token's unit: whose word decides
    if HAS_WORDS:
        starts = tl.load(word_starts + row * length + positions, mask=inside, other=0).to(tl.uint8)
        opens = (one_before(free.to(tl.int32), positions) == 0) | (starts == 2)
        begins_word = opens | (starts != 0)
        origin = latest(begins_word, positions)
    select_below = tl.load(policy + 2)
    if IS_EXACT:
        budget = tl.sum(free.to(tl.int64)) * select_below
        budget_word, _, _, _ = philox(
            tl.full((), 0, tl.uint32), (epoch | _BUDGET).to(tl.uint32), low, high, k0, k1
        )
    if IS_SPAN and IS_EXACT:
        _, _, drawn, _ = philox(
            positions.to(tl.uint32), (epoch | _REPLACE).to(tl.uint32), low, high, k0, k1
        )
        chosen, origin = spans_within_budget(
            words, span_lengths(drawn, policy), origin, opens, free, positions, budget, budget_word,
            LENGTH,
        )  # fmt: skip
    elif IS_SPAN:
        states = span_states(words, begins_word, opens, free, policy)
        chosen = states > 0
        origin = latest(begins_word & (opens | (one_before(states, positions) <= 1)), positions)
    else:
        unit_words = (tl.gather(words, origin, 0) if HAS_WORDS else words).to(tl.int64)
        if IS_EXACT:
            keys = unit_words * LENGTH + origin  # of equal words, the first comes first
            chosen = within_budget(keys, free, budget, budget_word, KEY_BITS)
        else:
            chosen = free & (unit_words < select_below)

    if HAS_WORDS or IS_EXACT:
        words = random_words((epoch | _CORRUPT).to(tl.uint32), low, high, k0, k1, LENGTH)
        if PER_UNIT:
            words = tl.gather(words, origin, 0)
    masked = words.to(tl.int64) < tl.load(policy)
    replaced = words.to(tl.int64) < tl.load(policy + 1)
    drawn = _replacements(positions, epoch, low, high, k0, k1, replacement_ids, choices)
    hidden = tl.where(masked, mask_id, tl.where(replaced, drawn, tokens))
    tl.store(out + row * length + positions, tl.where(chosen, hidden, tokens), mask=inside)
    tl.store(selected + row * length + positions, chosen.to(tl.uint8), mask=inside)
    tl.store(counts + row, tl.sum(chosen.to(tl.int64)))
    tl.store(ids_outside + row, tl.sum((inside & (known == 0)).to(tl.int64)))


@triton.jit(do_not_specialize=["rows", "capacity"])
def _note(  # type: ignore[no-untyped-def]
    input_ids, selected, counts, noted_positions, labels, row_offsets,
    rows, capacity, length, LENGTH: tl.constexpr, ROWS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Launch 2, a row a program: positions and labels behind those of the rows before it."""
    row = tl.program_id(0).to(tl.int64)
    counts_before = tl.zeros([ROWS], tl.int64)
    all_counts = tl.zeros([ROWS], tl.int64)
    for first in range(0, rows, ROWS):
        others = first + tl.arange(0, ROWS)
        count = tl.load(counts + others, mask=others < rows, other=0)
        counts_before += tl.where(others < row, count, 0)
        all_counts += count
    before, total = tl.sum(counts_before), tl.sum(all_counts)
    tl.store(row_offsets + row, before)
    tl.store(row_offsets + rows, total, mask=row == rows - 1)

    positions = tl.arange(0, LENGTH)  # [T]
    inside = positions < tl.where(row < rows, length, 0)  # no rows: only places to fill
    chosen = tl.load(selected + row * length + positions, mask=inside, other=0).to(tl.int32)
    places = before + tl.cumsum(chosen, 0) - chosen
    fits = (chosen != 0) & (places < capacity)
    tokens = tl.load(input_ids + row * length + positions, mask=fits, other=0).to(tl.int64)
    tl.store(noted_positions + places, row * length + positions, mask=fits)
    tl.store(labels + places, tokens, mask=fits)

    # The places that no token fills: each program takes its turn.
    for first in range(row * LENGTH, capacity, tl.num_programs(0).to(tl.int64) * LENGTH):
        places = first + positions
        empty = (places >= total) & (places < capacity)
        tl.store(noted_positions + places, tl.zeros([LENGTH], tl.int64), mask=empty)
        tl.store(labels + places, tl.full([LENGTH], _IGNORED, tl.int64), mask=empty)


def default_capacity(size: int, config: MaskingPolicy) -> int:
    """Places for the predicted tokens of a batch of `size` tokens, a multiple of 64.

    The mean and eight standard deviations of independent units. Units are taken to be of
    `_UNIT_TOKENS` tokens, several times as many as those of a text: a unit of n tokens has n**0.5
    times the deviation of n tokens. An exact budget needs no more than independent units.
    """
    deviation = (_UNIT_TOKENS[config.unit] * size * config.rate * (1.0 - config.rate)) ** 0.5
    room = min(size, int(size * config.rate + _DEVIATIONS * deviation) + 1)
    return max(1, -(-room // _GRAIN)) * _GRAIN


@lru_cache(maxsize=64)
def _policy_table(config: MaskingPolicy, device: torch.device, stream: int) -> torch.Tensor:
    """int64 `[33]`: the thresholds, then the rows of the span tables.

    Of a stream, because another one would not wait for the upload.
    """
    table = np.concatenate([np.array(config.thresholds, np.uint64), *config.span_tables])
    return _upload(table.astype(np.int64), device)


@lru_cache(maxsize=16)
def _vocabulary_tables(
    vocabulary: VocabularyInfo, device: torch.device, stream: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 `[V]`, 1 for a protected id, and int64, the ids that a replaced token is drawn from."""
    protected = _upload(vocabulary.protected.view(np.uint8), device)
    return protected, _upload(vocabulary.replacement_ids, device)


def _upload(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy that the host does not wait for: only work on the same stream comes after it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def mask_batch_on_device(
    input_ids: torch.Tensor,
    *,
    example_ids: torch.Tensor,
    epoch: int,
    seed: int,
    config: MaskingPolicy,
    vocabulary: VocabularyInfo,
    word_starts: torch.Tensor | None = None,
    capacity: int | None = None,
) -> DeviceMaskedBatch:
    """Selects tokens to predict and hides most of them, without leaving the device.

    The same function of the same arguments as `mask_batch`, bit for bit.

    Args:
        input_ids: `[B, T]`, any integer type; copied first where its rows do not lie side by side.
        example_ids: int64 `[B]`, names of the rows.
        epoch: 0 ... 2**24 - 1; for evaluation masks, the draw.
        seed: any integer, modulo 2**64.
        word_starts: bool or integers `[B, T]`, for the units `word` and `span` only: 1 where a word
            begins, 2 where a document does.
        capacity: N, places for predicted tokens; None: `default_capacity`. What does not fit is
            hidden in `input_ids`, but missing from `positions` and `labels`.

    Raises:
        ValueError: a wrong shape or type, or a policy out of range.
    """
    _check(input_ids, example_ids, epoch, config, word_starts, capacity)
    rows, length = input_ids.shape
    device = input_ids.device
    places = default_capacity(rows * length, config) if capacity is None else capacity
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    policy = _policy_table(config, device, stream)
    protected, replacement_ids = _vocabulary_tables(vocabulary, device, stream)
    input_ids = input_ids.contiguous()
    if word_starts is not None:
        word_starts = word_starts.contiguous()
        word_starts = (
            word_starts.view(torch.uint8) if word_starts.dtype == torch.bool else word_starts
        )
    shapes = ((rows, length), (places,), (places,), (rows + 1,), (rows,), (rows,))
    *fields, counts = (torch.empty(shape, dtype=torch.int64, device=device) for shape in shapes)
    batch = DeviceMaskedBatch(*fields)
    selected = torch.empty((rows, length), dtype=torch.uint8, device=device)
    width = max(4, triton.next_power_of_2(length))
    warps = min(32, max(1, width // 128))  # a Philox block, so four positions, a thread
    with torch.cuda.device_of(input_ids):
        if rows:
            _hide[(rows,)](
                input_ids, word_starts, example_ids.contiguous(), policy, protected,
                replacement_ids, batch.input_ids, selected, counts, batch.ids_outside,
                _signed(seed), _signed(seed >> 32), epoch, vocabulary.size, len(replacement_ids),
                vocabulary.mask_id, length,
                HAS_WORDS=config.unit is not Unit.TOKEN,
                IS_SPAN=config.unit is Unit.SPAN,
                IS_EXACT=config.budget is Budget.EXACT,
                PER_UNIT=config.corrupt is Corrupt.UNIT,
                LENGTH=width,
                KEY_BITS=32 + width.bit_length() - 1,
                num_warps=warps,
            )  # fmt: skip
        _note[(max(1, rows),)](
            input_ids, selected, counts, batch.positions, batch.labels, batch.row_offsets,
            rows, places, length, LENGTH=width, ROWS=1024, num_warps=max(4, warps),
        )  # fmt: skip
    return batch


def _signed(word: int) -> int:
    """The low 32 bits as a signed number: Triton compiles once for all of them."""
    return ((word + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _check(
    input_ids: torch.Tensor,
    example_ids: torch.Tensor,
    epoch: int,
    config: MaskingPolicy,
    word_starts: torch.Tensor | None,
    capacity: int | None,
) -> None:
    if input_ids.ndim != 2 or not _is_integer(input_ids):
        raise ValueError(
            f"input_ids: integers [B, T], not {input_ids.dtype} {list(input_ids.shape)}"
        )
    if example_ids.shape != input_ids.shape[:1] or not _is_integer(example_ids):
        raise ValueError(
            f"example_ids: integers [{len(input_ids)}], not {example_ids.dtype} "
            f"{list(example_ids.shape)}"
        )
    if not 0 <= epoch < EPOCHS:
        raise ValueError(f"epoch: 0 to {EPOCHS - 1}, not {epoch}")
    if capacity is not None and capacity < 0:
        raise ValueError(f"capacity: places for predicted tokens, not {capacity}")
    if config.problem_text:
        raise ValueError(config.problem_text)
    if (word_starts is not None) != (config.unit is not Unit.TOKEN):
        needs = "needs them" if word_starts is None else "selects single tokens and uses none"
        raise ValueError(f"word_starts: unit `{config.unit.value}` {needs}")
    if word_starts is not None and (
        word_starts.shape != input_ids.shape
        or not (word_starts.dtype == torch.bool or _is_integer(word_starts))
    ):
        raise ValueError(
            f"word_starts: bool or integers {list(input_ids.shape)}, not {word_starts.dtype} "
            f"{list(word_starts.shape)}"
        )


def _is_integer(tensor: torch.Tensor) -> bool:
    kinds = (tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool)
    return not any(kinds)
