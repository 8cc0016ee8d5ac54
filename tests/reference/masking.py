"""Masking one token at a time on Python integers: the slow, obvious twin of `mask_batch`."""

from dataclasses import dataclass

from reference.philox import block_of

SELECT = 1
REPLACE = 2


@dataclass(frozen=True)
class Masked:
    """What `MaskedBatch` holds, in lists."""

    input_ids: list[list[int]]
    positions: list[int]
    labels: list[int]
    row_offsets: list[int]


def mask_batch(
    input_ids: list[list[int]],
    *,
    example_ids: list[int],
    epoch: int,
    seed: int,
    rate: float,
    mask_fraction: float,
    random_fraction: float,
    vocabulary_size: int,
    mask_id: int,
    protected_ids: tuple[int, ...],
) -> Masked:
    """Selects and hides tokens: one word a token, cut into three intervals."""
    mask_below = round(rate * mask_fraction * 2**32)
    replace_below = round(rate * min(1.0, mask_fraction + random_fraction) * 2**32)
    select_below = round(rate * 2**32)
    protected = {mask_id, *protected_ids}
    choices = [number for number in range(vocabulary_size) if number not in protected]

    out = [list(row) for row in input_ids]
    positions: list[int] = []
    labels: list[int] = []
    row_offsets = [0]
    for row, example in enumerate(example_ids):
        for position, token in enumerate(input_ids[row]):
            word = block_of(seed, SELECT, example, epoch, position // 4)[position % 4]
            if word < select_below and token not in protected:
                positions.append(row * len(input_ids[row]) + position)
                labels.append(token)
                if word < mask_below:
                    out[row][position] = mask_id
                elif word < replace_below:
                    # a block a position: its first two words are one 64-bit fraction
                    high, low, _, _ = block_of(seed, REPLACE, example, epoch, position)
                    out[row][position] = choices[(high * 2**32 + low) * len(choices) // 2**64]
        row_offsets.append(len(positions))
    return Masked(out, positions, labels, row_offsets)
