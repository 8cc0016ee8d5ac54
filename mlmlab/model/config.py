"""The encoder's architecture: what the user sets, and what the model is built from."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum

from mlmlab.errors import Problem


class Family(Enum):
    """The published architectures. They share one implementation (`encoder.py`)."""

    BERT = "bert"
    ROBERTA = "roberta"
    DISTILBERT = "distilbert"


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The `model` group of the config. All null but the dropout: the checkpoint decides."""

    family: Family | None
    """bert, roberta (DistilRoBERTa too) or distilbert."""
    hidden_size: int | None
    """Width of the residual stream."""
    layers: int | None
    """Number of transformer layers."""
    heads: int | None
    """Attention heads a layer; divides hidden_size."""
    intermediate_size: int | None
    """Width inside the feed-forward."""
    max_positions: int | None
    """The longest sequence, in tokens."""
    initializer_range: float | None
    """Standard deviation of fresh weights."""
    dropout: float | None
    """Dropout of embeddings, sublayers and attention weights. null: the checkpoint's own."""

    def architecture(self) -> dict[str, object]:
        """The keys that a checkpoint also decides, with their values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dropout"}

    def problems(self) -> Iterator[Problem]:
        """Sizes that are not positive, heads that do not divide the width."""
        for name, value in self.architecture().items():
            if isinstance(value, int | float) and value <= 0:
                yield Problem(f"model.{name}", str(value), "a positive number", f"model.{name}=1")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            yield Problem(
                "model.dropout", str(self.dropout), "at least 0 and below 1", "model.dropout=0.1"
            )
        if self.hidden_size and self.heads and self.hidden_size % self.heads:
            yield Problem(
                "model.heads",
                f"{self.heads}, with model.hidden_size={self.hidden_size}",
                "a divisor of model.hidden_size",
                f"model.heads={max(1, self.hidden_size // 64)}",
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
    """The longest sequence, in tokens; the position table has `position_offset` rows more."""
    position_offset: int
    """Row of the first token's position: 0, or pad_id + 1 for RoBERTa."""
    token_types: int
    """Rows of the token-type table: 2 (BERT), 1 (RoBERTa), 0 for none (DistilBERT)."""
    layer_norm_eps: float
    pad_id: int
    dropout: float
    attention_dropout: float
    initializer_range: float
    """Standard deviation of fresh weights; 0.02 in every published model."""

    @classmethod
    def from_settings(
        cls, settings: ModelSettings, *, vocabulary_size: int, pad_id: int
    ) -> "ModelConfig":
        """A model from scratch, with the constants of its family's paper.

        Raises:
            AssertionError: a key is null (`RunConfig.problems` asks the user for it first).
        """
        assert settings.family is not None
        assert settings.dropout is not None
        assert settings.hidden_size
        assert settings.layers
        assert settings.heads
        assert settings.intermediate_size
        assert settings.max_positions
        assert settings.initializer_range
        roberta = settings.family is Family.ROBERTA
        token_types = {Family.BERT: 2, Family.ROBERTA: 1, Family.DISTILBERT: 0}
        return cls(
            family=settings.family,
            vocabulary_size=vocabulary_size,
            hidden_size=settings.hidden_size,
            layers=settings.layers,
            heads=settings.heads,
            intermediate_size=settings.intermediate_size,
            max_positions=settings.max_positions,
            position_offset=pad_id + 1 if roberta else 0,
            token_types=token_types[settings.family],
            layer_norm_eps=1e-5 if roberta else 1e-12,
            pad_id=pad_id,
            initializer_range=settings.initializer_range,
            dropout=settings.dropout,
            attention_dropout=settings.dropout,
        )
