"""The families: what the paper of each one fixes, as one record.

Sub-layers are chosen by these records (`EMBEDDINGS`, `LAYERS`, `FEED_FORWARDS`), so that a new
family is a record here, its sub-layers, and its key map (checkpoints/key_maps.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Family(Enum):
    """The published architectures. They share one implementation (`encoder.py`)."""

    BERT = "bert"
    ROBERTA = "roberta"
    DISTILBERT = "distilbert"
    ELECTRA = "electra"
    ERNIE = "ernie"
    MODERNBERT = "modernbert"


class Positions(Enum):
    """How the model knows where a token is."""

    LEARNED = "learned"
    """A table added to the token's vector; the row is the token's index."""
    LEARNED_AFTER_PAD = "learned_after_pad"
    """A table as well, but padding is not counted, and the first token has row pad_id + 1, as in
    fairseq."""
    ROTARY = "rotary"
    """No table: attention rotates queries and keys by their index (Su et al. 2021)."""


class Norms(Enum):
    """Where a layer normalizes."""

    POST = "post"
    """After each sublayer and its residual (Vaswani et al. 2017)."""
    PRE = "pre"
    """Before each sublayer, and after the last one (Xiong et al. 2020)."""


class FeedForwards(Enum):
    """A layer's second sublayer."""

    GELU = "gelu"
    """Two projections around an exact (erf) GELU."""
    GEGLU = "geglu"
    """The same, with half of the first one as a gate (Shazeer 2020)."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What every model of a family has in common."""

    positions: Positions
    norms: Norms
    feed_forward: FeedForwards
    biases: bool
    """Whether linear layers and norms have biases. The decoder has one in any case."""

    # A checkpoint may have other values of the following (`checkpoint_defaults`).
    token_types: int
    """Rows of the token-type table; 0: no table."""
    layer_norm_eps: float
    global_every_n_layers: int = 1
    """Layers 0, n, 2n, ... see the full row; the layers between them, `local_attention` alone."""
    local_attention: int | None = None
    """Width of the window of a local layer: half of it to the left, half to the right."""
    global_rope_theta: float | None = None
    """Base of the rotation in global layers; the larger, the slower it turns. None: no rotation."""
    local_rope_theta: float | None = None
    """The same in local layers."""

    def checkpoint_defaults(self) -> dict[str, Any]:
        """Those fields of `ModelConfig`, from scratch and where a checkpoint is silent."""
        return {
            "token_types": self.token_types,
            "layer_norm_eps": self.layer_norm_eps,
            "global_every_n_layers": self.global_every_n_layers,
            "local_attention": self.local_attention,
            "global_rope_theta": self.global_rope_theta,
            "local_rope_theta": self.local_rope_theta,
        }

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
    Family.ELECTRA: _BERT,  # the generators of Clark et al. 2020
    Family.ERNIE: _BERT,  # Sun et al. 2019: BERT, trained to predict phrases and entities
    Family.MODERNBERT: Architecture(  # Warner et al. 2024; Ettin and mmBERT have the same layout
        positions=Positions.ROTARY,
        norms=Norms.PRE,
        feed_forward=FeedForwards.GEGLU,
        biases=False,
        token_types=0,
        layer_norm_eps=1e-5,
        global_every_n_layers=3,
        local_attention=128,
        global_rope_theta=160_000.0,
        local_rope_theta=10_000.0,
    ),
}
