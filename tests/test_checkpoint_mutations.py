"""A damaged checkpoint folder works or is refused with a complete message, whatever the damage."""

from pathlib import Path

import pytest
from mutations import PLACES, Outcome, outcomes


def _refuse_others(found: list[Outcome]) -> None:
    bad = [outcome for outcome in found if not outcome.is_fine]
    assert bad == []
    assert {outcome.verdict for outcome in found} == {"works", "refused"}


def test_mutated_checkpoints_work_or_are_refused_by_name(tmp_path: Path) -> None:
    _refuse_others(list(outcomes(range(5 * len(PLACES)), tmp_path)))


@pytest.mark.slow
def test_eight_thousand_mutated_checkpoints_work_or_are_refused_by_name(tmp_path: Path) -> None:
    _refuse_others(list(outcomes(range(8000), tmp_path)))
