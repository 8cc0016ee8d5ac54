"""What an evaluation asks of a model besides masked perplexity."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from mlmlab import seams
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.evaluation.config import MASKED_PERPLEXITY, EvalConfig
from mlmlab.model import MaskedLanguageModel
from mlmlab.runtime.distributed import Ranks

_KEY = "eval.evaluators"


class Evaluator(Protocol):
    """A question to the model, with figures for an answer."""

    name: str
    """Its figures are logged as eval/NAME/..."""

    def run(
        self, model: MaskedLanguageModel, tokenizer: Tokenizer, device: torch.device
    ) -> Mapping[str, float]:
        """The figures, by name. Every process calls it, without gradients, with the model in
        evaluation mode."""


def build_evaluators(config: EvalConfig, whole: Any) -> list[Evaluator]:
    """The user's own evaluators that `eval.evaluators` names, with the options under their name in
    `eval.options`.

    Args:
        whole: the `RunConfig` or `EvaluateConfig`, which they are built with.

    Raises:
        UserError: one is not there, cannot be built, or is no evaluator.
    """
    evaluators: list[Evaluator] = []
    for name in config.evaluators:
        if name == MASKED_PERPLEXITY:
            continue
        options = config.options.get(name.partition(":")[2], {})
        build = seams.find(
            _KEY, name, {}, arguments=("config",), options=options, options_key="eval.options"
        )
        evaluator = build(whole)
        if not isinstance(getattr(evaluator, "name", None), str) or not callable(
            getattr(evaluator, "run", None)
        ):
            raise UserError.of(
                _KEY,
                code=Code.INVALID,
                found=f"{name}, without a name (text) or without run(model, tokenizer, device)",
                expected="a class with both (docs/extending.md)",
                remedy="add what is missing",
            )
        evaluators.append(evaluator)
    return evaluators


def figures_of(
    evaluators: list[Evaluator],
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float]:
    """All figures, by tag, the same in every process: those of rank 0.

    Raises:
        UserError: what an evaluator returns is no mapping of names to numbers.
    """
    figures: dict[str, float] = {}
    for evaluator in evaluators:
        model.eval()
        with torch.no_grad():
            found = evaluator.run(model, tokenizer, device)
        try:
            figures |= {f"eval/{evaluator.name}/{name}": float(x) for name, x in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError.of(
                _KEY,
                code=Code.INVALID,
                found=f"{evaluator.name}, whose run returned {found!r:.60}",
                expected="a dict of names and numbers",
                remedy='return {"accuracy": 0.7}, say',
            ) from error
    return ranks.gather(figures)[0]
