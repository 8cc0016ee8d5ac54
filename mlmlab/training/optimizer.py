"""AdamW with decay on matrices only, and a rate for each layer."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import nn

from mlmlab.errors import UserError
from mlmlab.model import MaskedLanguageModel
from mlmlab.training.config import TrainConfig


def parts(model: MaskedLanguageModel) -> dict[str, nn.Module]:
    """embeddings, layers.0, layers.1, ..., head: every parameter once, in the model's own order.

    The decoder's weight is the token table, which belongs to the embeddings; its bias belongs to
    the head.
    """
    layers = {f"layers.{number}": layer for number, layer in enumerate(model.layers)}
    return {"embeddings": model.embeddings, **layers, "head": model.head}


def freeze(model: MaskedLanguageModel, config: TrainConfig) -> None:
    """Lets the parts that `train.freeze` does not name train, and no others.

    To be called before the optimizer is built, which leaves frozen parameters out. Autograd does
    the rest: no gradient for a frozen weight, and no backward at all below the lowest part that
    trains. Dropout goes on in frozen parts.

    Raises:
        UserError: a layer that the model lacks, or nothing that is left to train.
    """
    layers = len(model.layers)
    problems = list(config.freeze_problems(layers))
    if problems:
        raise UserError(problems)
    frozen = config.frozen_parts(layers)
    for name, part in parts(model).items():
        part.requires_grad_(name not in frozen)


def rate_factors(model: MaskedLanguageModel, layer_decay: float) -> dict[str, float]:
    """Each part's share of the learning rate.

    1 for the head, decay ** (L - l) for layer l = 0 ... L - 1, decay ** (L + 1) for the embeddings
    (and so for the decoder's weight): Bao et al. 2022, BEiT, run_class_finetuning.py. In ELECTRA
    (Clark et al. 2020, optimization.py) all but the head have one power more.
    """
    distances = {name: len(model.layers) + 1 - n for n, name in enumerate(parts(model))}
    return {name: layer_decay**distance for name, distance in distances.items()}


@dataclass(frozen=True, kw_only=True)
class PartAccount:
    """A part, or neighbouring layers that are treated alike."""

    name: str
    """embeddings, layers.3, layers.0-5 or head."""
    parameters: int
    """Numbers in it; in all layers of a range together."""
    trains: bool
    rate_factor: float
    """Of the learning rate, where it trains."""


def account(model: MaskedLanguageModel, layer_decay: float) -> list[PartAccount]:
    """Every parameter of the model in one row."""
    factors = rate_factors(model, layer_decay)
    rows = [
        PartAccount(
            name=name,
            parameters=sum(p.numel() for p in part.parameters()),
            trains=any(p.requires_grad for p in part.parameters()),
            rate_factor=factors[name],
        )
        for name, part in parts(model).items()
    ]
    return [_together(list(group)) for _, group in groupby(rows, key=_kind)]


def _kind(row: PartAccount) -> tuple[str, float | None]:
    """Equal for layers that are treated alike."""
    return row.name.partition(".")[0], row.rate_factor if row.trains else None


def _together(rows: list[PartAccount]) -> PartAccount:
    first, last = rows[0], rows[-1]
    return PartAccount(
        name=first.name + f"-{last.name.partition('.')[2]}" * (len(rows) > 1),
        parameters=sum(row.parameters for row in rows),
        trains=first.trains,
        rate_factor=first.rate_factor,
    )


def build_optimizer(model: MaskedLanguageModel, config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW (Loshchilov and Hutter 2019), of what is not frozen.

    Biases and layer norms, the parameters of one dimension, are not decayed (Devlin et al. 2019,
    optimization.py): two groups, or two for each part of the model if `train.layer_decay` gives
    each a rate of its own. A group's `rate_factor` is its share of the learning rate.

    The fused kernel leaves all weights and moments as they are when its `found_inf` is set, which
    is how a non-finite step is suppressed without asking the device.
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
