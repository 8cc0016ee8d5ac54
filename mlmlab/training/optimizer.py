"""What trains, in which groups, and by which optimizer."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mlmlab import seams
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
        # A module's name means all parameters in it.
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
            found=f"{', '.join(config.freeze)}: the complete model",
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


Group = dict[str, Any]
"""params; role: matrix, embedding (a table) or vector; weight_decay; rate_factor, the group's share
of the learning rate."""


def parameter_groups(model: MaskedLanguageModel, config: TrainConfig) -> list[Group]:
    """What is not frozen, by role, and by part of the model if `train.layer_decay` gives each part
    a learning rate.

    Biases and layer norms, the parameters of one dimension, are not decayed (Devlin et al. 2019,
    optimization.py).
    """
    factors = rate_factors(model, config.layer_decay)
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for role in ("matrix", "embedding", "vector"):
        for name, part in parts(model).items():
            of_matrices = "embedding" if name == "embeddings" else "matrix"
            for p in part.parameters():
                if p.requires_grad and role == (of_matrices if p.ndim >= 2 else "vector"):
                    groups.setdefault((role, factors[name]), []).append(p)
    return [
        {
            "params": parameters,
            "role": role,
            "weight_decay": 0.0 if role == "vector" else config.weight_decay,
            "rate_factor": factor,
        }
        for (role, factor), parameters in groups.items()
    ]


def adamw(groups: list[Group], config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        fused=True,
    )


OPTIMIZERS = {"adamw": adamw}


def optimizer_builder(config: TrainConfig) -> Callable[[list[Group], TrainConfig], Any]:
    """What `train.optimizer` names, with its options.

    Raises:
        UserError: a custom one that cannot be found, or cannot be called like this.
    """
    return seams.find(
        "train.optimizer",
        config.optimizer,
        OPTIMIZERS,
        arguments=("groups", "config"),
        options=config.optimizer_options,
    )


def build_optimizers(
    model: MaskedLanguageModel, config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """The optimizers that `train.optimizer` names, of what is not frozen.

    Each group's `initial_lr` is the learning rate it was built with; the loop scales it by the
    schedule and the group's `rate_factor`.

    Raises:
        UserError: as `optimizer_builder`; or a custom one returns something else, or does not have
            each parameter once.
    """
    key = "train.optimizer"
    built = optimizer_builder(config)(parameter_groups(model, config), config)
    optimizers = list(built) if isinstance(built, list | tuple) else [built]
    if not all(isinstance(optimizer, torch.optim.Optimizer) for optimizer in optimizers):
        raise UserError.of(
            key,
            code=Code.INVALID,
            found=f"{config.optimizer} returned {type(built).__name__}",
            expected="a torch.optim.Optimizer, or a list of them",
            remedy="return the optimizer",
        )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = Counter(id(p) for group in groups for p in group["params"])
    names = [
        name for name, p in model.named_parameters() if held[id(p)] != (1 if p.requires_grad else 0)
    ]
    if names:
        raise UserError.of(
            key,
            code=Code.INVALID,
            found=f"{config.optimizer} has {', '.join(names[:3])} not at all or more than once"
            f" ({len(names)} parameters)",
            expected="every parameter of the groups in one optimizer",
            remedy="pass each of the groups to one optimizer; train.freeze freezes parameters",
        )
    for group in groups:
        group["initial_lr"] = group["lr"]
        group.setdefault("rate_factor", 1.0)
        group["as_built"] = {name: value for name, value in group.items() if name != "params"}
    return optimizers


def changed_entries(group: Group) -> dict[str, Any]:
    """What an optimizer keeps in one of its groups: a count of steps, say. The learning rate is the
    loop's, and what is as it was built follows from the config."""
    as_built = group["as_built"]
    return {
        name: value
        for name, value in group.items()
        if name not in ("params", "lr", "as_built")
        and (isinstance(value, torch.Tensor) or name not in as_built or value != as_built[name])
    }


def scales_and_suppresses(optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether all of them divide the gradient by their `grad_scale`, which clips it without another
    pass, and leave weights and state as they are when their `found_inf` is set, without asking the
    device: PyTorch's fused kernels do."""
    return all(getattr(o, "_step_supports_amp_scaling", False) for o in optimizers)
