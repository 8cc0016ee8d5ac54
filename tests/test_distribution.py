"""The masks are what independent draws would be; a bad generator is found out by the same tests.

Chi-squares over 1e7 tokens, and 1e8 as a slow test. Seeds are fixed: no p below 1e-4.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import chi_square

from mlmlab.masking import MaskingConfig, VocabularyInfo, mask_batch

ROWS, LENGTH = 2000, 500
VOCABULARY = VocabularyInfo(size=1000, mask_id=4, protected_ids=(0, 1, 2, 3, 4))
TOKEN = 77
LONGEST_GAP = 40
LOWEST_P = 1e-4
RATE, MASKED, RANDOM = 0.15, 0.8, 0.1

Flags = NDArray[np.bool_]
Masker = Callable[[NDArray[np.int64], int, int], tuple[Flags, NDArray[np.int64]]]
"""Examples, epoch and seed to what is selected, bool `[B, T]`, and what then stands there."""


def kernel(examples: NDArray[np.int64], epoch: int, seed: int) -> tuple[Flags, NDArray[np.int64]]:
    ids = np.full((len(examples), LENGTH), TOKEN, np.uint16)
    ids[:, 0], ids[:, -1] = 0, 2
    batch = mask_batch(
        ids, example_ids=examples, epoch=epoch, seed=seed, config=MaskingConfig(),
        vocabulary=VOCABULARY,
    )  # fmt: skip
    flags = np.zeros(ids.size, np.bool_)
    flags[batch.positions] = True
    return flags.reshape(ids.shape), batch.input_ids


def bad_kernel(
    examples: NDArray[np.int64], epoch: int, seed: int
) -> tuple[Flags, NDArray[np.int64]]:
    """A linear congruence on a running number: what its words share, its masks share."""
    running = (examples[:, None] * LENGTH + np.arange(LENGTH) + epoch + seed).astype(np.uint64)
    chance = (running * np.uint64(69069) + np.uint64(1)) % np.uint64(1 << 16) / 65536
    flags = chance < RATE
    flags[:, [0, -1]] = False
    ids = np.where(flags & (chance < RATE * MASKED), VOCABULARY.mask_id, TOKEN)
    drawn = 5 + running % np.uint64(995)
    is_random = flags & (chance >= RATE * MASKED) & (chance < RATE * (MASKED + RANDOM))
    return flags, np.where(is_random, drawn.astype(np.int64), ids)


@dataclass
class Counts:
    """What is counted over all tokens."""

    tokens: int = 0
    outcomes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    """Left alone, masked, replaced by another id, kept or replaced by the same."""
    drawn: NDArray[np.int64] = field(default_factory=lambda: np.zeros(VOCABULARY.size, np.int64))
    gaps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(LONGEST_GAP + 1, np.int64))
    joint: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """2 x 2 counts: selected here, selected there."""
    protected: int = 0

    def count(self, masker: Masker, first: int) -> None:
        """Counts ROWS examples in."""
        examples = np.arange(first, first + ROWS)
        flags, ids = masker(examples, 0, 0)
        self.protected += int(flags[:, [0, -1]].sum())
        flags, ids = flags[:, 1:-1], ids[:, 1:-1]
        self.tokens += flags.size
        masked = flags & (ids == VOCABULARY.mask_id)
        replaced = flags & (ids != VOCABULARY.mask_id) & (ids != TOKEN)
        parts = np.array([flags.sum(), masked.sum(), replaced.sum()])
        self.outcomes += [flags.size - parts[0], parts[1], parts[2], parts[0] - parts[1] - parts[2]]
        self.drawn += np.bincount(ids[replaced], minlength=VOCABULARY.size)
        places = np.flatnonzero(flags.ravel())
        self.gaps += np.bincount(
            np.minimum(np.diff(places), LONGEST_GAP), minlength=LONGEST_GAP + 1
        )
        self._join("neighbours", flags[:, :-1], flags[:, 1:])
        self._join("neighbouring blocks", flags[:, :-4], flags[:, 4:])
        for name, other in {
            "epochs": masker(examples, 1, 0),
            "examples": masker(examples + 1, 0, 0),
            "seeds": masker(examples, 0, 1),
        }.items():
            self._join(name, flags, other[0][:, 1:-1])

    def _join(self, name: str, here: Flags, there: Flags) -> None:
        cells = np.bincount((2 * here + there).ravel(), minlength=4)
        self.joint[name] = self.joint.get(name, np.zeros(4, np.int64)) + cells

    def p_values(self) -> dict[str, float]:
        """Of every count, under independent draws."""
        missed = (1 - 1 / 995) * RANDOM  # a random id is the token's own once in 995
        outcomes = [1 - RATE, RATE * MASKED, RATE * missed, RATE * (1 - MASKED - missed)]
        drawn = np.delete(self.drawn, [0, 1, 2, 3, 4, TOKEN])
        gaps = RATE * (1 - RATE) ** np.arange(LONGEST_GAP - 1)
        joint = [(1 - RATE) ** 2, RATE * (1 - RATE), RATE * (1 - RATE), RATE**2]
        return {
            "outcomes": chi_square.p_value(self.outcomes, outcomes),
            "random ids": chi_square.p_value(drawn),
            "gaps": chi_square.p_value(self.gaps[1:], [*gaps, 1 - gaps.sum()]),
            **{name: chi_square.p_value(cells, joint) for name, cells in self.joint.items()},
        }


def counted(masker: Masker, tokens: int) -> Counts:
    counts = Counts()
    first = 0
    while counts.tokens < tokens:
        counts.count(masker, first)
        first += 2 * ROWS
    return counts


@pytest.mark.parametrize("tokens", [10**7, pytest.param(10**8, marks=pytest.mark.slow)])
def test_the_masks_are_those_of_independent_draws(tokens: int) -> None:
    counts = counted(kernel, tokens)
    assert counts.protected == 0
    p_values = counts.p_values()
    assert len(p_values) == 8
    assert {name: p for name, p in p_values.items() if p <= LOWEST_P} == {}, p_values


def test_a_bad_generator_is_found_out() -> None:
    p_values = counted(bad_kernel, 10**7).p_values()
    found = {name for name, p in p_values.items() if p <= LOWEST_P}
    assert {"gaps", "neighbours", "epochs", "seeds", "examples"} <= found, p_values
