"""Token, position and token-type embeddings.

B sequences   T positions   C hidden
"""

from collections.abc import Mapping

import torch
from torch import nn

from mlmlab.model.config import ModelConfig
from mlmlab.model.families import Positions


class Embeddings(nn.Module):
    """The sum of the tables, normalized: ids `[B, T]` to vectors `[B, T, C]`.

    Tables of another width, as ELECTRA has them, are followed by a projection.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, biases = config.table_width, config.architecture.biases
        self.token = nn.Embedding(config.vocabulary_size, width)
        self.position = nn.Embedding(config.max_positions + config.position_offset, width)
        self.token_type: nn.Embedding | None = None
        if config.token_types:
            self.token_type = nn.Embedding(config.token_types, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=biases)
        self.dropout = nn.Dropout(config.dropout)
        self.position_offset = config.position_offset
        self.projection: nn.Linear | None = None
        if config.embedding_size is not None:
            self.projection = nn.Linear(width, config.hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = self._places(input_ids, attention_mask, documents) + self.position_offset
        hidden = self.token(input_ids) + self.position(rows)
        if self.token_type is not None:
            hidden = hidden + self.token_type.weight[0]  # one segment, as in all MLM training
        normalized: torch.Tensor = self.dropout(self.norm(hidden))
        if self.projection is not None:
            return self.projection(normalized)  # type: ignore[no-any-return]
        return normalized  # [B, T, C]

    def _places(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Each token's index in its row or document, int64 `[T]` or `[B, T]`."""
        place = torch.arange(input_ids.shape[1], device=input_ids.device)  # [T]
        if documents is None:
            return place
        begins = documents != documents.roll(1, dims=1)  # [B, T]
        return place - torch.where(begins, place, 0).cummax(1).values  # [B, T]


class RealTokenEmbeddings(Embeddings):
    """The same, with positions that count real tokens only.

    They are known from the attention mask, never from the pad id: a real token may carry it.
    Padding gets the row before the first token's, pad_id.
    """

    def _places(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        if attention_mask is None:
            return super()._places(input_ids, attention_mask, documents)
        real = attention_mask.long()
        return real.cumsum(1) * real - 1  # [B, T]


class TokenEmbeddings(nn.Module):
    """The token table alone, normalized: attention knows the positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, biases = config.hidden_size, config.architecture.biases
        self.token = nn.Embedding(config.vocabulary_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps, bias=biases)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        """`[B, T]` to `[B, T, C]`; mask and documents are left to attention."""
        normalized: torch.Tensor = self.dropout(self.norm(self.token(input_ids)))
        return normalized


EMBEDDINGS: Mapping[Positions, type[Embeddings] | type[TokenEmbeddings]] = {
    Positions.LEARNED: Embeddings,
    Positions.LEARNED_AFTER_PAD: RealTokenEmbeddings,
    Positions.ROTARY: TokenEmbeddings,
}
