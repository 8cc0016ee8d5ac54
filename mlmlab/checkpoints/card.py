"""The README.md of an export: what the model is, how it was trained, how to use it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

PLACE = "THIS_FOLDER_OR_REPOSITORY"
"""In the card's example, until the export is in a repository."""


@dataclass(frozen=True, kw_only=True)
class CardText:
    """What a model was trained on and is scored on."""

    name: str
    """For people."""
    kind: str
    """Its repository on the Hub; else what kind of text it is, in a word."""
    revision: str | None = None
    """The commit of that repository."""


def model_card(
    name: str,
    *,
    start: str,
    base_model: str | None,
    train_text: CardText,
    test_text: CardText,
    perplexity: float,
    result: Mapping[str, str],
    training: Mapping[str, str],
    environment: Mapping[str, str],
    command: str | None,
    mask_token: str,
) -> str:
    """A model card in the Hub's format, with metadata that the Hub's client reads back.

    Args:
        name: the title.
        start: the weights that training started from, in words.
        base_model: their repository on the Hub.
        perplexity: on the test text; nan where it is not known.
        result, training, environment: tables, text by label.
        command: the command line of the run, where there was one.
        mask_token: for the usage example.
    """
    figures = [
        EvalResult(
            task_type="fill-mask",
            task_name="Masked language modeling",
            dataset_type=test_text.kind,
            dataset_name=test_text.name,
            dataset_split="test",
            dataset_revision=test_text.revision,
            metric_type="perplexity",
            metric_name="Masked perplexity",
            metric_value=round(perplexity, 4),
        )
    ] * math.isfinite(perplexity)
    metadata = ModelCardData(
        model_name=name,
        eval_results=figures or None,
        base_model=base_model,
        datasets=[train_text.kind] if "/" in train_text.kind else None,
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["mlmlab", "masked-language-modeling"],
    )
    run = "" if command is None else f"\n```\n{command}\n```\n"
    return f"""---
{metadata.to_yaml()}
---

# {name}

A masked language model trained with mlmlab, from {start}, on {train_text.name}.

## Result

{_table(result)}

## Use

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="{PLACE}")
fill("... {mask_token} ...")
```

## Training

{_table(training)}
{run}
## Environment

{_table(environment)}
"""


def with_curve(card: str, picture: str) -> str:
    """The card with a picture of the test perplexity, under the table of the result.

    Args:
        picture: its name in the repository.
    """
    return card.replace("\n## Use\n", f"\n![Test perplexity by step]({picture})\n\n## Use\n", 1)


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"| {label} | {_cell(value)} |" for label, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
