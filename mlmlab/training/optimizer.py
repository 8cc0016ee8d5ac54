"""AdamW with decay on matrices only."""

import torch
from torch import nn

from mlmlab.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW (Loshchilov and Hutter 2019) in two groups, of what is not frozen.

    Biases and layer norms, the parameters of one dimension, are not decayed (Devlin et al. 2019,
    optimization.py). The fused kernel leaves all weights and moments as they are when its
    `found_inf` is set, which is how a non-finite update is suppressed without asking the device.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2]
    plain = [p for p in trained if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )
