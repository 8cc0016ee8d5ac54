"""The words for the config's keys: --help GROUP, and docs/config.md."""

import runpy
import sys
from pathlib import Path

import pytest

import mlmlab
from mlmlab import evaluate, train
from mlmlab.cli.commands import EVALUATE, TRAIN
from mlmlab.cli.keys import keys
from mlmlab.errors import UserError

ROOT = Path(mlmlab.__file__).parents[1]


def test_every_key_says_what_it_decides_and_what_it_takes() -> None:
    for kind in (TRAIN.kind, EVALUATE.kind):
        for key in keys(kind):
            assert key.text, f"{key.name} has no docstring"
            assert key.expected


def test_the_page_of_the_docs_is_what_the_dataclasses_say() -> None:
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    page = runpy.run_path(str(ROOT / "docs" / "config.py"))["page"]
    assert written == page(), "python docs/config.py > docs/config.md"


def helped(
    main: object, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> str:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    assert callable(main)
    main()
    output = capsys.readouterr()
    assert output.err == ""
    assert max(map(len, output.out.splitlines())) <= 80
    return str(output.out)


def test_help_describes_the_keys_of_a_group_with_the_values_they_would_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(
        train.main, "--help", "masking", "masking=spanbert", monkeypatch=monkeypatch, capsys=capsys
    )
    assert text.startswith("Options (masking=OPTION): bert, ")
    assert "\nmasking.unit=span\n    token; word: all tokens of a word together" in text
    assert "eval." not in text
    assert "Takes a number, at least 0 and at most 1." in " ".join(text.split())


def test_help_describes_single_keys_and_nested_groups(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("-h", "out", "eval.masking", "data.path=my.txt")
    text = helped(evaluate.main, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert text.startswith("out=null\n    A folder that keeps the result")
    assert "Options (masking@eval.masking=OPTION): bert, " in text


def test_help_on_a_misspelt_group_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help", "maskin"])
    with pytest.raises(UserError, match="--help masking"):
        train.main()
