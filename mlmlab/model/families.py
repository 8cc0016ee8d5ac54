"""The families: what the paper of each one fixes, as one record.

Sub-layers are chosen by these records (`EMBEDDINGS`, `LAYERS`, `FEED_FORWARDS`), so that a new
family is a record here, its sub-layers, and its key map (checkpoints/key_maps.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Family(Enum):
    """The published architectures. They share one implementation (`encoder.py`)."""

    BERT = "bert"
    ROBERTA = "roberta"
    DISTILBERT = "distilbert"


class Positions(Enum):
    """How the model knows where a token is."""

    LEARNED = "learned"
    """A table added to the token's vector; the row is the token's index."""
    LEARNED_AFTER_PAD = "learned_after_pad"
    """A table as well, but padding is not counted, and the first token has row pad_id + 1, as in
    fairseq."""


class Norms(Enum):
    """Where a layer normalizes."""

    POST = "post"
    """After each sublayer and its residual (Vaswani et al. 2017)."""


class FeedForwards(Enum):
    """A layer's second sublayer."""

    GELU = "gelu"
    """Two projections around an exact (erf) GELU."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What every model of a family has in common."""

    positions: Positions
    norms: Norms
    feed_forward: FeedForwards
    biases: bool
    """Whether linear layers and norms have biases. The decoder has one in any case."""
    token_types: int
    """Rows of the token-type table; 0: no table. A checkpoint may have another number of them."""
    layer_norm_eps: float
    """Where a checkpoint does not say otherwise."""

    def position_offset(self, pad_id: int) -> int:
        """Row of the first token in the position table."""
        return pad_id + 1 if self.positions is Positions.LEARNED_AFTER_PAD else 0


_BERT = Architecture(
    positions=Positions.LEARNED,
    norms=Norms.POST,
    feed_forward=FeedForwards.GELU,
    biases=True,
    token_types=2,
    layer_norm_eps=1e-12,
)

ARCHITECTURES: Mapping[Family, Architecture] = {
    Family.BERT: _BERT,  # Devlin et al. 2019
    Family.ROBERTA: replace(  # Liu et al. 2019
        _BERT, positions=Positions.LEARNED_AFTER_PAD, token_types=1, layer_norm_eps=1e-5
    ),
    Family.DISTILBERT: replace(_BERT, token_types=0),  # Sanh et al. 2019
}
