"""AdamW with decay on matrices only, and a rate for each layer."""

import torch
from torch import nn

from mlmlab.model import MaskedLanguageModel
from mlmlab.training.config import TrainConfig
from mlmlab.training.trainable import parts, rate_factors


def build_optimizer(model: MaskedLanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW (Loshchilov and Hutter 2019), of what is not frozen.

    Biases and layer norms, the parameters of one dimension, are not decayed (Devlin et al. 2019,
    optimization.py): two groups, or two for each part of the model if `train.layer_decay` gives
    each a rate of its own. A group's `rate_factor` is its share of the learning rate.

    The fused kernel leaves all weights and moments as they are when its `found_inf` is set, which
    is how a non-finite update is suppressed without asking the device.
    """
    factors = rate_factors(model, config.layer_decay)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for is_matrix in (True, False):
        for name, part in parts(model).items():
            chosen = [
                p for p in part.parameters() if p.requires_grad and (p.ndim >= 2) == is_matrix
            ]
            groups.setdefault((is_matrix, factors[name]), []).extend(chosen)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": config.weight_decay if is_matrix else 0.0,
                "rate_factor": factor,
            }
            for (is_matrix, factor), parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )
