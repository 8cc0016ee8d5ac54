"""The slow readable twin of `mlmlab.evaluation.floor`: sums over everything that can happen.

Hidden paths, original texts, selections and corruptions are enumerated one by one and their
chances added up in a table of the joint distribution. No recursion, no channel matrix.
"""

from itertools import pairwise, product
from math import prod

import numpy as np
from numpy.typing import NDArray

from mlmlab.masking import MaskingConfig, VocabularyInfo


def joint_table(
    start: NDArray[np.float64],
    transition: NDArray[np.float64],
    emission: NDArray[np.float64],
    length: int,
    config: MaskingConfig,
    vocabulary: VocabularyInfo,
) -> dict[tuple[int, ...], NDArray[np.float64]]:
    """The joint distribution of corrupted blocks, selections and original ids.

    Returns:
        For each corrupted block, float64 `[length, V]`: the chance that this block is seen, that
        this position was selected and that this id stood there.
    """
    table: dict[tuple[int, ...], NDArray[np.float64]] = {}
    written = np.flatnonzero(emission.any(axis=0)).tolist()
    for text in product(written, repeat=length):
        text_chance = _text_chance(text, start, transition, emission)
        for outcome in product(*(_outcomes(token, config, vocabulary) for token in text)):
            seen = tuple(shown for shown, _, _ in outcome)
            chance = text_chance * prod(p for _, _, p in outcome)
            entry = table.setdefault(seen, np.zeros((length, vocabulary.size)))
            for position, (_, selected, _) in enumerate(outcome):
                if selected:
                    entry[position, text[position]] += chance
    return table


def _text_chance(
    text: tuple[int, ...],
    start: NDArray[np.float64],
    transition: NDArray[np.float64],
    emission: NDArray[np.float64],
) -> float:
    """The chance of a text, summed over the hidden paths that could have written it."""
    total = 0.0
    for path in product(range(len(start)), repeat=len(text)):
        chance = start[path[0]]
        for before, after in pairwise(path):
            chance *= transition[before, after]
        for state, token in zip(path, text, strict=True):
            chance *= emission[state, token]
        total += chance
    return float(total)


def _outcomes(
    token: int, config: MaskingConfig, vocabulary: VocabularyInfo
) -> list[tuple[int, bool, float]]:
    """What can happen to one token: the id that is seen, whether it was selected, the chance."""
    protected = {vocabulary.mask_id, *vocabulary.protected_ids}
    if token in protected:
        return [(token, False, 1.0)]
    words = [number for number in range(vocabulary.size) if number not in protected]
    replaced = config.rate * config.random_fraction
    kept = config.rate * (1.0 - config.mask_fraction - config.random_fraction)
    outcomes = [
        (token, False, 1.0 - config.rate),
        (vocabulary.mask_id, True, config.rate * config.mask_fraction),
        *((word, True, replaced / len(words)) for word in words),
        (token, True, kept),
    ]
    return [outcome for outcome in outcomes if outcome[2] > 1e-15]
