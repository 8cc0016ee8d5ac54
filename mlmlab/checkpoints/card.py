"""The README.md of an export: what the model is, how it was trained, how to use it."""

from collections.abc import Mapping


def model_card(
    name: str,
    *,
    start: str,
    base_model: str | None,
    text: str,
    table: Mapping[str, str],
    mask_token: str,
) -> str:
    """A model card in the Hub's format.

    Args:
        name: the title.
        start: the weights that training started from, in words.
        base_model: their repository on the Hub.
        text: what the model was trained on, in words.
        table: figures and settings by their labels.
        mask_token: for the usage example.
    """
    front = ["library_name: transformers", "pipeline_tag: fill-mask", "tags: [mlmlab]"]
    if base_model is not None:
        front.append(f"base_model: {base_model}")
    rows = "\n".join(f"| {label} | {value} |" for label, value in table.items())
    return f"""---
{chr(10).join(front)}
---

# {name}

A masked language model trained with mlmlab, from {start}, on {text}.

| | |
|---|---|
{rows}

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="THIS_FOLDER_OR_REPOSITORY")
fill("... {mask_token} ...")
```
"""
