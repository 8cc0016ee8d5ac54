"""The encoder's architecture: what the user sets, and what the model is built from."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from mlmlab.errors import Code, Problem
from mlmlab.model.families import ARCHITECTURES, Architecture, Family, Positions
from mlmlab.schema import setting


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The `model` group of the config. All null but the dropout: the checkpoint decides."""

    family: Family | None = None
    """bert, roberta (DistilRoBERTa too), distilbert, electra, ernie or modernbert."""
    hidden_size: int | None = setting(None, at_least=1, example=128)
    """Width of the residual stream."""
    layers: int | None = setting(None, at_least=1, example=2)
    """Number of transformer layers."""
    heads: int | None = setting(None, at_least=1, example=4)
    """Attention heads per layer; divides hidden_size."""
    intermediate_size: int | None = setting(None, at_least=1, example=256)
    """Width inside the feed-forward."""
    max_positions: int | None = setting(None, at_least=1, example=128)
    """The longest sequence, in tokens."""
    initializer_range: float | None = setting(None, at_least=1e-6, at_most=1, example=0.02)
    """Standard deviation of fresh weights."""
    dropout: float | None = setting(None, at_least=0, below=1, example=0.1)
    """Dropout of embeddings, sublayers and attention weights. null: the checkpoint's own."""

    def shape(self) -> dict[str, Any]:
        """The keys that a checkpoint also decides, with their values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dropout"}

    def problems(self) -> Iterator[Problem]:
        """Heads that do not divide the width, or not into pairs of coordinates to rotate."""
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            yield Problem(
                "model.heads",
                f"{self.heads}, with model.hidden_size={self.hidden_size}",
                "a divisor of model.hidden_size",
                f"model.heads={max(1, self.hidden_size // 64)}",
                code=Code.CONFLICT,
            )
        if (
            self.family is not None
            and ARCHITECTURES[self.family].positions is Positions.ROTARY
            and self.hidden_size
            and self.heads
            and self.hidden_size // self.heads % 2
        ):
            yield Problem(
                "model.heads",
                f"{self.heads}, with model.hidden_size={self.hidden_size}",
                f"heads of an even width: {self.family.value} rotates pairs of coordinates",
                f"model.hidden_size={64 * self.heads}",
                code=Code.CONFLICT,
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that shapes the encoder."""

    family: Family
    vocabulary_size: int
    """Rows of the token table, and logits of the head."""
    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    max_positions: int
    """The longest sequence, in tokens; a position table has `position_offset` rows more."""
    token_types: int
    """Rows of the token-type table; 0: no table."""
    layer_norm_eps: float
    global_every_n_layers: int
    """Layers 0, n, 2n, ... see the full row; the layers between them, `local_attention` alone."""
    local_attention: int | None
    """Width of a local layer's window, in tokens."""
    global_rope_theta: float | None
    """Base of the rotation in global layers; None: no rotation."""
    local_rope_theta: float | None
    """The same in local layers."""
    pad_id: int
    dropout: float
    attention_dropout: float
    initializer_range: float
    """Standard deviation of fresh weights; 0.02 in every published model."""
    embedding_size: int | None = None
    """Width of the tables and the decoder where it is not hidden_size (ELECTRA); None: it is."""

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, *, vocabulary_size: int, pad_id: int
    ) -> "ModelConfig":
        """A model from scratch, with the constants of its family's paper.

        Raises:
            AssertionError: a key is null (`RunConfig.problems` asks the user for it first).
        """
        shape = settings.shape()
        assert None not in shape.values()
        assert settings.dropout is not None
        architecture = ARCHITECTURES[shape["family"]]
        return cls(
            **shape,
            vocabulary_size=vocabulary_size,
            **architecture.checkpoint_defaults(),
            pad_id=pad_id,
            dropout=settings.dropout,
            attention_dropout=settings.dropout,
        )

    @property
    def table_width(self) -> int:
        """Width of the embedding tables, and of what the decoder takes."""
        return self.embedding_size or self.hidden_size

    @property
    def architecture(self) -> Architecture:
        """What the family has in common."""
        return ARCHITECTURES[self.family]

    def is_global(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees the full row."""
        return layer % self.global_every_n_layers == 0

    @property
    def position_offset(self) -> int:
        """Row of the first token in the position table."""
        return self.architecture.position_offset(self.pad_id)
