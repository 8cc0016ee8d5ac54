"""The README.md of an export: what the model is, how it was trained, how to use it."""

import math
from pathlib import Path

from mlmlab.config import RunConfig
from mlmlab.tracking.summary import Summary


def model_card(config: RunConfig, summary: Summary, text: str, mask_token: str) -> str:
    """A model card in the Hub's format.

    Args:
        text: what the model was trained on, in words.
        mask_token: for the usage example.
    """
    start = config.checkpoint or "fresh weights"
    if Path(start).is_absolute():  # a card is published: a folder's place is the user's business
        start = Path(start).name
    front = ["library_name: transformers", "pipeline_tag: fill-mask", "tags: [mlmlab]"]
    if config.checkpoint and "@" in config.checkpoint:
        front.append(f"base_model: {config.checkpoint.partition('@')[0]}")
    floor = ""
    if summary.floor_perplexity is not None:
        floor = f"\n| exact floor of that perplexity | {summary.floor_perplexity:.3f} |"
    error = summary.eval_loss_standard_error
    shown_error = "" if math.isnan(error) else f" ± {summary.eval_perplexity * error:.3f}"
    return f"""---
{chr(10).join(front)}
---

# {config.name}

A masked language model trained with mlmlab, from {start}, on {text}.

| | |
|---|---|
| masked perplexity on the test split | {summary.eval_perplexity:.3f}{shown_error} |
| before training | {summary.initial_eval_perplexity:.3f} |
| predicted test tokens | {summary.eval_masked_tokens:,} |{floor}
| masking | {100 * config.masking.rate:g} %, {100 * config.masking.mask_fraction:g} % masked, \
{100 * config.masking.random_fraction:g} % random |
| updates | {summary.exported_step:,} of {config.train.batch_size} sequences of \
{config.data.block_size} tokens |
| learning rate | {config.train.learning_rate:g}, {config.train.schedule.value} |
| weight decay | {config.train.weight_decay:g} |
| seed | {config.seed} |

```python
from transformers import pipeline

fill = pipeline("fill-mask", model="THIS_FOLDER_OR_REPOSITORY")
fill("... {mask_token} ...")
```
"""
