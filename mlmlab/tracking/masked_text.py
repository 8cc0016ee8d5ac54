"""A masked sequence as a person reads it: what the policy did to each token is marked.

T positions   M predicted tokens
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlmlab.data.loader import TrainLoader
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.tracking.style import Style

_WIDTH = 79
_EXAMPLES = 3
_MARKS = {
    # state: what is around the token, its style, and its explanation
    "masked": ("[", "]", Style.MASKED, "replaced by the mask"),
    "random": ("{", "}", Style.RANDOM, "replaced by another token: old>new"),
    "kept": ("<", ">", Style.KEPT, "left as it is, and predicted all the same"),
    "protected": ("(", ")", Style.LABEL, "never selected"),
}
Paint = Callable[[str, Style], str]


def unpainted(text: str, style: Style) -> str:
    """The text as it is: for what is no terminal."""
    return text


def legend(paint: Paint = unpainted) -> str:
    """What the marks mean, a line for each."""
    return "\n".join(
        f"{paint(f'{before}{state}{after}', style)} {text}"
        for state, (before, after, style, text) in _MARKS.items()
    )


@dataclass(frozen=True, eq=False)
class MaskedText:
    """A sequence before and after masking."""

    original: NDArray[Any]
    """Integers `[T]`."""
    corrupted: NDArray[Any]
    """Integers `[T]`, what the model sees."""
    positions: NDArray[np.int64]
    """`[M]`, of the predicted tokens."""
    tokenizer: Tokenizer

    @cached_property
    def _states(self) -> list[str | None]:
        """What became of each token; None for one that was left alone."""
        protected = self.tokenizer.vocabulary().protected
        states: list[str | None] = ["protected" if protected[n] else None for n in self.original]
        for place in self.positions:
            is_mask = self.corrupted[place] == self.tokenizer.mask_id
            is_kept = self.corrupted[place] == self.original[place]
            states[place] = "masked" if is_mask else "kept" if is_kept else "random"
        return states

    def counts(self) -> str:
        """How many tokens were selected, and what became of them."""
        tokens = sum(state != "protected" for state in self._states)
        counts = {state: self._states.count(state) for state in ("masked", "random", "kept")}
        selected = sum(counts.values())
        share = selected / tokens if tokens else 0.0
        named = ", ".join(f"{count} {state}" for state, count in counts.items())
        return f"{selected} of {tokens} tokens selected ({share:.1%}): {named}"

    def marked(self, paint: Paint = unpainted) -> str:
        """The text in lines, each token with its mark; without spaces inside a word."""
        words: list[tuple[int, str]] = []  # printed width, and the text with its colours
        for place, state in enumerate(self._states):
            plain = self._token(self.original[place])
            if state == "random":
                plain += f">{self._token(self.corrupted[place])}"
            painted = plain
            if state is not None:
                before, after, style, _ = _MARKS[state]
                plain = f"{before}{plain}{after}"
                painted = paint(plain, style)
            if self._begins_word(place):
                words.append((len(plain), painted))
            else:
                width, text = words.pop()
                words.append((width + len(plain), text + painted))
        lines: list[str] = []
        used = _WIDTH
        for width, text in words:
            if used + 1 + width > _WIDTH:
                lines.append(text)
                used = width
            else:
                lines[-1] += f" {text}"
                used += 1 + width
        return "\n".join(lines)

    def _begins_word(self, place: int) -> bool:
        """Whether the tokenizer writes a space before a token; special tokens have one on either
        side."""
        if place == 0 or "protected" in self._states[place - 1 : place + 1]:
            return True
        before, token = (int(n) for n in self.original[place - 1 : place + 1])
        both = self.tokenizer.decode([before, token], skip_special_tokens=False)
        rest = both[len(self.tokenizer.decode([before], skip_special_tokens=False)) :]
        return rest[:1].isspace()

    def _token(self, number: int) -> str:
        """A token as a person writes it: without the sign for a space before it, or for none."""
        text = self.tokenizer.decode([int(number)], skip_special_tokens=False)
        return text.strip().removeprefix("##")


def first_examples(loader: TrainLoader, tokenizer: Tokenizer) -> str:
    """The first examples of a run's first batch, as its model sees them, and what the marks mean;
    nothing for a custom objective that makes sequences of another shape."""
    epoch, example_ids = loader.order.batch(0)
    example_ids = example_ids[:_EXAMPLES]
    examples = loader.blocks.take(example_ids)
    original = examples.input_ids  # [B, T]
    micro = loader.prepare(example_ids, epoch, step=0)
    corrupted, positions, _, row_offsets = (array.numpy() for array in micro.masked)
    if corrupted.shape != original.shape:
        return ""
    width = original.shape[1]
    parts = [legend()]
    for row, ids in enumerate(original):
        length = len(ids) if examples.lengths is None else examples.lengths[row]
        places = positions[row_offsets[row] : row_offsets[row + 1]] - row * width  # [M of the row]
        text = MaskedText(ids[:length], corrupted[row, :length], places, tokenizer)
        parts.append(f"{text.counts()}\n{text.marked()}")
    return "\n\n".join(parts)
