"""Small stand-ins for what the recipes download: checkpoints as transformers writes them, and texts
with the real columns, encodings, splits and layout."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import train_tokenizer

SPLITS = {"train": 60, "test": 40, "unsupervised": 90}
"""Reviews of each split of the stand-in for stanfordnlp/imdb."""


def reviews(name: str, count: int) -> list[str]:
    """Reviews of 30 to 230 words, some of them with letters that ISO-8859-1 has beyond ASCII."""
    words = "the film was a great deal of fun , and its naïve hero loved café scenes <br /> truly"
    vocabulary = words.split()
    return [
        " ".join([f"{name} {number}", *(vocabulary[(number + 7 * n) % 19] for n in range(length))])
        for number, length in ((i, 30 + 37 * i % 200) for i in range(count))
    ]


def write_imdb(folder: Path) -> dict[str, list[str]]:
    """The files of stanfordnlp/imdb; returns the reviews of each split."""
    splits = {name: reviews(name, count) for name, count in SPLITS.items()}
    (folder / "plain_text").mkdir(parents=True)
    (folder / "README.md").write_text("# IMDb")
    for name, texts in splits.items():
        labels = [-1] * len(texts) if name == "unsupervised" else [n % 2 for n in range(len(texts))]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts, "label": labels}),
            folder / "plain_text" / f"{name}-00000-of-00001.parquet",
        )
    return splits


def write_imdb_csv(path: Path) -> None:
    """imdb_tr.csv."""
    with path.open("w", encoding="iso-8859-1", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["row_Number", "text", "polarity"])
        rows.writerows([n, text, n % 2] for n, text in enumerate(reviews("train", 60)))


def write_eli5(path: Path) -> None:
    """A gzipped JSON array of questions with their answers."""
    rows = [
        {"q_id": str(n), "title": "Why?", "answers": {"a_id": ["a", "b"], "text": [text, text[:9]]}}
        for n, text in enumerate(reviews("answer", 60))
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(rows, file)


def write_checkpoint(family: str, folder: Path) -> None:
    """A random model of 32 units as transformers writes it, with a tokenizer trained on reviews.

    Args:
        family: roberta, bert, distilbert, modernbert, or minilm: BERT without a head.
    """
    import transformers

    kind = TokenizerKind.BPE if family in ("roberta", "modernbert") else TokenizerKind.WORDPIECE
    tokenizer = train_tokenizer(reviews("train", 60), kind, 400)
    sizes = {"vocab_size": tokenizer.vocabulary_size, "pad_token_id": tokenizer.pad_id}
    bert = sizes | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64,
    }  # fmt: skip
    distilbert = sizes | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    modernbert = bert | {"num_hidden_layers": 4, "local_attention": 16}
    torch.manual_seed(0)
    model = {
        "roberta": lambda: transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(**bert, max_position_embeddings=514, type_vocab_size=1)
        ),
        "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**bert)),
        "distilbert": lambda: transformers.DistilBertForMaskedLM(
            transformers.DistilBertConfig(**distilbert)
        ),
        "modernbert": lambda: transformers.ModernBertForMaskedLM(
            transformers.ModernBertConfig(**modernbert)
        ),
        "minilm": lambda: transformers.BertModel(transformers.BertConfig(**bert)),
    }[family]()
    model.save_pretrained(folder)
    tokenizer.save(folder)
