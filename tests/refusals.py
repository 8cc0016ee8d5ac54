"""What tests claim of refused input: where, the code and what is named. The words are in
messages.txt alone, so that they can be improved without turning other tests red."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mlmlab.errors import Code, Problem, UserError

Refusal = tuple[str, Code]
"""Where the input is wrong, and how."""


def summary(problem: Problem) -> Refusal:
    """Where (the key or file, without what follows in "KEY: there is no such key") and code, of a
    problem that is complete in its four parts."""
    assert problem.where
    assert problem.found
    assert problem.expected
    assert problem.remedy
    return problem.where.partition(": ")[0], problem.code


def check(problem: Problem, where: object, code: Code, *named: object) -> None:
    """Asserts where and code, and that the values, keys or files in `named` occur in the message.

    Args:
        where: the key or file, exactly.
    """
    assert summary(problem) == (str(where), code)
    for name in named:
        assert str(name) in f"{problem.found}\n{problem.expected}\n{problem.remedy}"


@contextmanager
def refusal(where: object, code: Code, *named: object) -> Iterator[None]:
    """Expects a `UserError` with one problem (see `check`) from the block."""
    with pytest.raises(UserError) as error:
        yield
    (problem,) = error.value.problems
    check(problem, where, code, *named)


@contextmanager
def refusals(*expected: Refusal) -> Iterator[None]:
    """Expects a `UserError` with these problems, in this order, from the block."""
    with pytest.raises(UserError) as error:
        yield
    assert [summary(problem) for problem in error.value.problems] == list(expected)
