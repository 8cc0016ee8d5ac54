"""Fill-mask: the model's best tokens for each mask of a text, as the Hub's pipeline gives them."""

from collections.abc import Sequence
from typing import Any

import torch

from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.model import MaskedLanguageModel

Completion = dict[str, Any]
"""score (a probability), token (its id), token_str, sequence (the completed text)."""


class FillMask:
    """Completes texts with a masked language model, on the device that the model is on."""

    def __init__(self, model: MaskedLanguageModel, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def __call__(
        self,
        texts: str | Sequence[str],
        top_k: int = 5,
        targets: Sequence[str] | None = None,
    ) -> list[Any]:
        """The most likely tokens for each mask.

        Args:
            texts: one text or several, each with at least one mask token.
            top_k: completions a mask.
            targets: rank only these tokens; their scores stay shares of the whole vocabulary.

        Returns:
            For a text with one mask a list of completions, best first; with several masks a list
            of such lists, each mask filled alone; for several texts a list of those.

        Raises:
            UserError: a text without a mask token, or longer than the model's positions; a target
                that is not one token.
        """
        candidates = self._candidates(targets)
        if isinstance(texts, str):
            return self._fill(texts, top_k, candidates)
        return [self._fill(text, top_k, candidates) for text in texts]

    def _candidates(self, targets: Sequence[str] | None) -> torch.Tensor:
        """The ids that may be answers, int64 `[candidates]`."""
        if targets is None:
            return torch.arange(self.tokenizer.vocabulary_size)
        ids: dict[int, None] = {}
        for target in targets:
            pieces = self.tokenizer.pieces(target)
            tokens = [self.tokenizer.token(piece) for piece in pieces]
            unknown = tokens == [self.tokenizer.roles.get("unk_token")] and tokens != [target]
            if len(pieces) != 1 or unknown:
                shown = " ".join(tokens)
                raise UserError.of(
                    "targets",
                    code=Code.INVALID,
                    found=f"{target!r}, {len(pieces)} tokens: {shown}",
                    expected="words that are one token of this tokenizer each",
                    remedy='a leading space often matters: for byte-level BPE " pizza" is a word '
                    'within a text and "pizza" one at its beginning',
                )
            ids[pieces[0]] = None
        return torch.tensor(list(ids))

    @torch.no_grad()
    def _fill(self, text: str, top_k: int, candidates: torch.Tensor) -> list[Any]:
        ids = self.encode(text)
        masks = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        device = next(self.model.parameters()).device
        self.model.eval()
        logits = self.model(
            torch.tensor([ids], device=device), positions=torch.tensor(masks, device=device)
        )  # [masks, V]
        chances = logits.float().softmax(-1).cpu()[:, candidates]
        scores, places = chances.topk(min(top_k, len(candidates)))  # [masks, top_k]
        rows = [
            [
                self._completion(ids, mask, token, score, len(masks) == 1)
                for score, token in zip(scores_row, candidates[places_row].tolist(), strict=True)
            ]
            for mask, scores_row, places_row in zip(masks, scores.tolist(), places, strict=True)
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
                code=Code.MISSING,
                found=text,
                expected=f"at least one {self.tokenizer.mask_token}",
                remedy=f"write {self.tokenizer.mask_token} where a token is to be predicted",
            )
        if len(ids) > longest:
            raise UserError.of(
                "the text",
                code=Code.INVALID,
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
