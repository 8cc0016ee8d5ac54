"""A checkpoint folder, or a repository on the Hub, becomes a model and a tokenizer."""

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mlmlab.checkpoints.hub_config import read_hub_config
from mlmlab.checkpoints.key_maps import KEY_MAPS, hub_names
from mlmlab.checkpoints.weights import read_tensors
from mlmlab.data.tokenizer import Tokenizer, load_tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.fetch.hub import fetch_model
from mlmlab.model import MaskedLanguageModel, ModelConfig
from mlmlab.model.encoder import initialize_module

_LAYER_NORM_DIALECT = {"gamma": "weight", "beta": "bias"}
_PADDED_VOCABULARY = 128
"""Tables are rounded up to a multiple of at most this many rows, for the hardware's sake."""


@dataclass(frozen=True)
class LoadReport:
    """The account of one checkpoint: nothing is dropped or made up silently."""

    source: str
    """The folder, or owner/name@commit."""
    loaded: tuple[str, ...]
    """Our parameters that were read from the file."""
    tied: tuple[str, ...]
    """Names in the file that repeat a tensor already loaded."""
    ignored: tuple[str, ...]
    """Names in the file that a masked language model has no use for."""
    fresh: tuple[str, ...]
    """Our parameters that the file lacks and that were newly initialized, as was asked for."""

    def __str__(self) -> str:
        lines = [f"checkpoint {self.source}: {len(self.loaded)} parameters loaded"]
        for label, names in (("tied", self.tied), ("ignored", self.ignored), ("fresh", self.fresh)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                lines.append(f"  {label:<8} {', '.join(names[:6])}{more}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that was read, and where from."""

    model: MaskedLanguageModel
    report: LoadReport
    folder: Path
    """The folder it was read from; for one from the Hub, its place in the cache."""
    resolved: str
    """The folder, or owner/name@commit: the same checkpoint again whatever its branch does."""


def load_model(
    source: str,
    *,
    fresh_head_seed: int | None = None,
    dropout: float | None = None,
    on_meta: bool = False,
) -> LoadedModel:
    """Reads a checkpoint's model, in evaluation mode.

    Args:
        source: a folder, or owner/name[@revision] on the Hub.
        fresh_head_seed: where given, a checkpoint without a masked-LM head gets a new one.
        dropout: replaces the checkpoint's own rates.
        on_meta: the model stays on the meta device, without weights; all else is the same.

    Raises:
        UserError: not a checkpoint of the family, damaged, incomplete, or without a head.
    """
    folder, resolved = fetch_model(source)
    config = read_hub_config(folder)
    if dropout is not None:
        config = dataclasses.replace(config, dropout=dropout, attention_dropout=dropout)
    tensors = canonical_names(read_tensors(folder), config)
    with torch.device("meta"):  # shapes without memory: config.json may say anything
        model = MaskedLanguageModel(config)
    report = _fill(model, tensors, resolved, fresh_head_seed, on_meta=on_meta)
    return LoadedModel(model.eval(), report, folder, resolved)


def load_pretrained(
    source: str, *, fresh_head: bool = False, quiet: bool = False
) -> tuple[MaskedLanguageModel, Tokenizer]:
    """Reads a masked language model and its tokenizer, and prints what became of every tensor.

    Args:
        source: a checkpoint's or a run's folder, or owner/name[@revision] on the Hub.
        fresh_head: whether a checkpoint without a masked-LM head gets a new, untrained one.
        quiet: print nothing.

    Returns:
        The model, in evaluation mode on the CPU, and the tokenizer.

    Raises:
        UserError: not a checkpoint, damaged, without a masked-LM head, or out of reach.
    """
    loaded = load_model(source, fresh_head_seed=0 if fresh_head else None)
    tokenizer = load_tokenizer(loaded.folder)
    check_vocabularies(loaded.model.config, tokenizer, loaded.resolved, is_its_own=True)
    if not quiet:
        print(loaded.report, file=sys.stderr)
    return loaded.model, tokenizer


def canonical_names(
    tensors: Mapping[str, torch.Tensor], config: ModelConfig
) -> dict[str, torch.Tensor]:
    """The tensors under the names that today's files use.

    Old files say `LayerNorm.gamma` and `LayerNorm.beta` (renamed only right after `LayerNorm.`: a
    parameter may be called gamma for another reason), and files of a bare encoder lack the
    family's prefix.
    """
    key_map = KEY_MAPS[config.family]
    roots = {name.partition(".")[0] for theirs in key_map.body.values() for name in theirs}
    of_the_body = (*(f"{root}." for root in roots), *key_map.ignored)
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        name = re.sub(
            r"(?<=LayerNorm\.)(gamma|beta)$", lambda m: _LAYER_NORM_DIALECT[m.group()], name
        )
        if name.startswith(of_the_body):
            name = key_map.prefix + name
        renamed[name] = tensor
    return renamed


def _fill(
    model: MaskedLanguageModel,
    tensors: dict[str, torch.Tensor],
    source: str,
    fresh_head_seed: int | None,
    *,
    on_meta: bool,
) -> LoadReport:
    """Accounts for every name on both sides, and gives the model its weights unless it stays on
    the meta device."""
    key_map = KEY_MAPS[model.config.family]
    table = hub_names(model)
    head = {ours: theirs for ours, theirs in table.items() if ours in key_map.head}
    tied: list[str] = []
    for alias, original in key_map.tied.items():
        if alias in tensors:
            repeated = tensors.pop(alias)
            tied.append(alias)
            kept = tensors.setdefault(original, repeated)
            if not torch.equal(repeated.float(), kept.float()):
                raise UserError.of(
                    f"checkpoint {source}",
                    code=Code.UNSUPPORTED,
                    found=f"{alias} differs from {original}",
                    expected="one tensor under both names: this encoder ties them",
                    remedy="choose a checkpoint with a tied decoder",
                )
    known = {name for theirs in table.values() for name in theirs}
    head_names = {name for theirs in head.values() for name in theirs}
    shared = {name for name in head_names if name.startswith(key_map.shared_head)}
    own = (key_map.prefix, *key_map.head_prefixes)
    has_other_head = not all(name.startswith(own) for name in tensors)
    if has_other_head and not (head_names - shared) & tensors.keys():
        known -= shared
    missing = known - tensors.keys()
    headless = not head_names & known & tensors.keys()
    fresh = set(head) if headless and fresh_head_seed is not None else set()
    if headless and fresh_head_seed is None:
        raise UserError.of(
            f"checkpoint {source}",
            code=Code.MISMATCH,
            found="a checkpoint without a masked-LM head",
            expected=", ".join(name for theirs in head.values() for name in theirs),
            remedy="checkpoint_head=fresh trains a new head on this encoder; in Python, "
            "load_pretrained(..., fresh_head=True) gives it one",
        )
    lacking = [
        n for ours, theirs in table.items() for n in theirs if n in missing and ours not in fresh
    ]
    unknown = [n for n in tensors if n not in known]
    # Buffers, a pooler, heads of other tasks: no part of the encoder or of our head.
    foreign = [
        n for n in unknown
        if n in shared
        or not n.startswith(own)
        or n.removeprefix(key_map.prefix).startswith(key_map.ignored)
    ]  # fmt: skip
    surplus = [n for n in unknown if n not in foreign]
    _refuse_incomplete(source, lacking, surplus)
    for ours, parameter in model.named_parameters():
        if ours not in fresh:
            _refuse_shapes(source, {name: tensors[name] for name in table[ours]}, parameter)
    loaded = tuple(ours for ours in table if ours not in fresh)
    report = LoadReport(source, loaded, tuple(tied), tuple(foreign), tuple(sorted(fresh)))
    if on_meta:
        return report
    weights = {
        ours: torch.empty(parameter.shape)
        if ours in fresh
        else torch.cat([tensors[name] for name in table[ours]]).float()
        for ours, parameter in model.named_parameters()
    }
    model.load_state_dict(weights, assign=True)
    if fresh:
        assert fresh_head_seed is not None
        generator = torch.Generator().manual_seed(fresh_head_seed)
        for module in model.head.modules():
            initialize_module(module, model.config.initializer_range, generator)
    return report


def _refuse_incomplete(source: str, lacking: list[str], surplus: list[str]) -> None:
    if not lacking and not surplus:
        return
    parts = []
    for label, names in (("lacking", lacking), ("unknown", surplus)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            parts.append(f"{label}: {', '.join(names[:4])}{more}")
    raise UserError.of(
        f"checkpoint {source}",
        code=Code.MISMATCH,
        found="; ".join(parts),
        expected="exactly the parameters that its config.json describes",
        remedy="check that config.json and the weights belong together",
    )


def _refuse_shapes(
    source: str, parts: Mapping[str, torch.Tensor], parameter: torch.nn.Parameter
) -> None:
    """Every part must have its share of the parameter's rows, and be of floating-point numbers."""
    shape = [parameter.shape[0] // len(parts), *parameter.shape[1:]]
    for name, tensor in parts.items():
        if list(tensor.shape) != shape or not tensor.is_floating_point():
            raise UserError.of(
                f"checkpoint {source}",
                code=Code.MISMATCH,
                found=f"{name} of shape {list(tensor.shape)}, {tensor.dtype}",
                expected=f"{shape}, as its config.json says, of floating-point numbers",
                remedy="check that config.json and the weights belong together",
            )


def check_vocabularies(
    config: ModelConfig, tokenizer: Tokenizer, source: str, *, is_its_own: bool
) -> None:
    """Refuses a tokenizer that cannot be this model's.

    The table needs a row for every id. It may have more: the checkpoint's own tokenizer is taken
    at its word, another one only if the surplus looks like padding for the hardware.
    """
    rows, ids = config.vocabulary_size, tokenizer.vocabulary_size
    if ids > rows or (not is_its_own and rows >= ids + _PADDED_VOCABULARY):
        raise UserError.of(
            "checkpoint" if is_its_own else "tokenizer.path",
            code=Code.MISMATCH,
            found=f"a tokenizer of {ids} ids, and {source} with {rows} rows in its token table",
            expected="the tokenizer that the checkpoint was trained with",
            remedy="check that tokenizer and weights belong together"
            if is_its_own
            else "tokenizer.path=null takes the checkpoint's own",
        )
