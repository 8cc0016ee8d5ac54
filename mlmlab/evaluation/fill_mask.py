"""Fill-mask: the model's best tokens for each mask of a text, as the Hub's pipeline gives them.

B texts   T positions   V vocabulary   M masks
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypedDict

import torch

from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.model import MaskedLanguageModel

_BATCH_SIZE = 32
"""Texts per forward pass."""


class Completion(TypedDict):
    """A token for a mask."""

    score: float
    """Its probability."""
    token: int
    """Its id."""
    token_str: str
    sequence: str
    """The text with this token in place of the mask."""


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
        """What `complete` gives, in the shapes of the Hub's pipeline.

        Returns:
            For a text with one mask a list of completions, best first; with several masks a list
            of such lists; for several texts a list of those.
        """
        several = [texts] if isinstance(texts, str) else texts
        answers = [
            masks[0] if len(masks) == 1 else masks
            for masks in self.complete(several, top_k, targets)
        ]
        return answers[0] if isinstance(texts, str) else answers

    @torch.no_grad()
    def complete(
        self, texts: Sequence[str], top_k: int = 5, targets: Sequence[str] | None = None
    ) -> list[list[list[Completion]]]:
        """The most likely tokens for each mask, each mask filled alone.

        Args:
            texts: each with at least one mask token.
            top_k: completions per mask.
            targets: rank only these tokens; their scores stay shares of the full vocabulary.

        Returns:
            For each text, for each of its masks, the completions, best first.

        Raises:
            UserError: a text without a mask token, or longer than the model's positions; a target
                that is not one token.
        """
        candidates = self._candidates(targets)
        rows = [self.encode(text) for text in texts]
        found = []
        with _evaluation_mode(self.model):
            for start in range(0, len(rows), _BATCH_SIZE):
                found += self._complete(rows[start : start + _BATCH_SIZE], top_k, candidates)
        return found

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

    def _complete(
        self, rows: list[list[int]], top_k: int, candidates: torch.Tensor
    ) -> list[list[list[Completion]]]:
        batch = self.tokenizer.pad(rows)
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]  # [B, T]
        mask_id, width = self.tokenizer.mask_id, input_ids.shape[1]
        masks = [[place for place, token in enumerate(ids) if token == mask_id] for ids in rows]
        positions = [row * width + place for row, places in enumerate(masks) for place in places]
        device = next(self.model.parameters()).device
        logits = self.model(
            input_ids.to(device),
            None if attention_mask.all() else attention_mask.to(device),
            positions=torch.tensor(positions, device=device),
        )  # [M, V]
        chances = logits.float().softmax(-1).cpu()[:, candidates]  # [M, candidates]
        scores, best = chances.topk(min(top_k, len(candidates)))  # [M, top_k]
        ranked = zip(scores.tolist(), candidates[best].tolist(), strict=True)
        return [
            [
                [
                    self._completion(ids, place, token, score, len(places) == 1)
                    for score, token in zip(*next(ranked), strict=True)
                ]
                for place in places
            ]
            for ids, places in zip(rows, masks, strict=True)
        ]

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


@contextmanager
def _evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
