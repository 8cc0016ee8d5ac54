"""What a model learns: a loss on examples that were prepared for it."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlmlab import seams
from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import Examples
from mlmlab.masking import MaskingConfig
from mlmlab.model import token_losses
from mlmlab.training.config import ObjectiveConfig

_KEY = "objective.name"


class Objective(Protocol):
    """What a model learns.

    One thing more is optional: `setup(model, device)` is called once before the first step, and
    when a run is resumed, for a teacher, say. The model has the weights that the run began with,
    both times. What it keeps is not part of a checkpoint.
    """

    def prepare(
        self, examples: Examples, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> MicroBatch:
        """A micro-batch of these examples on the host, a function of the arguments; a thread calls
        it while the step before is computed.

        Args:
            example_ids: int64 `[B]`.
            epoch: from 0.
            step: steps applied before it.
        """

    def loss(self, model: nn.Module, micro: MicroBatch) -> torch.Tensor:
        """The sum of the micro-batch's losses, an fp32 scalar.

        The step divides it by the sum of `micro.divisor` over all of its micro-batches, in all
        processes. A micro-batch without predictions must give a zero that reaches every parameter.

        Args:
            model: under autocast, where the run has half precision.
            micro: on the device.
        """


def masked_token_loss(model: nn.Module, micro: MicroBatch) -> torch.Tensor:
    """The predicted tokens' negative log-likelihood, times their weights if there are any."""
    losses = token_losses(model(**micro.model_inputs()), micro.masked.labels)
    if micro.weights is not None:
        losses = losses * micro.weights
    return losses.sum()


class MaskedTokens:
    """Masked language modelling (Devlin et al. 2019): every predicted token counts alike."""

    def __init__(self, config: Any, masker: Masker[MaskingConfig]) -> None:
        self.masker = masker

    def prepare(
        self, examples: Examples, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> MicroBatch:
        return self.masker.prepare(examples, example_ids, epoch, step)

    def loss(self, model: nn.Module, micro: MicroBatch) -> torch.Tensor:
        return masked_token_loss(model, micro)


OBJECTIVES = {"mlm": MaskedTokens}


def find_objective(config: ObjectiveConfig) -> Any:
    """What `objective.name` names, with its options.

    Raises:
        UserError: a custom one that is missing, cannot be called like this, or is no objective.
    """
    found = seams.find(
        _KEY,
        config.name,
        OBJECTIVES,
        arguments=("config", "masker"),
        options=config.options,
        options_key="objective.options",
    )
    if isinstance(found.func, type):
        methods = ("prepare(examples, example_ids, epoch, step)", "loss(model, micro)")
        seams.require(_KEY, config.name, found.func, *methods)
    return found


def needs_first_weights(config: ObjectiveConfig) -> bool:
    """Whether it may have `setup`, so that a resume has to begin with the weights that the run
    began with. A function that returns an objective is not asked."""
    objective = find_objective(config).func
    return not isinstance(objective, type) or hasattr(objective, "setup")
