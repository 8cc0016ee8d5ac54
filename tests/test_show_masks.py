"""What `show_masks` prints is what the kernel did."""

import re
from pathlib import Path

import numpy as np
import pytest
from test_word_starts import TEXTS, TOKENIZERS

from mlmlab.masking import UNITS, MaskingConfig, mask_batch
from mlmlab.show_masks import main
from mlmlab.tracking.style import styled

WORDPIECE = TOKENIZERS["WordPiece"]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out.split("\n\n", 1)[1]


def test_the_masking_groups_keys_are_the_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WORDPIECE().save(tmp_path)
    common = (" ".join(TEXTS[:4]), "--tokenizer", str(tmp_path))
    options = ("--unit", "span", "--corrupt", "unit", "--budget", "exact", "--rate", "0.5")
    by_keys = shown(capsys, *common, "masking=spanbert", "masking.rate=0.5")
    assert by_keys == shown(capsys, *common, *options)
    assert by_keys != shown(capsys, *common, "masking.rate=0.5")


@pytest.mark.parametrize("unit", UNITS)
def test_the_marks_are_the_kernels_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unit: str
) -> None:
    tokenizer = WORDPIECE()
    tokenizer.save(tmp_path)
    text = " ".join(TEXTS[:4])
    output = shown(capsys, text, "--tokenizer", str(tmp_path), "--unit", unit, "--rate", "0.5")
    starts = np.array(tokenizer.word_starts_batch([text]))
    batch = mask_batch(
        np.array([tokenizer.encode(text)]), example_ids=np.zeros(1, np.int64), epoch=0, seed=0,
        config=MaskingConfig(unit=unit, rate=0.5), vocabulary=tokenizer.vocabulary(),
        word_starts=None if unit == "token" else starts,
    )  # fmt: skip
    head, body = output.split("\n", 1)
    hidden = int((batch.input_ids == tokenizer.mask_id).sum())
    assert head.startswith(f"{len(batch.labels)} of {batch.input_ids.size - 2} tokens selected")
    assert f"{hidden} masked" in head
    assert len(re.findall(r"\[\w+|\[[^\w\s]\]", body)) >= hidden
    assert body.startswith("([CLS])")
    assert max(map(len, output.splitlines())) <= 79
    without_marks = re.sub(r">[^\s}]+}", "}", body)
    letters = re.sub(r"[^a-z]", "", without_marks.replace("[CLS]", "").replace("[SEP]", ""))
    assert letters == re.sub(r"[^a-z]", "", text.lower().replace("ü", "u"))


def test_every_epoch_has_its_own_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    WORDPIECE().save(tmp_path)
    output = shown(capsys, TEXTS[0], "--tokenizer", str(tmp_path), "--epochs", "3", "--rate", "0.5")
    blocks = [block.split("\n", 1)[1] for block in output.strip().split("\n\n")]
    assert len(set(blocks)) == 3
    assert "epoch 2: " in output


def test_a_terminal_shows_the_marks_in_colour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    WORDPIECE().save(tmp_path)
    monkeypatch.setattr("mlmlab.show_masks.styled", lambda text, style: f"*{text}*")
    assert styled("x", None) == "x"  # type: ignore[arg-type]
    assert "*([CLS])*" in shown(capsys, "a token", "--tokenizer", str(tmp_path))
