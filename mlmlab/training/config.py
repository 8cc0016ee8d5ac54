"""How to train, evaluate and run: the numbers of the loop."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlmlab.errors import Code, Problem
from mlmlab.schema import named, setting


class Export(Enum):
    """Which weights a run exports and reports."""

    LAST = "last"
    BEST = "best"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the model learns."""

    name: str = named("mlm")
    """mlm: masked language modelling. Or a custom package.module:name
    (`training/objective.py`)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of a custom objective."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimization."""

    epochs: int = setting(3, at_least=1)
    """Passes over the training examples."""
    max_steps: int | None = setting(None, at_least=1)
    """Steps; where set, it decides and `epochs` does not."""
    batch_size: int = setting(8, at_least=1)
    """Examples per step."""
    micro_batch_size: int | None = setting(None, at_least=1)
    """Examples per forward pass; accumulation follows from it. null: the full batch."""
    learning_rate: float = setting(2e-5, above=0)
    """The highest rate of the schedule."""
    weight_decay: float = setting(0.01, at_least=0)
    """AdamW's decay of weight matrices and embeddings; biases and norms have none."""
    adam_beta1: float = setting(0.9, at_least=0, below=1)
    """Decay of AdamW's mean of the gradients, per step."""
    adam_beta2: float = setting(0.999, at_least=0, below=1)
    """Decay of its mean of their squares, per step."""
    adam_eps: float = setting(1e-8, above=0)
    """Added to the root of that mean, so that a division by it cannot overflow."""
    max_grad_norm: float = setting(1.0, at_least=0)
    """Gradients are scaled down to this norm; 0: never."""
    optimizer: str = named("adamw")
    """adamw, or a custom package.module:name: called with the groups of parameters and this
    config, it returns an optimizer or a list of them."""
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of a custom optimizer."""
    schedule: str = named("linear", "cosine", "constant")
    """linear and cosine fall to zero at the last step. Or a custom package.module:name: a
    function of the step and their total, both counted from the end of the warm-up, to the factor of
    the learning rate."""
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of a custom schedule."""
    warmup_steps: int = setting(0, at_least=0)
    """Steps over which the rate rises from zero."""
    warmup_fraction: float | None = setting(None, at_least=0, below=1)
    """The same as a share of the run's steps, in place of `warmup_steps`."""
    freeze: tuple[str, ...] = ()
    """What keeps its weights: embeddings (with them the decoder, the same table), layers (all of
    them), layers.3, layers.0-5 (from 0, both ends included), encoder (embeddings and layers), head,
    or a pattern of parameter names: layers.*.attention, "*.bias"."""
    layer_decay: float = setting(1.0, above=0, at_most=1)
    """Each layer learns at this share of the rate of the one above it, from the head down; 1: all
    at the same rate."""
    gradient_checkpointing: bool = False
    """Layers are computed again in backward (Chen et al. 2016): less memory, about a third more
    arithmetic, the same gradients."""
    save_every_steps: int | None = setting(None, at_least=1)
    """Steps between checkpoints, besides one at each evaluation that is the best so far. null:
    one at each evaluation."""
    save_every_minutes: float | None = setting(30.0, above=0)
    """Minutes between checkpoints, besides the others. null: only the others."""
    keep_checkpoints: int = setting(2, at_least=0)
    """Older checkpoints are removed, all but the best one; 0: none are written."""
    log_every_steps: int = setting(10, at_least=1)
    """Steps between log lines."""
    early_stopping_patience: int | None = setting(None, at_least=1)
    """Evaluations in a row without a better one, after which the run ends; null: never before its
    horizon."""
    export: Export | None = None
    """The weights in export/ and summary.json: those of the last step, or of the best evaluation.
    null: best where `early_stopping_patience` is set, else last."""
    push_to_hub: str | None = None
    """owner/name on the Hub, where export/ goes when the run has ended, as python -m mlmlab.push
    sends it. null: nowhere."""

    def problems(self) -> Iterator[Problem]:
        """Two lengths of the warm-up, best weights that nothing keeps, and no name on the Hub."""
        if self.push_to_hub is not None:
            from mlmlab.fetch.upload import name_problem  # the Hub's client takes its time

            if problem := name_problem("train.push_to_hub", self.push_to_hub):
                yield problem
        if self.warmup_fraction is not None and self.warmup_steps:
            yield Problem(
                "train.warmup_fraction",
                f"{self.warmup_fraction}, with train.warmup_steps={self.warmup_steps}",
                "one of the two, train.warmup_steps=0 or train.warmup_fraction=null",
                "train.warmup_fraction=0.06 train.warmup_steps=0, or train.warmup_fraction=null",
                code=Code.CONFLICT,
            )
        if self.exports_best and self.keep_checkpoints == 0:
            why = "" if self.export is Export.BEST else ", which early_stopping_patience implies"
            yield Problem(
                "train.export",
                f"best{why}, with train.keep_checkpoints=0",
                "checkpoints, from which the best weights are exported",
                "train.keep_checkpoints=1, or train.export=last",
                code=Code.CONFLICT,
            )

    @property
    def exports_best(self) -> bool:
        """Whether the best evaluation's weights are exported, not the last step's."""
        if self.export is None:
            return self.early_stopping_patience is not None
        return self.export is Export.BEST

    def warmup(self, total_steps: int) -> int:
        """Steps of the warm-up, in a run of `total_steps`."""
        if self.warmup_fraction is None:
            return self.warmup_steps
        return round(self.warmup_fraction * total_steps)
