"""What the signals of a run mean, and that they mean again afterwards what they meant before."""

import signal
import time

import pytest

from mlmlab.runtime.signals import Interruptions

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def _send(number: int) -> None:
    """A signal that must not end the run at once (pytest itself would end with it)."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        pytest.fail("the run ends at once")


def test_the_first_signal_is_the_one_that_stopped_the_run() -> None:
    with Interruptions() as interruptions:
        assert interruptions.requests().stops == 0
        _send(signal.SIGTERM)
        _send(signal.SIGINT)  # no second Ctrl-C: the first was none
        assert interruptions.signal == signal.SIGTERM
        assert interruptions.requests().stops == 1


def test_a_second_ctrl_c_raises() -> None:
    with Interruptions() as interruptions:
        _send(signal.SIGINT)
        assert interruptions.is_stop_asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_under_torchrun_a_second_ctrl_c_raises_only_if_it_is_no_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Interruptions():
        _send(signal.SIGINT)
        _send(signal.SIGINT)
        now += 3
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_requests_for_checkpoints_are_counted_and_never_taken_back() -> None:
    with Interruptions() as interruptions:
        for count in (1, 2):
            _send(signal.SIGUSR1)
            assert [interruptions.requests().saves for _ in range(2)] == [count, count]
        assert not interruptions.is_stop_asked


def test_the_clock_asks_for_a_checkpoint_once_each_interval() -> None:
    now = 1000.0
    interruptions = Interruptions(2.0, lambda: now)
    seen = []
    for seconds in (0, 119, 1, 0, 119, 1, 600, 0, 119):  # after a long evaluation: once
        now += seconds
        seen.append(interruptions.requests().saves)
    assert seen == [0, 0, 1, 1, 1, 2, 3, 3, 3]


def test_without_an_interval_the_clock_asks_for_nothing() -> None:
    now = 0.0
    interruptions = Interruptions(None, lambda: now)
    now = 1e9
    assert interruptions.requests().saves == 0


def test_signals_and_the_clock_are_counted_together() -> None:
    now = 0.0
    with Interruptions(1.0, lambda: now) as interruptions:
        _send(signal.SIGUSR1)
        now = 60.0
        assert interruptions.requests().saves == 2


def test_after_the_run_signals_mean_what_they_meant_before() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with Interruptions():
        assert all(signal.getsignal(n) != b for n, b in zip(NUMBERS, before, strict=True))
    assert [signal.getsignal(number) for number in NUMBERS] == before
