"""The built-in corpus: a small world in plain English, whose optimum is known exactly.

    S hidden states   W words   V token ids

A few paragraph templates, about animals, jobs, errands, seasons and days, are compiled into a
hidden Markov chain. Facts are fixed (the cow lives in the barn and eats grass), adjectives, names
and the like are free choices. The chain's state is the memory of what the paragraph is about, so
that a fact or a pronoun can be predicted from words further away.

Two things follow from the chain: documents, as a pure function of (seed, index), and, through
`TokenChain`, the exact lowest loss that any model can reach (`mlmlab.masking.floor`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from mlmlab.random import Domain, uniforms

# The grammar. In a template, ( a | b ) is one of the alternatives, [name] one word of a free choice
# and $name an entry of the template's table. Alternatives, words and rows are equally likely.

_FREE_CHOICES = {
    "[adverb]": "alone early gladly happily loudly often outside quickly quietly slowly today",
    "[character]": "busy cheerful clever famous honest kind modest patient polite proud young",
    "[color]": "black brown gray striped white",
    "[day]": "afternoon day evening morning night week",
    "[find]": "berries flowers herbs mushrooms nuts",
    "[fruit]": "apples cherries grapes peaches pears plums",
    "[goes]": "drives goes returns runs walks",
    "[lives]": "hides lives rests sleeps stays",
    "[look]": "brave friendly gentle happy hungry lazy lonely noisy playful tired",
    "[man]": "adam ben carl david hugo leo max oscar paul tom",
    "[meets]": "follows greets helps invites visits",
    "[near]": "behind beside near opposite",
    "[new]": "beautiful fine new simple special",
    "[number]": "two three four five six seven eight nine ten",
    "[reading]": "books letters poems stories",
    "[ship]": "boats ducks ships swans",
    "[spot]": "big famous lovely old quiet small",
    "[tasty]": "fresh good sweet warm",
    "[town]": "bridge church fountain garden mill river station tower",
    "[woman]": "alice anna clara ella emma helen julia maria nina ruth",
}

_NAME = "( [woman] | [man] )"
_SAYS = f"( | {_NAME} ( says | thinks | knows ) that )"

_ANIMALS = f"""
    {_SAYS} the [look] [color] $animal [lives] in the $home .
    it ( eats [tasty] $food | must $sound ) every [day] .
"""
_ANIMAL_FACTS = """
    animal  home    food     sound
    cow     barn    grass    moo
    horse   stable  hay      neigh
    dog     house   bones    bark
    mouse   hole    cheese   squeak
    bear    cave    honey    growl
    frog    pond    flies    croak
    owl     forest  mice     hoot
    monkey  jungle  bananas  chatter
"""

_JOBS = f"""
    {_SAYS} the [character] $job works in the $workplace .
    $pronoun $makes [new] $product ( [adverb] | for {_NAME} ) .
"""
_JOB_FACTS = """
    job        workplace  pronoun  makes   product
    baker      bakery     he       bakes   bread
    carpenter  workshop   she      builds  tables
    cook       kitchen    he       cooks   soup
    doctor     hospital   she      treats  patients
    farmer     field      she      grows   corn
    painter    studio     he       paints  pictures
"""

_ERRANDS = """
    ( [woman] [goes] to the $place . she | [man] [goes] to the $place . he )
    $verb [number] [new] $goods [near] the [spot] [town] .
"""
_ERRAND_FACTS = """
    place    verb   goods
    market   buys   [fruit]
    library  reads  [reading]
    forest   finds  [find]
    harbor   sees   [ship]
"""

_MEETINGS = f"{_NAME} [meets] [number] [character] $people in the [spot] $place ."
_MEETING_FACTS = """
    people    place
    doctors   hospital
    pupils    school
    sailors   harbor
    singers   theater
    soldiers  castle
"""

_SEASONS = f"{_SAYS} $season brings $gift and $weather days ."
_SEASON_FACTS = """
    season  gift      weather
    winter  snow      cold
    spring  flowers   mild
    summer  sunshine  hot
    autumn  leaves    windy
"""

_DAYS = f"{_SAYS} the day after $day is $next ."
_DAY_FACTS = """
    day        next
    monday     tuesday
    tuesday    wednesday
    wednesday  thursday
    thursday   friday
    friday     saturday
    saturday   sunday
    sunday     monday
"""

_OPPOSITES = f"{_SAYS} the opposite of $word is $opposite ."
_OPPOSITE_FACTS = """
    word   opposite
    hot    cold
    cold   hot
    long   short
    short  long
    rich   poor
    poor   rich
    early  late
    late   early
"""

_COLORS = f"{_SAYS} the $thing is $color ."
_COLOR_FACTS = """
    thing  color
    lemon  yellow
    sky    blue
    coal   black
    rose   red
"""

_TOPICS = (
    (30, _ANIMALS, _ANIMAL_FACTS),
    (25, _JOBS, _JOB_FACTS),
    (16, _ERRANDS, _ERRAND_FACTS),
    (14, _MEETINGS, _MEETING_FACTS),
    (8, _SEASONS, _SEASON_FACTS),
    (10, _DAYS, _DAY_FACTS),
    (10, _OPPOSITES, _OPPOSITE_FACTS),
    (6, _COLORS, _COLOR_FACTS),
)
"""Weight, template and facts of each kind of paragraph."""

_LAST_PARAGRAPH = Fraction(1, 4)
"""Chance that a paragraph is its document's last."""

_FINISHED = -1
"""In place of a state: the paragraph is complete."""

# A parsed template: slots, and alternatives that are symbols in turn.
_Symbols = tuple["str | tuple[_Symbols, ...]", ...]
_Next = tuple[tuple[int, Fraction], ...]  # states, or _FINISHED, each with its chance
_State = tuple[str, _Next]  # a slot, and what may follow it

_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class World:
    """A hidden Markov chain that writes documents."""

    words: tuple[str, ...]
    """Every word and punctuation mark, sorted; no special tokens."""
    initial: NDArray[np.float64]
    """`[S]`, chance that a document's first word comes from this state."""
    transition: NDArray[np.float64]
    """`[S, S]`, chance of the next word's state (column) after this one (row)."""
    end: NDArray[np.float64]
    """`[S]`, chance that the document ends here; a row of `transition` and `end` add up to 1."""
    emission: NDArray[np.float64]
    """`[S, W]`, chance of each word; rows add up to 1."""

    def documents(self, count: int, seed: int) -> Iterator[str]:
        """Draws documents: lower-case words and punctuation, separated by single spaces.

        Document i is a function of (seed, i): its word t takes random number 2 t for the state (or
        the end of the document) and number 2 t + 1 for the word.
        """
        outside = len(self.end)  # before the first word (as a row), after the last (as a column)
        moves = _Sampler(
            np.block([[self.transition, self.end[:, None]], [self.initial, np.zeros(1)]])
        )
        emissions = _Sampler(self.emission)
        words = np.array(self.words, object)
        for first in range(0, count, _CHUNK):
            identities = np.arange(first, min(first + _CHUNK, count))
            numbers = uniforms(seed, Domain.WORLD, identities, 256)
            writing = np.arange(len(identities))  # rows of the documents that go on
            state = np.full(len(identities), outside)
            owners: list[NDArray[np.int64]] = []
            written: list[NDArray[np.int64]] = []
            while True:
                place = 2 * len(written)
                if place == numbers.shape[1]:
                    numbers = uniforms(seed, Domain.WORLD, identities, 2 * place)
                state = moves.draw(state, numbers[writing, place])
                writing, state = writing[state != outside], state[state != outside]
                if not writing.size:
                    break
                owners.append(writing)
                written.append(emissions.draw(state, numbers[writing, place + 1]))
            owner = np.concatenate(owners)
            order = np.argsort(owner, kind="stable")
            ends = np.cumsum(np.bincount(owner))
            for document in np.split(words[np.concatenate(written)[order]], ends[:-1]):
                yield " ".join(document)

    def token_chain(
        self, word_ids: Mapping[str, int], vocabulary_size: int, cls_id: int, sep_id: int
    ) -> "TokenChain":
        """The endless stream of documents as token ids, each between `cls_id` and `sep_id`.

        Args:
            word_ids: the id of every word; words may share one.

        Raises:
            ValueError: a word without an id.
        """
        missing = [word for word in self.words if word not in word_ids]
        if missing:
            raise ValueError(f"words without an id: {' '.join(missing[:10])}")
        states = len(self.end)
        cls, sep = states, states + 1
        transition = np.zeros((states + 2, states + 2))
        transition[:states, :states] = self.transition
        transition[:states, sep] = self.end
        transition[sep, cls] = 1.0
        transition[cls, :states] = self.initial
        emission = np.zeros((states + 2, vocabulary_size))
        for word, chances in zip(self.words, self.emission.T, strict=True):
            emission[:states, word_ids[word]] += chances
        emission[cls, cls_id] = emission[sep, sep_id] = 1.0
        # Visits to each state within a document, of expected length visits.sum(): the share of the
        # stream that the state takes up.
        visits = np.linalg.solve(np.eye(states) - self.transition.T, self.initial)
        visits = np.append(visits, (1.0, 1.0))
        return TokenChain(visits / visits.sum(), transition, emission)


@dataclass(frozen=True, eq=False)
class TokenChain:
    """The world's chain over token ids, special tokens included; S' is S and two more states."""

    start: NDArray[np.float64]
    """`[S']`, the stationary distribution: a block starts anywhere in the endless stream."""
    transition: NDArray[np.float64]
    """`[S', S']`, rows add up to 1."""
    emission: NDArray[np.float64]
    """`[S', V]`, rows add up to 1."""


class _Sampler:
    """Draws a column of a matrix of chances, for many rows at once, by one binary search."""

    def __init__(self, chances: NDArray[np.float64]) -> None:
        rows, self._columns = np.nonzero(chances)
        last_of_row = np.append(rows[1:] != rows[:-1], True)
        cumulative = np.where(last_of_row, 1.0, np.cumsum(chances, axis=1)[rows, self._columns])
        self._upper = rows + cumulative  # ascending, since row r takes up the interval r ... r + 1

    def draw(self, row: NDArray[np.int64], number: NDArray[np.float64]) -> NDArray[np.int64]:
        """The column of each row at `number`, both `[N]`."""
        return self._columns[np.searchsorted(self._upper, row + number, side="right")]


@lru_cache(maxsize=1)
def small_world() -> World:
    """The built-in corpus: the grammar above as a chain."""
    total = sum(weight for weight, _, _ in _TOPICS)
    paragraphs: dict[_Symbols, Fraction] = {}
    for weight, template, facts in _TOPICS:
        filled = _filled(template, facts)
        paragraphs |= dict.fromkeys(filled, Fraction(weight, total * len(filled)))
    first, states = _compiled(paragraphs)
    choices = [_FREE_CHOICES.get(slot, slot).split() for slot, _ in states]
    words = sorted({word for choice in choices for word in choice})
    initial, end = np.zeros(len(states)), np.zeros(len(states))
    transition = np.zeros((len(states), len(states)))
    emission = np.zeros((len(states), len(words)))
    for state, chance in first:
        initial[state] = chance
    for state, (_, following) in enumerate(states):
        for successor, chance in following:
            if successor == _FINISHED:
                end[state] = chance * _LAST_PARAGRAPH
                transition[state] += float(chance * (1 - _LAST_PARAGRAPH)) * initial
            else:
                transition[state, successor] += float(chance)
        for word in choices[state]:
            emission[state, words.index(word)] = 1 / len(choices[state])
    return World(tuple(words), initial, transition, end, emission)


def _filled(template: str, facts: str) -> list[_Symbols]:
    """A template's symbols, once for each row of its table."""
    columns, *rows = (line.split() for line in facts.strip().splitlines())
    filled = []
    for row in rows:
        entries = {f"${column}": entry for column, entry in zip(columns, row, strict=True)}
        filled.append(_parsed(iter([entries.get(s, s) for s in template.split()]))[0])
    return filled


def _parsed(symbols: Iterator[str]) -> tuple[_Symbols, ...]:
    """The alternatives up to the end, or to the bracket that closes them."""
    alternatives: list[_Symbols] = [()]
    for symbol in symbols:
        if symbol == ")":
            break
        if symbol == "|":
            alternatives.append(())
        else:
            alternatives[-1] += (_parsed(symbols) if symbol == "(" else symbol,)
    return tuple(alternatives)


def _openings(symbols: _Symbols, chance: Fraction) -> Iterator[tuple[str, _Symbols, Fraction]]:
    """The slots that `symbols` may begin with ("" at its end): slot, what is left, chance."""
    if not symbols:
        yield "", (), chance
    elif isinstance(symbols[0], str):
        yield symbols[0], symbols[1:], chance
    else:
        for alternative in symbols[0]:
            yield from _openings(alternative + symbols[1:], chance / len(symbols[0]))


def _compiled(paragraphs: Mapping[_Symbols, Fraction]) -> tuple[_Next, list[_State]]:
    """The smallest chain that writes these paragraphs, each with its chance.

    A state is a slot and what may follow it, so that two histories with the same future share a
    state: it remembers what later words depend on, and no more. Chances are exact fractions, so
    that equal futures compare equal.

    Returns:
        The states of a paragraph's first word, and all states.
    """
    states: dict[_State, int] = {}

    @cache
    def following(rests: frozenset[tuple[_Symbols, Fraction]]) -> _Next:
        """What comes next when these are the ways the paragraph may go on."""
        groups: dict[str, dict[_Symbols, Fraction]] = {}
        for symbols, chance in rests:
            for slot, rest, share in _openings(symbols, chance):
                group = groups.setdefault(slot, {})
                group[rest] = group.get(rest, Fraction(0)) + share
        chances = []
        for slot, group in sorted(groups.items()):
            total = sum(group.values(), Fraction(0))
            state = _FINISHED
            if slot:
                future = following(frozenset((rest, p / total) for rest, p in group.items()))
                state = states.setdefault((slot, future), len(states))
            chances.append((state, total))
        return tuple(chances)

    return following(frozenset(paragraphs.items())), list(states)
