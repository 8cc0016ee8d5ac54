"""The eli5 recipe as its user runs it: model from the Hub, text from its authors' address."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import COMMIT, FileServer, HubServer, running

import mlmlab
from mlmlab import evaluate
from mlmlab.data.config import TokenizerKind
from mlmlab.data.corpus import is_test_document
from mlmlab.data.sources import FileSource
from mlmlab.data.tokenizer import train_tokenizer
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig

TEXT = "eli5-category-validation-2.json.gz"
PUBLISHED_SHA256 = "309b7d49de11494c7c7179980f710cbcb5c9a6ebed6f0a30fe2e02dca4f10009"
MODEL = "distilbert/distilroberta-base"


def tiny_roberta(folder: Path, text: Path) -> None:
    """A checkpoint in the Hub's layout, small enough for a test."""
    documents = FileSource((text,), "answers.text", limit=100).documents()
    tokenizer = train_tokenizer(documents, TokenizerKind.BPE, 800)
    model = MaskedLanguageModel(
        ModelConfig(
            family=Family.ROBERTA,
            vocabulary_size=tokenizer.vocabulary_size,
            hidden_size=32,
            layers=2,
            heads=4,
            intermediate_size=64,
            max_positions=512,
            token_types=1,
            layer_norm_eps=1e-5,
            pad_id=tokenizer.pad_id,
            initializer_range=0.02,
            dropout=0.1,
            attention_dropout=0.1,
        )
    )
    model.initialize(0)
    mlmlab.save_pretrained(model, tokenizer, folder)


def command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(mlmlab.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_recipe_downloads_trains_exports_and_runs_again_without_a_network(
    shared_data: Path, tmp_path: Path
) -> None:
    tiny_roberta(tmp_path / "model", shared_data / TEXT)
    content = (shared_data / TEXT).read_bytes()
    with (
        running(FileServer(content)) as text,
        running(HubServer("models", MODEL, tmp_path / "model")) as hub,
    ):
        text.cuts = [len(content) // 2]  # the connection breaks in the middle
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hub"),
            "MLMLAB_CACHE": str(tmp_path / "cache"),
        }
        recipe = (
            "mlmlab.train", "+experiment=eli5", f"data.url={text.url(f'/eli5c/{TEXT}')}",
            f"data.sha256={PUBLISHED_SHA256}", "data.limit=400", "train.max_steps=3",
        )  # fmt: skip
        first = command(tmp_path, *recipe, "run_dir=first", **environment)
        assert first.returncode == 0, first.stderr
        assert first.stderr == ""
        assert text.requests == [None, f"bytes={len(content) // 2}-"]

    again = command(tmp_path, *recipe, "run_dir=again", **environment)  # both servers are gone
    assert again.returncode == 0, again.stderr
    assert again.stderr == f"{MODEL}: the Hub cannot be reached; using the cached copy {COMMIT}\n"
    for folder in ("first", "again"):
        config = (tmp_path / folder / "config.yaml").read_text()
        assert f"checkpoint: {MODEL}@{COMMIT}" in config
    summaries = [
        json.loads((tmp_path / folder / "summary.json").read_text())
        for folder in ("first", "again")
    ]
    assert summaries[0]["eval_loss"] == summaries[1]["eval_loss"]
    assert summaries[0]["steps"] == 3
    assert "tokenized now" in " ".join(first.stdout.split())
    assert "tokenized before" in " ".join(again.stdout.split())
    assert "The Milky Way is a <mask> galaxy." in first.stdout
    assert max(map(len, first.stdout.splitlines())) <= 80 + len(text.url())

    # The split, and every token of it, as one counts them by hand.
    documents = list(FileSource((shared_data / TEXT,), "answers.text", limit=400).documents())
    _, tokenizer = mlmlab.load_pretrained(str(tmp_path / "first"), quiet=True)
    is_test = is_test_document(np.arange(400), 0.2, 0)
    counts = [0, 0]
    for document, side in zip(documents, is_test, strict=True):
        counts[int(side)] += len(tokenizer.encode(document)) if document.strip() else 0
    printed = " ".join(first.stdout.split())
    blocks, dropped = divmod(counts[0], 128)
    assert f"{counts[0]:,} tokens = {blocks:,} blocks of 128 + {dropped} dropped" in printed
    assert f"{counts[1]:,} tokens = {counts[1] // 128:,} blocks of 128" in printed


def test_evaluate_gives_a_runs_last_evaluation_to_the_bit_and_scores_all_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def evaluated(*overrides: str) -> tuple[list[str], dict[str, Any]]:
        evaluate.main([*overrides])
        output = capfd.readouterr()
        assert output.err == ""
        *lines, result = output.out.splitlines()
        return lines, json.loads(result)

    run = (
        "data.limit=300", "train.max_steps=20", "model.hidden_size=32",
        "run_dir=run", "eval.seed=3", "masking@eval.masking=forty_percent", "eval.mask_draws=2",
    )  # fmt: skip
    mlmlab.run(mlmlab.compose(*run))
    assert capfd.readouterr().err == ""
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    _, result = evaluated("checkpoint=run")
    for theirs, ours in {
        "eval_loss": "loss",
        "eval_perplexity": "perplexity",
        "eval_loss_standard_error": "loss_standard_error",
        "eval_masked_tokens": "masked_tokens",
        "eval_top1_accuracy": "top1_accuracy",
        "eval_top5_accuracy": "top5_accuracy",
        "floor_perplexity": "floor_perplexity",
    }.items():
        assert result[ours] == summary[theirs], ours
    assert result["split"] == "test"
    assert result["mask_draws"] == 2
    assert result["random"]["masked_tokens"] == 0  # forty_percent masks all that it selects
    assert result["random"]["loss"] is None
    assert result["random"]["floor_perplexity"] is None
    assert result["masked"]["floor_perplexity"] == result["floor_perplexity"]

    shutil.copytree(tmp_path / "run" / "export", tmp_path / "exported")
    file = tmp_path / "my.txt"
    sentences = ["the cow eats grass .", "the bear sleeps in the cave .", "he bakes bread ."] * 7
    file.write_text("\n".join(sentences))
    lines, result = evaluated("checkpoint=exported", "data.path=my.txt")
    _, tokenizer = mlmlab.load_pretrained(str(tmp_path / "exported"), quiet=True)
    assert result["split"] == "all"
    assert result["documents"] == len(sentences)
    assert result["tokens"] == sum(len(tokenizer.encode(text)) for text in sentences)
    assert result["dropped_tokens"] == 0
    assert result["examples"] == -(-result["tokens"] // 128)
    assert result["floor_perplexity"] is None
    assert max(map(len, lines)) <= 80
