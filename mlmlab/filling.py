"""Fill-mask: the model's best tokens for each mask of a text, as the Hub's pipeline gives them."""

from collections.abc import Sequence
from typing import Any

import torch

from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import UserError
from mlmlab.model import MaskedLanguageModel

Completion = dict[str, Any]
"""score (a probability), token (its id), token_str, sequence (the completed text)."""


class FillMask:
    """Completes texts with a masked language model, on the device that the model is on."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def __call__(self, texts: str | Sequence[str], top_k: int = 5) -> list[Any]:
        """The most likely tokens for each mask.

        Args:
            texts: one text or several, each with at least one mask token.
            top_k: completions a mask.

        Returns:
            For a text with one mask a list of completions, best first; with several masks a list
            of such lists, each mask filled alone; for several texts a list of those.

        Raises:
            UserError: a text without a mask token, or longer than the model's positions.
        """
        if isinstance(texts, str):
            return self._fill(texts, top_k)
        return [self._fill(text, top_k) for text in texts]

    @torch.no_grad()
    def _fill(self, text: str, top_k: int) -> list[Any]:
        ids = self.encode(text)
        masks = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        device = next(self.model.parameters()).device
        self.model.eval()
        logits = self.model(
            torch.tensor([ids], device=device), positions=torch.tensor(masks, device=device)
        )  # [masks, V]
        known = logits[:, : self.tokenizer.vocabulary_size].float()
        scores, tokens = known.softmax(-1).topk(min(top_k, known.shape[1]))
        rows = [
            [
                self._completion(ids, mask, int(token), float(score), len(masks) == 1)
                for score, token in zip(*row, strict=True)
            ]
            for mask, row in zip(masks, zip(scores, tokens, strict=True), strict=True)
        ]
        return rows[0] if len(rows) == 1 else rows

    def encode(self, text: str) -> list[int]:
        """The text's ids, with at least one mask among them.

        Raises:
            UserError: no mask token, or too many tokens.
        """
        ids = self.tokenizer.encode(text)
        longest = self.model.config.max_positions
        if self.tokenizer.mask_id not in ids:
            raise UserError.of(
                "the text",
                found=text,
                expected=f"at least one {self.tokenizer.mask_token}",
                remedy=f"write {self.tokenizer.mask_token} where a token is to be predicted",
            )
        if len(ids) > longest:
            raise UserError.of(
                "the text",
                found=f"{len(ids)} tokens: {text[:40]}...",
                expected=f"at most {longest}, the model's longest sequence",
                remedy="shorten the text",
            )
        return ids

    def _completion(
        self, ids: list[int], mask: int, token: int, score: float, only_mask: bool
    ) -> Completion:
        completed = [*ids[:mask], token, *ids[mask + 1 :]]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token], skip_special_tokens=False),
            "sequence": self.tokenizer.decode(completed, skip_special_tokens=only_mask),
        }
