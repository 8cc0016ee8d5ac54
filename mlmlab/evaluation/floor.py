"""The exact lowest loss that any model can reach on given blocks and masks of a known chain.

    B rows   T positions   M predicted tokens   S hidden states   V token ids

A masked language model sees a corrupted block and states, for each predicted token, a distribution
over ids. Its expected loss is the cross entropy between that and the true distribution of the
original id given all that it sees; no other answer has a lower expectation than the true
distribution itself. When the text comes from a hidden Markov chain, and every token is corrupted
independently of the others, the true distribution follows from the forward-backward recursion
(Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 77(2), 1989, equations 18 to 27): each
observed token is emitted through the mask / random / keep channel, and a predicted one is
conditioned on having been selected, as every predicted token is.

The floor exists for independent token masks only. Masks that select words, spans or an exact
budget tie the corruption of one token to the others; for those it is null, never an estimate.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlmlab.masking.config import MaskingPolicy
from mlmlab.masking.vocabulary import VocabularyInfo

Floats = NDArray[np.float64]


class Chain(Protocol):
    """A stationary hidden Markov chain over token ids (`small_world.chain.TokenChain`)."""

    @property
    def start(self) -> Floats:
        """`[S]`, chance of each state at a block's first position."""

    @property
    def transition(self) -> Floats:
        """`[S, S]`, chance of the next state (column) after this one (row)."""

    @property
    def emission(self) -> Floats:
        """`[S, V]`, chance of each id."""


def lowest_losses(
    chain: Chain,
    input_ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    labels: NDArray[np.int64],
    config: MaskingPolicy,
    vocabulary: VocabularyInfo,
    *,
    chunk_rows: int = 64,
) -> Floats:
    """The losses of the best possible model on a masked batch.

    Args:
        chain: where the text comes from; a block begins anywhere in its endless stream.
        input_ids: `[B, T]`, corrupted.
        positions: `[M]`, ascending flat indices into B*T of the predicted tokens.
        labels: `[M]`, the original ids at those positions.
        chunk_rows: worked on at a time: `[S, 64]` stays in the cache, and `[M, V]` small.

    Returns:
        float64 `[M]`, -log P(label | the corrupted block, selected) in nats.

    Raises:
        ValueError: a block or a label that the chain and this policy cannot produce.
    """
    rows, length = input_ids.shape
    losses = np.empty(len(positions))
    for first in range(0, rows, chunk_rows):
        last = min(first + chunk_rows, rows)
        low, high = np.searchsorted(positions, [first * length, last * length])
        posteriors = token_posteriors(
            chain,
            input_ids[first:last],
            positions[low:high] - first * length,
            config,
            vocabulary,
        )
        chances = posteriors[np.arange(high - low), labels[low:high]]
        if not chances.all():
            wrong = low + int(np.argmin(chances))
            raise ValueError(
                f"id {labels[wrong]} cannot have stood at row {positions[wrong] // length}, "
                f"position {positions[wrong] % length}: the block is not of this chain and policy"
            )
        losses[low:high] = -np.log(chances)
    return losses


def token_posteriors(
    chain: Chain,
    input_ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    config: MaskingPolicy,
    vocabulary: VocabularyInfo,
) -> Floats:
    """P(original id | the complete corrupted block, this position was selected).

    Args:
        input_ids: `[B, T]`, corrupted.
        positions: `[M]`, ascending flat indices into B*T.

    Returns:
        float64 `[M, V]`, rows add up to 1; protected ids have chance 0.

    Raises:
        ValueError: a block that the chain and this policy cannot produce.
    """
    assert config.unit == "token", "only independent token masks have a known floor"
    open_to_masks = ~vocabulary.protected  # bool [V]
    kept = max(0.0, 1.0 - config.mask_fraction - config.random_fraction)
    replaced = np.zeros(vocabulary.size)  # [V], chance that a selected token shows up as this id
    replaced[vocabulary.mask_id] = config.mask_fraction
    replaced[open_to_masks] = config.random_fraction / open_to_masks.sum()

    maskable = chain.emission * open_to_masks  # [S, V]
    shown_as_itself = np.where(open_to_masks, 1.0 - config.rate * (1.0 - kept), 1.0)
    observation = chain.emission * shown_as_itself  # [S, V]
    observation += config.rate * np.outer(maskable.sum(axis=1), replaced)

    beliefs = _state_beliefs(chain, observation, input_ids, positions)  # [M, S]
    observed = input_ids.reshape(-1)[positions]
    expected = beliefs @ maskable  # [M, V]
    posteriors: Floats = expected * replaced[observed, None]
    predicted = np.arange(len(positions))
    posteriors[predicted, observed] += kept * expected[predicted, observed]
    totals = posteriors.sum(axis=1, keepdims=True)
    if not totals.all():
        raise ValueError("a predicted token is one that this policy never selects")
    posteriors /= totals
    return posteriors


def _state_beliefs(
    chain: Chain,
    observation: Floats,
    input_ids: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> Floats:
    """P(hidden state at a position | all the other observed tokens), up to a factor a row.

    Both recursions are scaled to sum 1 at each step, so that long blocks do not underflow.

    Args:
        observation: `[S, V]`, chance that a state's token is observed as this id.

    Returns:
        float64 `[M, S]`.
    """
    rows, length = input_ids.shape
    forward, backward = _Sparse(chain.transition.T), _Sparse(chain.transition)
    row_of, time_of = np.divmod(positions, length)
    predicted_at = [np.flatnonzero(time_of == time) for time in range(length)]
    beliefs = np.empty((len(positions), len(chain.start)))

    ahead = np.repeat(chain.start[:, None], rows, axis=1)  # [S, B], P(state | tokens before)
    for time in range(length):
        here = predicted_at[time]
        beliefs[here] = ahead[:, row_of[here]].T
        ahead = forward @ _scaled(ahead * observation[:, input_ids[:, time]], time)

    behind = np.ones((len(chain.start), rows))  # [S, B], P(tokens after | state), scaled
    for time in reversed(range(length)):
        here = predicted_at[time]
        beliefs[here] *= behind[:, row_of[here]].T
        behind = backward @ _scaled(behind * observation[:, input_ids[:, time]], time)
    return beliefs


class _Sparse:
    """A matrix by its non-zero entries: most states have one or two successors."""

    def __init__(self, matrix: Floats) -> None:
        self._shape = matrix.shape
        rows, self._columns = np.nonzero(matrix)
        self._entries = matrix[rows, self._columns][:, None]
        self._filled_rows, self._row_starts = np.unique(rows, return_index=True)

    def __matmul__(self, right: Floats) -> Floats:
        product = np.zeros((self._shape[0], right.shape[1]))
        terms = self._entries * right[self._columns]
        product[self._filled_rows] = np.add.reduceat(terms, self._row_starts, axis=0)
        return product


def _scaled(chances: Floats, time: int) -> Floats:
    sums = chances.sum(axis=0, keepdims=True)
    if not sums.all():
        raise ValueError(
            f"position {time} of a block shows an id that cannot stand there: "
            "the block is not of this chain and policy"
        )
    scaled: Floats = chances / sums
    return scaled
