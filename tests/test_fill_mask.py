"""FillMask answers as the Hub's fill-mask pipeline does."""

from pathlib import Path
from typing import Any

import pytest
from reference.hub_models import write_reference

import mlmlab
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import train_tokenizer
from mlmlab.errors import UserError

TEXTS = [
    "The cow lives in the {m}.",
    "{m} is the beginning.",
    "The end is {m}",
    "The {m} sat on the {m}.",
    "{m} {m}",
    "Ünïcödé and 数字, then {m}!",
    "  spaces   around {m}   here ",
]
CORPUS = [
    "the cow lives in the barn and the dog sat on the mat",
    "Every beginning has an end, and every end has a beginning!",
    "unicode: Ünïcödé 数字 emoji 🙂",
] * 20


@pytest.fixture(scope="module", params=["bert", "roberta"])
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
    config = transformers.BertConfig if request.param == "bert" else transformers.RobertaConfig
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


def test_a_text_without_a_mask_or_too_long_is_refused(folder: Path) -> None:
    fill = mlmlab.FillMask(*mlmlab.load_pretrained(str(folder)))
    with pytest.raises(UserError, match="at least one"):
        fill("no mask here")
    with pytest.raises(UserError, match="longest sequence"):
        fill(f"{fill.tokenizer.mask_token} " + "cow " * 60)
