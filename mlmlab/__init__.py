"""mlmlab: masked language models, written by hand in plain PyTorch.

model, tokenizer = mlmlab.load_pretrained("distilbert/distilroberta-base")
logits = model(**tokenizer(["The Milky Way is a <mask> galaxy."]))
fill = mlmlab.FillMask(model, tokenizer)
result = mlmlab.run(mlmlab.compose("+experiment=eli5", "train.max_steps=10"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlmlab.checkpoints import load_pretrained, save_pretrained
    from mlmlab.cli.compose import compose, compose_evaluation
    from mlmlab.errors import Interrupted, RunFailed, UserError
    from mlmlab.evaluation.fill_mask import FillMask
    from mlmlab.masking import MaskingConfig, VocabularyInfo, mask_batch
    from mlmlab.runs import evaluate_checkpoint, run
    from mlmlab.runs.result import RunResult

    __version__: str

_HOMES = {
    "load_pretrained": "mlmlab.checkpoints",
    "save_pretrained": "mlmlab.checkpoints",
    "compose": "mlmlab.cli.compose",
    "compose_evaluation": "mlmlab.cli.compose",
    "evaluate_checkpoint": "mlmlab.runs",
    "run": "mlmlab.runs",
    "RunResult": "mlmlab.runs.result",
    "FillMask": "mlmlab.evaluation.fill_mask",
    "mask_batch": "mlmlab.masking",
    "MaskingConfig": "mlmlab.masking",
    "VocabularyInfo": "mlmlab.masking",
    "UserError": "mlmlab.errors",
    "RunFailed": "mlmlab.errors",
    "Interrupted": "mlmlab.errors",
}

__all__ = [
    "FillMask",
    "Interrupted",
    "MaskingConfig",
    "RunFailed",
    "RunResult",
    "UserError",
    "VocabularyInfo",
    "__version__",
    "compose",
    "compose_evaluation",
    "evaluate_checkpoint",
    "load_pretrained",
    "mask_batch",
    "run",
    "save_pretrained",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("mlmlab")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'mlmlab' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
