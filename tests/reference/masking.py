"""Masking one token at a time on Python integers: the slow, obvious twin of `mask_batch`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from reference.philox import block_of

SELECT, REPLACE, CORRUPT, BUDGET = 1, 2, 9, 10
WORD = 2**32
SPAN_SUCCESS, SPAN_LONGEST = 0.2, 10


@dataclass(frozen=True)
class Masked:
    """What `MaskedBatch` holds, in lists."""

    input_ids: list[list[int]]
    positions: list[int]
    labels: list[int]
    row_offsets: list[int]


@dataclass(frozen=True)
class Word:
    """Tokens that belong together."""

    places: list[int]
    opens: bool
    """Whether a document, or what is left of it here, begins with this word."""

    @property
    def first(self) -> int:
        return self.places[0]


@dataclass(frozen=True)
class Policy:
    """The numbers of a `MaskingConfig`."""

    rate: float
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    unit: str = "token"
    corrupt: str = "token"
    budget: str = "bernoulli"

    @property
    def select_below(self) -> int:
        return round(self.rate * WORD)


@dataclass(frozen=True)
class Draws:
    """The random words of one example."""

    seed: int
    example: int
    epoch: int

    def word(self, domain: int, place: int) -> int:
        return block_of(self.seed, domain, self.example, self.epoch, place // 4)[place % 4]

    def replacement(self, place: int, choices: Sequence[int]) -> int:
        # a block a position: its first two words are one 64-bit fraction
        high, low, _, _ = block_of(self.seed, REPLACE, self.example, self.epoch, place)
        return choices[(high * 2**32 + low) * len(choices) // 2**64]

    def length_word(self, place: int) -> int:
        return block_of(self.seed, REPLACE, self.example, self.epoch, place)[2]


@dataclass(frozen=True)
class Vocabulary:
    """The numbers of a `VocabularyInfo`."""

    size: int
    mask_id: int
    protected_ids: tuple[int, ...]
    choices: list[int] = field(init=False)

    def __post_init__(self) -> None:
        choices = [number for number in range(self.size) if not self.is_protected(number)]
        object.__setattr__(self, "choices", choices)

    def is_protected(self, number: int) -> bool:
        return number == self.mask_id or number in self.protected_ids


def span_lengths() -> list[float]:
    """The chance of each length from 1."""
    shares = [SPAN_SUCCESS * (1 - SPAN_SUCCESS) ** k for k in range(SPAN_LONGEST)]
    return [share / sum(shares) for share in shares]


def words_of(ids: list[int], starts: list[int] | None, vocabulary: Vocabulary) -> list[Word]:
    """The words of a row; `starts` is 0 within a word, 1 at its start, 2 at a document's."""
    words: list[Word] = []
    continues = False  # whether the token before is of the same document, and not protected
    for place, token in enumerate(ids):
        if vocabulary.is_protected(token):
            continues = False
            continue
        start = 1 if starts is None else int(starts[place])
        if not continues or start == 2:
            words.append(Word([place], True))
        elif start == 1:
            words.append(Word([place], False))
        else:
            words[-1].places.append(place)
        continues = True
    return words


def selected_bernoulli(words: list[Word], policy: Policy, draws: Draws) -> dict[int, int]:
    """Each selected place with the first place of its unit."""
    chosen: dict[int, int] = {}
    if policy.unit != "span":
        for word in words:
            if draws.word(SELECT, word.first) < policy.select_below:
                chosen |= dict.fromkeys(word.places, word.first)
        return chosen
    lengths = span_lengths()
    mean = sum((k + 1) * share for k, share in enumerate(lengths))
    begins = policy.rate / (policy.rate + mean * (1 - policy.rate))
    cumulative = [sum(lengths[: k + 1]) for k in range(SPAN_LONGEST)]
    survival = [sum(lengths[k:]) / mean for k in range(SPAN_LONGEST)]
    survival_cumulative = [sum(survival[: k + 1]) for k in range(SPAN_LONGEST)]
    left, origin = 0, 0
    for word in words:
        if word.opens:
            left = 0
        if left == 0:
            chance = policy.rate if word.opens else begins
            table = survival_cumulative if word.opens else cumulative
            below = [round(chance * share * WORD) for share in table]
            drawn = draws.word(SELECT, word.first)
            if drawn < below[-1]:
                left = 1 + sum(drawn >= bound for bound in below[:-1])
                origin = word.first
        if left:
            chosen |= dict.fromkeys(word.places, origin)
            left -= 1
    return chosen


def selected_exact(words: list[Word], policy: Policy, draws: Draws) -> dict[int, int]:
    """Units in random order while they fit; the one that crosses the budget comes in by chance."""
    eligible = sum(len(word.places) for word in words)
    target = Fraction(policy.select_below * eligible, WORD)
    chosen: dict[int, int] = {}
    order = sorted(range(len(words)), key=lambda n: (draws.word(SELECT, words[n].first), n))
    for number in order:
        origin = words[number].first
        if origin in chosen:
            continue
        length = 1
        if policy.unit == "span":
            drawn = draws.length_word(origin)
            cumulative = [sum(span_lengths()[: k + 1]) for k in range(SPAN_LONGEST)]
            length = 1 + sum(drawn >= round(share * WORD) for share in cumulative[:-1])
        for word in words[number : number + length]:
            if word.first in chosen or (word.opens and word.first != origin):
                break
            left = target - len(chosen)
            if len(word.places) > left:
                chance = int(left * WORD / len(word.places))
                if draws.word(BUDGET, 0) < chance:
                    chosen |= dict.fromkeys(word.places, origin)
                return chosen
            chosen |= dict.fromkeys(word.places, origin)
    return chosen


def mask_row(
    ids: list[int],
    starts: list[int] | None,
    policy: Policy,
    vocabulary: Vocabulary,
    draws: Draws,
) -> tuple[list[int], list[int]]:
    """The corrupted row, and the places that are predicted."""
    words = words_of(ids, starts if policy.unit != "token" else None, vocabulary)
    select = selected_exact if policy.budget == "exact" else selected_bernoulli
    chosen = select(words, policy, draws)
    alone = policy.unit == "token" and policy.budget == "bernoulli"
    scale = policy.rate if alone else 1.0  # whose word is known to be below the rate
    mask_below = round(scale * policy.mask_fraction * WORD)
    replace_below = round(scale * min(1.0, policy.mask_fraction + policy.random_fraction) * WORD)
    out = list(ids)
    for place, origin in chosen.items():
        decides = origin if policy.corrupt == "unit" else place
        word = draws.word(SELECT if alone else CORRUPT, decides)
        if word < mask_below:
            out[place] = vocabulary.mask_id
        elif word < replace_below:
            out[place] = draws.replacement(place, vocabulary.choices)
    return out, sorted(chosen)


def mask_batch(
    input_ids: list[list[int]],
    *,
    example_ids: list[int],
    epoch: int,
    seed: int,
    policy: Policy,
    vocabulary: Vocabulary,
    word_starts: list[list[int]] | None = None,
) -> Masked:
    """Selects and hides tokens, row by row."""
    rows, positions, labels, row_offsets = [], [], [], [0]
    for number, (ids, example) in enumerate(zip(input_ids, example_ids, strict=True)):
        starts = None if word_starts is None else word_starts[number]
        out, places = mask_row(ids, starts, policy, vocabulary, Draws(seed, example, epoch))
        rows.append(out)
        positions += [number * len(ids) + place for place in places]
        labels += [ids[place] for place in places]
        row_offsets.append(len(positions))
    return Masked(rows, positions, labels, row_offsets)
