"""An objective in one file: masked diffusion (Sahoo et al. 2024, "Simple and effective masked
diffusion language models"; LLaDA, Nie et al. 2025).

Each example has a time t, drawn uniformly; each of its tokens is masked with chance t, and what
is predicted of it counts 1 / t times. The sum over the number of tokens bounds the text's negative
log-likelihood from above. Run it with masking.mask_fraction=1 masking.random_fraction=0.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import Examples
from mlmlab.masking import MaskingConfig
from mlmlab.training.objective import MaskedTokens


class MaskedDiffusion(MaskedTokens):
    """`objective.options.shortest_time` keeps the weights finite."""

    def __init__(
        self, config: Any, masker: Masker[MaskingConfig], *, shortest_time: float = 0.05
    ) -> None:
        super().__init__(config, masker)
        self.shortest_time = shortest_time

    def prepare(
        self, examples: Examples, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> MicroBatch:
        width = examples.input_ids.shape[1]
        times = self.masker.uniform(example_ids, epoch)  # [B, 1]
        times = self.shortest_time + (1.0 - self.shortest_time) * times
        is_masked = self.masker.uniform(example_ids, epoch, length=width, stream=1) < times
        micro = self.masker.micro_batch(
            examples, example_ids, epoch=epoch, step=step, selected=is_masked
        )
        rows = micro.masked.positions.numpy() // width
        return dataclasses.replace(
            micro,
            weights=torch.from_numpy(1.0 / times[rows, 0]).float(),
            loss_weight=micro.token_count,
        )
