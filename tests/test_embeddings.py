"""An export is a sentence encoder as well: mean pooling over the model's hidden states."""

import json
from pathlib import Path

import pytest
import torch
from reference.hub_models import FAMILIES, VOCABULARY, write_reference

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.data.tokenizer import word_tokenizer

TEXTS = ["w1", "w2 w3 w4 w5 w6", "", " ".join(f"w{n}" for n in range(100))]
"""The last one is longer than the models' 40 positions."""


def _export(family: str, folder: Path) -> Path:
    reference = write_reference(family, folder / "reference").folder
    tokenizer = word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)])
    mlmlab.save_pretrained(load_model(str(reference)).model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_export_cuts_texts_at_the_positions_not_at_the_rows_of_their_table(
    family: str, tmp_path: Path
) -> None:
    limits = json.loads((_export(family, tmp_path) / "sentence_bert_config.json").read_text())
    assert limits["max_seq_length"] == 40  # RoBERTa's table has 42 rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_sentence_transformers_gives_the_mean_of_our_hidden_states(
    family: str, tmp_path: Path
) -> None:
    package = pytest.importorskip(
        "sentence_transformers", reason="needs the package: pip install sentence-transformers"
    )
    folder = _export(family, tmp_path)
    model, tokenizer = mlmlab.load_pretrained(str(folder), quiet=True)
    batch = tokenizer(TEXTS, max_length=model.config.max_positions)
    real = batch["attention_mask"][..., None]
    with torch.no_grad():
        ours = (model.encode(**batch) * real).sum(1) / real.sum(1)
    theirs = package.SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in theirs] == ["Transformer", "Pooling"]
    embeddings = theirs.encode(TEXTS, convert_to_tensor=True)
    assert torch.allclose(embeddings, ours, rtol=0, atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 0.01
