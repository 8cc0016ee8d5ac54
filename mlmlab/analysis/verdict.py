"""What a comparison comes to, in words: which setting won, by how much, and how sure that is."""

import math
from collections.abc import Sequence

from mlmlab.analysis.significance import Compared, Difference, Outcome


def verdict(outcome: Outcome | None, names: Sequence[str]) -> str:
    """A few sentences.

    Args:
        outcome: from `compare`.
        names: of all settings.
    """
    if outcome is None:
        return "Nothing to compare: no evaluation predicted a token."
    if len(names) == 1:
        return "Nothing to compare: all runs have the same setting."
    if not outcome.others:
        return "Nothing to compare: no two settings have a seed in common."
    if not outcome.comparisons:
        return _without_test(outcome)
    if outcome.is_against_baseline:
        return _against_the_baseline(outcome)
    return _against_the_best(outcome)


def percent(difference: Difference, value: float | None = None) -> str:
    """A difference of losses as one of perplexities: +1.62%, to the digits that its error decides.

    Args:
        value: another one than the mean: an end of its interval.
    """
    share = 100 * math.expm1(difference.mean if value is None else value)
    sign = "+" if share > 0 else "−" if share < 0 else ""
    return f"{sign}{abs(share):,.{_digits(difference)}f}%"


def percent_error(difference: Difference, error: float) -> str:
    """A standard error of a difference of losses as one of perplexities: ± 0.31%."""
    if math.isnan(error):
        return "-"
    return f"± {100 * math.exp(difference.mean) * error:,.{_digits(difference)}f}%"


def interval_text(difference: Difference) -> str:
    """−0.31% to +2.14%."""
    low, high = difference.interval()
    if math.isnan(low):
        return "-"
    return f"{percent(difference, low)} to {percent(difference, high)}"


def p_text(p: float) -> str:
    """Two digits: 0.031."""
    return "-" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def _digits(difference: Difference) -> int:
    """Decimals of a percentage that show two digits of its error, or three of itself."""
    error = next(
        (e for e in (difference.seed_error, difference.document_error) if e > 0),
        abs(difference.mean) / 10,
    )
    share = 100 * math.exp(difference.mean) * error
    return min(4, max(0, 1 - math.floor(math.log10(share)))) if 0 < share < math.inf else 1


def _amount(difference: Difference) -> str:
    return percent(difference).lstrip("+−")


def _evidence(compared: Compared, outcome: Outcome) -> str:
    found = compared.difference
    if math.isnan(compared.p):
        return "(too few seeds for a test)"
    p = p_text(compared.p) if compared.p < 0.001 else f"= {p_text(compared.p)}"
    corrected = f", corrected for {outcome.comparisons} comparisons"
    return (
        f"(95% interval {interval_text(found)}; p {p} over {found.seeds} seeds"
        f"{corrected * (outcome.comparisons > 1)})"
    )


def _without_test(outcome: Outcome) -> str:
    """Two checkpoints, or more: nothing is said about settings."""
    shown = min(outcome.others, key=lambda other: abs(other.difference.mean))
    if outcome.best != outcome.reference:
        shown = next(other for other in outcome.others if other.name == outcome.best)
    found = shown.difference
    higher = shown.name if outcome.best == outcome.reference else outcome.reference
    amount, explained = _amount(found), ""
    if not math.isnan(found.document_error):
        amount += f" {percent_error(found, found.document_error)}"
        explained = (
            " ± is one standard error, from the differences between the two losses of each "
            "document."
        )
    text = f"These two checkpoints differ by {amount} in perplexity; {outcome.best} is better."
    if len(outcome.others) > 1:
        text = (
            f"Of these checkpoints, {outcome.best} has the lowest perplexity; that of {higher} "
            f"differs by {amount}."
        )
    if found.seeds > 1:
        return f"{text}{explained} All seeds differ by the same amount, so there is no test."
    return (
        f"{text}{explained} One seed each shows which checkpoint is better on these documents, and "
        "not whether a setting helps: that takes several seeds of each setting (seed=0,1,2)."
    )


def _against_the_best(outcome: Outcome) -> str:
    best, others = outcome.best, sorted(outcome.others, key=lambda other: other.difference.mean)
    decided = [other for other in others if other.is_decided]
    undecided = [other for other in others if not other.is_decided]
    nearest = (undecided or decided)[0]
    higher = f"{_amount(nearest.difference)} higher {_evidence(nearest, outcome)}"
    if not undecided:
        text = f"{best} is better than {nearest.name}, whose perplexity is {higher}."
        if len(others) > 1:
            text = (
                f"{best} is the best of {len(others) + 1} settings. The perplexity of the next, "
                f"{nearest.name}, is {higher}."
            )
        return text + _on_other_documents(nearest.difference)
    if not decided:
        which = "lower perplexity" if len(others) == 1 else "lowest perplexity"
        next_one = nearest.name if len(others) == 1 else f"the next, {nearest.name},"
        return (
            f"Not decided: {best} has the {which}, but that of {next_one} is {higher}, a "
            "difference that seeds alone can make."
        )
    return (
        f"{best} has the lowest perplexity. It is better than {_listed(decided)}. Whether it is "
        f"better than {_listed(undecided)} is not decided: the perplexity of {nearest.name} is "
        f"{higher}."
    )


def _against_the_baseline(outcome: Outcome) -> str:
    lowest = min(outcome.others, key=lambda other: other.difference.mean)
    others = [other for other in outcome.others if other is not lowest]
    side = "lower" if lowest.difference.mean < 0 else "higher"
    amount = f"{_amount(lowest.difference)} {side} {_evidence(lowest, outcome)}"
    if lowest.is_decided and lowest.difference.mean < 0:
        texts = [
            f"{lowest.name} is better than the baseline, {outcome.reference}: its perplexity is "
            f"{amount}.{_on_other_documents(lowest.difference)}"
        ]
    else:
        texts = [
            f"No setting is seen to be better than the baseline, {outcome.reference}: the "
            f"perplexity of {lowest.name} is {amount}."
        ]
    for word, names in (
        ("Better, too", [o for o in others if o.is_decided and o.difference.mean < 0]),
        ("Worse", [o for o in others if o.is_decided and o.difference.mean > 0]),
        ("Not decided", [o for o in others if not o.is_decided]),
    ):
        texts += [f"{word}: {_listed(names)}."] if names else []
    return " ".join(texts)


def _on_other_documents(difference: Difference) -> str:
    """A warning, where the test documents are too few to speak for others."""
    if not abs(difference.mean) < 1.96 * difference.total_error:
        return ""
    error = percent_error(difference, difference.total_error)
    return (
        " It may not hold on other documents: with what these contribute, the standard error is "
        f"{error}."
    )


def _listed(compared: Sequence[Compared]) -> str:
    names = [one.name for one in compared]
    if len(names) > 3:
        names = [*names[:2], f"{len(names) - 2} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
