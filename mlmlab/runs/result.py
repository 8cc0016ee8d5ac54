"""What a run gives to Python: its figures, and what is in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlmlab.checkpoints import load_pretrained
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.model import MaskedLanguageModel
from mlmlab.tracking.summary import Summary


@dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run, read from its folder once it is over: whatever happens to the folder later,
    a resume for instance, does not change the result."""

    summary: Summary
    """The content of summary.json."""
    model: MaskedLanguageModel
    """The exported weights, in evaluation mode on the CPU, wherever the run trained them."""
    tokenizer: Tokenizer
    metrics: list[dict[str, Any]]
    """The content of metrics.jsonl, a dict per log event: step, epoch, and figures by their tags
    (train/loss); None for a figure that was not finite. The completions of eval.fill_mask, and
    the first examples as the model saw them, are a str under fill_mask and masked_examples."""

    @classmethod
    def read(cls, summary: Summary, run_dir: Path) -> "RunResult":
        """The result of a run that has finished in `run_dir`.

        Raises:
            UserError: its export has been removed or damaged.
        """
        model, tokenizer = load_pretrained(str(run_dir), quiet=True)
        with (run_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
            return cls(summary, model, tokenizer, [json.loads(line) for line in lines])
