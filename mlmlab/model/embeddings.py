"""Token, position and token-type embeddings.

B sequences   T positions   C hidden
"""

import torch
from torch import nn

from mlmlab.model.config import Family, ModelConfig


class Embeddings(nn.Module):
    """The sum of the tables, normalized: ids `[B, T]` to vectors `[B, T, C]`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table_rows = config.max_positions + config.position_offset
        self.token = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.position = nn.Embedding(table_rows, config.hidden_size)
        self.token_type: nn.Embedding | None = None
        if config.token_types:
            self.token_type = nn.Embedding(config.token_types, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.position_offset = config.position_offset
        self.counts_real_tokens = config.family is Family.ROBERTA
        self.max_positions = config.max_positions

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        length = input_ids.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} tokens in a row; the model has {self.max_positions}")
        rows = self._rows(input_ids, attention_mask, documents)
        hidden = self.token(input_ids) + self.position(rows)
        if self.token_type is not None:
            hidden = hidden + self.token_type.weight[0]  # one segment, as in all MLM training
        normalized: torch.Tensor = self.dropout(self.norm(hidden))
        return normalized  # [B, T, C]

    def _rows(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor:
        """The position table's row of each token, `[T]` or `[B, T]`.

        RoBERTa counts real tokens, known from the attention mask (never from the pad id: a real
        token may carry it), and gives padding the row before the first (pad_id).
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device)  # [T]
        if documents is not None:
            begins = documents != documents.roll(1, dims=1)  # [B, T]
            place = place - torch.where(begins, place, 0).cummax(1).values  # [B, T]
        elif attention_mask is not None and self.counts_real_tokens:
            real = attention_mask.long()
            place = real.cumsum(1) * real - 1  # [B, T]
        return place + self.position_offset
