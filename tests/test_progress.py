"""What a person sees of a running run."""

import re

import pytest

from mlmlab.tracking import progress_bar
from mlmlab.tracking.progress_bar import ProgressBar


@pytest.mark.parametrize("first", [0, 800])
def test_the_seconds_left_follow_from_the_steps_of_this_process(
    first: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(progress_bar.time, "perf_counter", lambda: now)
    shown = ProgressBar(1000, first)
    for _ in range(100):
        shown.advance()
    now += 200.0  # two seconds per step
    shown.show(1.0, 2.7, 1000.0)
    seconds = [int(text) for text in re.findall(r"(\d+) s left", capsys.readouterr().out)]
    assert seconds == [2 * (900 - first)]
