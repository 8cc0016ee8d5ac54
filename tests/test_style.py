"""Colours are for a person at a terminal who has not declined them."""

import io

import pytest

from mlmlab.tracking.style import Style, styled


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_shows_the_colour_and_then_its_own_again() -> None:
    assert styled("text", Style.ERROR, Terminal()) == "\x1b[1;31mtext\x1b[0m"


def test_a_file_or_a_pipe_gets_the_text_alone() -> None:
    assert styled("text", Style.ERROR, io.StringIO()) == "text"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_whoever_declines_colours_gets_none(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert styled("text", Style.ERROR, Terminal()) == "text"


def test_an_empty_no_color_declines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert styled("text", Style.GOOD, Terminal()) != "text"
