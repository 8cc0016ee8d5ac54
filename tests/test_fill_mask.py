"""FillMask answers as the Hub's fill-mask pipeline does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference.hub_models import write_reference
from refusals import refusal

import mlmlab
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import train_tokenizer
from mlmlab.errors import Code
from mlmlab.fill_mask import main

TEXTS = [
    "The cow lives in the {m}.",
    "{m} is the beginning.",
    "{m}",
    "The end is {m}",
    "The end is{m}",
    "The end is {m} .",
    "The end is {m}, and so on",
    "pre{m}post",
    "The {m} sat on the {m}.",
    "{m} {m}",
    "{m}{m}",
    "{m} in the middle {m} and last {m}",
    "Ünïcödé and 数字, then {m}!",
    "emoji 🙂 {m} 🙂",
    "  spaces   around {m}   here ",
    "UPPER CASE {m} TEXT",
    "line\nbreak {m}\ttab",
]
CORPUS = [
    "the cow lives in the barn and the dog sat on the mat",
    "Every beginning has an end, and every end has a beginning!",
    "unicode: Ünïcödé 数字 emoji 🙂",
] * 20


@pytest.fixture(scope="module", params=["bert", "roberta", "modernbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    kind = TokenizerKind.WORDPIECE if request.param == "bert" else TokenizerKind.BPE
    tokenizer = train_tokenizer(CORPUS, kind, 400)
    sizes = {
        "vocab_size": tokenizer.vocabulary_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 50,
        "pad_token_id": tokenizer.pad_id,
    }
    config = {
        "bert": transformers.BertConfig,
        "roberta": transformers.RobertaConfig,
        "modernbert": transformers.ModernBertConfig,
    }[request.param]
    write_reference(request.param, folder, config(**sizes))
    tokenizer.save(folder)
    return folder


def _assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            _assert_same(a, b)
    else:
        assert {k: ours[k] for k in ("token", "token_str", "sequence")} == {
            k: theirs[k] for k in ("token", "token_str", "sequence")
        }
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_answers_are_those_of_the_pipeline(folder: Path) -> None:
    import transformers

    pipeline = transformers.pipeline("fill-mask", model=str(folder), tokenizer=str(folder))
    model, tokenizer = mlmlab.load_pretrained(str(folder))
    fill = mlmlab.FillMask(model, tokenizer)
    texts = [text.format(m=tokenizer.mask_token) for text in TEXTS]
    for text in texts:
        for top_k in (1, 5):
            _assert_same(fill(text, top_k=top_k), pipeline(text, top_k=top_k))
    _assert_same(fill(texts[:3]), pipeline(texts[:3]))


def test_targets_are_ranked_as_the_pipeline_ranks_them(folder: Path) -> None:
    import transformers

    pipeline = transformers.pipeline("fill-mask", model=str(folder), tokenizer=str(folder))
    fill = mlmlab.FillMask(*mlmlab.load_pretrained(str(folder)))
    targets = [fill.tokenizer.token(number) for number in (20, 60, 61, 100)]
    for text in ("The cow {m}.", "{m} and {m}"):
        masked = text.format(m=fill.tokenizer.mask_token)
        for chosen in (targets, targets[:1], [*targets, targets[0]]):
            _assert_same(fill(masked, targets=chosen), pipeline(masked, targets=chosen))


def test_a_target_of_several_tokens_is_refused_and_its_pieces_shown(folder: Path) -> None:
    fill = mlmlab.FillMask(*mlmlab.load_pretrained(str(folder)))
    with refusal("targets", Code.INVALID, "xylophone"):
        fill(f"a {fill.tokenizer.mask_token}", targets=["xylophone"])


def test_the_command_prints_a_table_or_json(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = mlmlab.FillMask(*mlmlab.load_pretrained(str(folder)))
    text = f"the cow {fill.tokenizer.mask_token} and {fill.tokenizer.mask_token}"
    capsys.readouterr()
    main(["--checkpoint", str(folder), "--json", "--top-k", "2", text])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == fill(text, top_k=2)
    assert printed.err == ""
    main(["--checkpoint", str(folder), text])
    table = capsys.readouterr().out.splitlines()
    assert table[0] == text
    assert [line for line in table if "mask " in line] == ["  mask 1", "  mask 2"]
    assert len(table) == 1 + 2 * 6
    assert max(map(len, table)) <= 80
    monkeypatch.setattr("builtins.input", _typed(text))
    main(["--checkpoint", str(folder), "--interactive", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) == fill(text)
    assert "no mask" in printed.err


def _typed(text: str) -> Callable[[str], str]:
    lines = iter([text, "no mask", ""])
    return lambda prompt: next(lines)


def test_a_text_without_a_mask_or_too_long_is_refused(folder: Path) -> None:
    fill = mlmlab.FillMask(*mlmlab.load_pretrained(str(folder)))
    with refusal("the text", Code.MISSING, "no mask here", fill.tokenizer.mask_token):
        fill("no mask here")
    with refusal("the text", Code.INVALID, "cow cow"):
        fill(f"{fill.tokenizer.mask_token} " + "cow " * 60)


def test_the_first_answer_does_not_wait_for_pytorchs_compiler(folder: Path) -> None:
    assert (
        _compiler_modules_after(
            "fill = mlmlab.FillMask(*mlmlab.load_pretrained(sys.argv[1])); "
            "fill(fill.tokenizer.mask_token)",
            folder,
        )
        == []
    )


@pytest.mark.parametrize("folder", ["roberta"], indirect=True)
def test_an_evaluation_does_not_wait_for_it_either(folder: Path) -> None:
    overrides = "'data=small_world', 'eval.max_examples=8', f'checkpoint={sys.argv[1]}'"
    assert (
        _compiler_modules_after(
            f"mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation({overrides}), quiet=True)",
            folder,
        )
        == []
    )


def _compiler_modules_after(work: str, folder: Path) -> list[str]:
    imported = "*{'torch._dynamo', 'sympy'} & sys.modules.keys()"
    command = [sys.executable, "-c", f"import sys, mlmlab; {work}; print({imported})", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
