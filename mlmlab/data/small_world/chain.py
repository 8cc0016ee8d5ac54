"""The built-in corpus: a small world in plain English, whose optimum is known exactly.

    S hidden states   W words   V token ids

A few paragraph templates (`grammar.py`), about animals, jobs, errands, seasons and days, are
compiled into a hidden Markov chain. Facts are fixed (the cow lives in the barn and eats grass),
adjectives, names and the like are free choices. The chain's state is the memory of what the
paragraph is about, so that a fact or a pronoun can be predicted from words further away.

Two things follow from the chain: documents, as a pure function of (seed, index), and, through
`TokenChain`, the exact lowest loss that any model can reach (`mlmlab.evaluation.floor`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.small_world.grammar import (
    FINISHED,
    FREE_CHOICES,
    LAST_PARAGRAPH,
    TOPICS,
    Symbols,
    compiled,
    filled,
)
from mlmlab.random import Domain, uniforms

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class SmallWorld:
    """A hidden Markov chain that writes documents."""

    words: tuple[str, ...]
    """Every word and punctuation mark, sorted; no special tokens."""
    initial: NDArray[np.float64]
    """`[S]`, chance that a document's first word comes from this state."""
    transition: NDArray[np.float64]
    """`[S, S]`, chance of the next word's state (column) after this one (row)."""
    end: NDArray[np.float64]
    """`[S]`, chance that the document ends here; a row of `transition` and `end` add up to 1."""
    emission: NDArray[np.float64]
    """`[S, W]`, chance of each word; rows add up to 1."""

    def documents(self, count: int, seed: int) -> Iterator[str]:
        """Draws documents: lower-case words and punctuation, separated by single spaces.

        Document i is a function of (seed, i): its word t takes random number 2 t for the state (or
        the end of the document) and number 2 t + 1 for the word.
        """
        outside = len(self.end)  # before the first word (as a row), after the last (as a column)
        moves = _Sampler(
            np.block([[self.transition, self.end[:, None]], [self.initial, np.zeros(1)]])
        )
        emissions = _Sampler(self.emission)
        words = np.array(self.words, object)
        for first in range(0, count, _CHUNK):
            identities = np.arange(first, min(first + _CHUNK, count))
            numbers = uniforms(seed, Domain.SMALL_WORLD, identities, 256)
            writing = np.arange(len(identities))  # rows of the documents that continue
            state = np.full(len(identities), outside)
            document_ids: list[NDArray[np.int64]] = []
            written: list[NDArray[np.int64]] = []
            while True:
                place = 2 * len(written)
                if place == numbers.shape[1]:
                    numbers = uniforms(seed, Domain.SMALL_WORLD, identities, 2 * place)
                state = moves.draw(state, numbers[writing, place])
                writing, state = writing[state != outside], state[state != outside]
                if not writing.size:
                    break
                document_ids.append(writing)
                written.append(emissions.draw(state, numbers[writing, place + 1]))
            owner = np.concatenate(document_ids)
            order = np.argsort(owner, kind="stable")
            ends = np.cumsum(np.bincount(owner))
            for document in np.split(words[np.concatenate(written)[order]], ends[:-1]):
                yield " ".join(document)

    def token_chain(
        self, word_ids: Mapping[str, int], vocabulary_size: int, cls_id: int, sep_id: int
    ) -> "TokenChain":
        """The endless stream of documents as token ids, each between `cls_id` and `sep_id`.

        Args:
            word_ids: the id of every word; words may share one.

        Raises:
            ValueError: a word without an id.
        """
        missing = [word for word in self.words if word not in word_ids]
        if missing:
            raise ValueError(f"words without an id: {' '.join(missing[:10])}")
        states = len(self.end)
        cls, sep = states, states + 1
        transition = np.zeros((states + 2, states + 2))
        transition[:states, :states] = self.transition
        transition[:states, sep] = self.end
        transition[sep, cls] = 1.0
        transition[cls, :states] = self.initial
        emission = np.zeros((states + 2, vocabulary_size))
        for word, chances in zip(self.words, self.emission.T, strict=True):
            emission[:states, word_ids[word]] += chances
        emission[cls, cls_id] = emission[sep, sep_id] = 1.0
        # Visits to each state within a document, of expected length visits.sum(): the share of the
        # stream that the state takes up.
        visits = np.linalg.solve(np.eye(states) - self.transition.T, self.initial)
        visits = np.append(visits, (1.0, 1.0))
        return TokenChain(visits / visits.sum(), transition, emission)


@dataclass(frozen=True, eq=False)
class TokenChain:
    """The world's chain over token ids, special tokens included; S' is S and two more states."""

    start: NDArray[np.float64]
    """`[S']`, the stationary distribution: a block starts anywhere in the endless stream."""
    transition: NDArray[np.float64]
    """`[S', S']`, rows add up to 1."""
    emission: NDArray[np.float64]
    """`[S', V]`, rows add up to 1."""


class _Sampler:
    """Draws a column of a matrix of chances, for many rows at once, by one binary search."""

    def __init__(self, chances: NDArray[np.float64]) -> None:
        rows, self._columns = np.nonzero(chances)
        last_of_row = np.append(rows[1:] != rows[:-1], True)
        cumulative = np.where(last_of_row, 1.0, np.cumsum(chances, axis=1)[rows, self._columns])
        self._upper = rows + cumulative  # ascending, since row r takes up the interval r ... r + 1

    def draw(self, row: NDArray[np.int64], number: NDArray[np.float64]) -> NDArray[np.int64]:
        """The column of each row at `number`, both `[N]`."""
        return self._columns[np.searchsorted(self._upper, row + number, side="right")]


@lru_cache(maxsize=1)
def small_world() -> SmallWorld:
    """The built-in corpus: the grammar above as a chain."""
    total = sum(weight for weight, _, _ in TOPICS)
    paragraphs: dict[Symbols, Fraction] = {}
    for weight, template, facts in TOPICS:
        rows = filled(template, facts)
        paragraphs |= dict.fromkeys(rows, Fraction(weight, total * len(rows)))
    first, states = compiled(paragraphs)
    choices = [FREE_CHOICES.get(slot, slot).split() for slot, _ in states]
    words = sorted({word for choice in choices for word in choice})
    initial, end = np.zeros(len(states)), np.zeros(len(states))
    transition = np.zeros((len(states), len(states)))
    emission = np.zeros((len(states), len(words)))
    for state, chance in first:
        initial[state] = chance
    for state, (_, following) in enumerate(states):
        for successor, chance in following:
            if successor == FINISHED:
                end[state] = chance * LAST_PARAGRAPH
                transition[state] += float(chance * (1 - LAST_PARAGRAPH)) * initial
            else:
                transition[state, successor] += float(chance)
        for word in choices[state]:
            emission[state, words.index(word)] = 1 / len(choices[state])
    return SmallWorld(tuple(words), initial, transition, end, emission)
