"""How much arithmetic a step is: multiplications and additions of its matrix products.

A multiply-add counts as 2, backward as twice the forward pass (the gradients of a product's two
factors). What is small next to the products (norms, GELU, softmax, the tables' look-ups) is left
out, as is what layers that are computed again cost (`train.gradient_checkpointing`); frozen parts
count as if they trained. A local layer's attention counts in full: it is computed and masked.
Families differ by their feed-forwards and by the width of their tables.

B sequences   T positions   C hidden   I inner   E tables   V vocabulary   M predicted positions
"""

from collections.abc import Mapping

from mlmlab.model.config import ModelConfig
from mlmlab.model.families import FeedForwards

_FORWARD_AND_BACKWARD = 3
_FEED_FORWARD_MATRICES: Mapping[FeedForwards, int] = {FeedForwards.GELU: 2, FeedForwards.GEGLU: 3}
"""Matrices of C by I in a feed-forward."""


def actual_flops(config: ModelConfig, *, examples: int, length: int, predicted: int) -> int:
    """Of a step as the model computes it: the head, and the last layer's queries, output
    projection and feed-forward, on the predicted positions only.

    Args:
        config: the model.
        examples: of the full step, B.
        length: positions of each, padding included, T.
        predicted: predicted tokens of the full step, M.
    """
    positions = examples * length
    forward = (
        _embeddings(config, positions)
        + (config.layers - 1) * _layer(config, positions, positions, length)
        + _layer(config, positions, predicted, length)
        + _head(config, predicted)
    )
    return _FORWARD_AND_BACKWARD * forward


def dense_equivalent_flops(config: ModelConfig, *, examples: int, length: int) -> int:
    """Of the same step with every position through all layers and the head, as frameworks
    compute it that gather nothing: the figure to compare with theirs."""
    positions = examples * length
    layers = config.layers * _layer(config, positions, positions, length)
    forward = _embeddings(config, positions) + layers + _head(config, positions)
    return _FORWARD_AND_BACKWARD * forward


def _embeddings(config: ModelConfig, positions: int) -> int:
    """The projection, [B*T, E] x [E, C], where the tables have another width E."""
    return 2 * positions * config.hidden_size * (config.embedding_size or 0)


def _layer(config: ModelConfig, positions: int, rows: int, length: int) -> int:
    """A layer's forward pass that returns `rows` of its positions."""
    hidden, inner = config.hidden_size, config.intermediate_size
    keys_and_values = 2 * positions * hidden * 2 * hidden  # [B*T, C] x [C, 2C]
    queries_and_output = 2 * (2 * rows * hidden * hidden)  # [M, C] x [C, C], twice
    # Scores and mixture, both [T, T, D] for each of B*H heads, for all queries in any case.
    attention = 2 * (2 * positions * length * hidden)
    matrices = _FEED_FORWARD_MATRICES[config.architecture.feed_forward]
    feed_forward = matrices * (2 * rows * hidden * inner)  # [M, C] x [C, I] and back
    return keys_and_values + queries_and_output + attention + feed_forward


def _head(config: ModelConfig, rows: int) -> int:
    """The dense layer, [M, C] x [C, E], and the decoder, [M, E] x [E, V]."""
    return 2 * rows * config.table_width * (config.hidden_size + config.vocabulary_size)
