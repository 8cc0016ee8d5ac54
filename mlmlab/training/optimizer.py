"""AdamW with decay on matrices only, and a rate for each layer."""

import itertools
import re
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import nn

from mlmlab.errors import Code, UserError
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
    """Lets the parameters that `train.freeze` does not name train, and no others.

    To be called before the optimizer is built, which leaves frozen parameters out. Autograd does
    the rest: no gradient for a frozen weight, and no backward at all below the lowest part that
    trains. Frozen parts keep their dropout.

    Raises:
        UserError: an entry that matches no parameter, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    unmatched = []
    for pattern in itertools.chain.from_iterable(map(_patterns, config.freeze)):
        # A module's name stands for all that is in it.
        found = {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
        frozen |= found
        if not found:
            unmatched.append(pattern)
    if unmatched:
        last = len(model.layers) - 1
        raise UserError.of(
            "train.freeze",
            code=Code.INVALID,
            found=f"{', '.join(unmatched[:3])}: no parameter matches",
            expected=f"embeddings, layers, layers.0 to layers.{last}, encoder, head, or a pattern "
            "of parameter names, such as "
            + ", ".join(get_close_matches(unmatched[0], names, 3, cutoff=0.0)),
            remedy=f"train.freeze=[embeddings,layers.0-{last}]",
        )
    if len(frozen) == len(names):
        raise UserError.of(
            "train.freeze",
            code=Code.INVALID,
            found=f"{', '.join(config.freeze)}: the whole model",
            expected="a part that still trains",
            remedy="train.freeze=[encoder] trains the head alone, train.freeze=[] everything",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _patterns(entry: str) -> list[str]:
    """The patterns that an entry of `train.freeze` is short for."""
    if entry == "encoder":
        return ["embeddings", "layers"]
    if ends := re.fullmatch(r"layers\.(\d{1,3})-(\d{1,3})", entry):
        numbers = range(int(ends[1]), int(ends[2]) + 1)
        return [f"layers.{number}" for number in numbers] or [entry]
    return [entry]


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
    trained: int
    """Those of them that are not frozen."""
    rate_factor: float
    """Of the learning rate; 0 where nothing trains."""


def account(model: MaskedLanguageModel, layer_decay: float) -> list[PartAccount]:
    """Every parameter of the model in one row."""
    factors = rate_factors(model, layer_decay)
    counts, trained = {}, {}
    for name, part in parts(model).items():
        counts[name] = sum(p.numel() for p in part.parameters())
        trained[name] = sum(p.numel() for p in part.parameters() if p.requires_grad)

    def treatment(name: str) -> tuple[str, int, float]:
        return name.partition(".")[0], trained[name], factors[name] if trained[name] else 0.0

    accounts = []
    for (_, _, factor), neighbours in itertools.groupby(parts(model), key=treatment):
        first, *others = neighbours
        row = PartAccount(
            name=f"{first}-{others[-1].removeprefix('layers.')}" if others else first,
            parameters=sum(counts[name] for name in (first, *others)),
            trained=sum(trained[name] for name in (first, *others)),
            rate_factor=factor,
        )
        accounts.append(row)
    return accounts


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
