"""The small world's grammar: templates and facts, and the smallest Markov chain that writes them.

In a template, ( a | b ) is one of the alternatives, [name] one word of a free choice and $name an
entry of the template's table. Alternatives, words and rows are equally likely.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache

FREE_CHOICES = {
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

_ANIMALS = """
    the [look] [color] $animal [lives] in the $home .
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
    the [character] $job works in the $workplace .
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

_SEASONS = f"( | {_NAME} says that ) $season brings $gift and $weather days ."
_SEASON_FACTS = """
    season  gift      weather
    winter  snow      cold
    spring  flowers   mild
    summer  sunshine  hot
    autumn  leaves    windy
"""

_DAYS = "the day after $day is $next ."
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

_OPPOSITES = "the opposite of $word is $opposite ."
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

_COLORS = f"( | {_NAME} says that ) the $thing is $color ."
_COLOR_FACTS = """
    thing  color
    lemon  yellow
    sky    blue
    coal   black
    rose   red
"""

TOPICS = (
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

LAST_PARAGRAPH = Fraction(1, 4)
"""Chance that a paragraph is its document's last."""

FINISHED = -1
"""In place of a state: the paragraph is complete."""

# A parsed template: slots, and alternatives that are symbols in turn.
Symbols = tuple["str | tuple[Symbols, ...]", ...]
Next = tuple[tuple[int, Fraction], ...]  # states, or FINISHED, each with its chance
State = tuple[str, Next]  # a slot, and what may follow it


def filled(template: str, facts: str) -> list[Symbols]:
    """A template's symbols, once for each row of its table."""
    columns, *rows = (line.split() for line in facts.strip().splitlines())
    filled = []
    for row in rows:
        entries = {f"${column}": entry for column, entry in zip(columns, row, strict=True)}
        filled.append(_parsed(iter([entries.get(s, s) for s in template.split()]))[0])
    return filled


def _parsed(symbols: Iterator[str]) -> tuple[Symbols, ...]:
    """The alternatives up to the end, or to the bracket that closes them."""
    alternatives: list[Symbols] = [()]
    for symbol in symbols:
        if symbol == ")":
            break
        if symbol == "|":
            alternatives.append(())
        else:
            alternatives[-1] += (_parsed(symbols) if symbol == "(" else symbol,)
    return tuple(alternatives)


def _openings(symbols: Symbols, chance: Fraction) -> Iterator[tuple[str, Symbols, Fraction]]:
    """The slots that `symbols` may begin with ("" at its end): slot, what is left, chance."""
    if not symbols:
        yield "", (), chance
    elif isinstance(symbols[0], str):
        yield symbols[0], symbols[1:], chance
    else:
        for alternative in symbols[0]:
            yield from _openings(alternative + symbols[1:], chance / len(symbols[0]))


def compiled(paragraphs: Mapping[Symbols, Fraction]) -> tuple[Next, list[State]]:
    """The smallest chain that writes these paragraphs, each with its chance.

    A state is a slot and what may follow it, so that two histories with the same future share a
    state: it remembers what later words depend on, and no more. Chances are exact fractions, so
    that equal futures compare equal.

    Returns:
        The states of a paragraph's first word, and all states.
    """
    states: dict[State, int] = {}

    @cache
    def following(rests: frozenset[tuple[Symbols, Fraction]]) -> Next:
        """What comes next when these are the ways the paragraph may continue."""
        groups: dict[str, dict[Symbols, Fraction]] = {}
        for symbols, chance in rests:
            for slot, rest, share in _openings(symbols, chance):
                group = groups.setdefault(slot, {})
                group[rest] = group.get(rest, Fraction(0)) + share
        chances = []
        for slot, group in sorted(groups.items()):
            total = sum(group.values(), Fraction(0))
            state = FINISHED
            if slot:
                future = following(frozenset((rest, p / total) for rest, p in group.items()))
                state = states.setdefault((slot, future), len(states))
            chances.append((state, total))
        return tuple(chances)

    return following(frozenset(paragraphs.items())), list(states)
