"""A checkpoint of the run: weights, moments and a small progress record. No generator states:
data, masks and dropout are functions of the batch number.

    step_N/model.safetensors       the weights; with config.json and the tokenizer's files it is a
                                   folder in the Hub's layout
    step_N/optimizer.safetensors   what the optimizers keep, by the parameter's name or the group's
                                   number
    step_N/progress.json           the progress record, and the fingerprint of the run's config
    step_N/digests.json            the SHA-256 of each of the others
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mlmlab.checkpoints.key_maps import hub_names
from mlmlab.checkpoints.save import save_checkpoint
from mlmlab.data.tokenizer import Tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.system import flush
from mlmlab.training.optimizer import changed_entries
from mlmlab.training.parallel import Replica

_Kept = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors; and numbers, or lists in which a tensor is the mapping {"tensor": its name}."""
_MODEL, _OPTIMIZER, _PROGRESS = "model.safetensors", "optimizer.safetensors", "progress.json"
_DIGESTS = "digests.json"


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """What fp16 losses are multiplied by, so that small gradients do not vanish: halved when a
    gradient overflows, doubled after `growth_steps` steps without (Micikevicius et al. 2018,
    "Mixed precision training", section 3.2)."""

    scale: float = 2.0**16
    clean_steps: int = 0
    """Steps since it last changed."""
    growth_steps: int = 2000

    def after(self, *, overflowed: bool) -> "LossScale":
        """The next step's."""
        if overflowed:
            return dataclasses.replace(self, scale=self.scale / 2, clean_steps=0)
        if self.clean_steps + 1 == self.growth_steps:
            return dataclasses.replace(self, scale=self.scale * 2, clean_steps=0)
        return dataclasses.replace(self, clean_steps=self.clean_steps + 1)


@dataclass(frozen=True, kw_only=True)
class LogWindow:
    """What has been summed since the last log line."""

    loss_sums: tuple[float, ...] = ()
    """Of each process."""
    loss_weight: float = 0.0
    """What their sum is divided by."""


@dataclass(frozen=True, kw_only=True)
class ProgressRecord:
    """How far the run is: with weights and moments, all that a resume needs."""

    batches: int = 0
    """Batches consumed: what data, masks and dropout follow."""
    steps: int = 0
    """Steps applied: what learning rate and masking rate follow."""
    skipped_steps: int = 0
    """Steps left out because an fp16 gradient overflowed."""
    tokens: int = 0
    """Tokens in the batches consumed."""
    evaluation_due: bool = True
    """Whether an evaluation comes next, as it does before the first step."""
    initial_eval_loss: float | None = None
    initial_eval_loss_standard_error: float | None = None
    best_value: float | None = None
    """Of the monitored figure, in the best evaluation: the one that it ranks first."""
    best_eval_loss: float | None = None
    """The loss of that evaluation."""
    best_step: int = 0
    """Steps applied before it."""
    evaluations_since_best: int = 0
    train_loss: float | None = None
    """Of the last log line."""
    log_sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of metrics.jsonl and of each TensorBoard event file, by name: a resume cuts them to
    these sizes."""
    window: LogWindow = field(default_factory=LogWindow)
    loss_scale: LossScale = field(default_factory=LossScale)
    seconds: float = 0.0
    """Of training so far, evaluations included."""
    step_seconds: float = 0.0
    """Without evaluations and checkpoints."""


class DamagedCheckpoint(Exception):  # noqa: N818 (what it is, not what happened)
    """A checkpoint that is incomplete, or not as it was written; the message says why."""


def save_state(
    folder: Path,
    replica: Replica,
    tokenizer: Tokenizer,
    optimizers: Sequence[torch.optim.Optimizer],
    record: ProgressRecord,
    fingerprint: str,
    *,
    flush_logs: Callable[[], Mapping[str, int]] = dict,
) -> None:
    """Writes a checkpoint under a temporary name and renames it: complete or absent.

    Every process calls it with its part, and rank 0 writes. It has all of them before it
    begins to, so that no other process waits for a full disk.

    Args:
        fingerprint: of the run's config, without what a resumed run may change.
        flush_logs: called on rank 0, once it has all parts: the sizes that `log_sizes` records.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    model, kept = replica.unsharded_model(), _kept(replica, optimizers)
    if model is None:
        return
    building = folder.with_name(f".{folder.name}.building")
    for left_behind in folder.parent.glob(".step_*.building"):  # by a run that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        record = dataclasses.replace(record, log_sizes=flush_logs())
        save_checkpoint(model, tokenizer, building)
        _write(building, kept, record, fingerprint)
        for file in building.iterdir():
            flush(file)
        flush(building)
        replaced = folder.with_name(f"{folder.name}.replaced")
        if folder.exists():  # the same step again: at every moment one of them is there
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        building.rename(folder)
        flush(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _kept(replica: Replica, optimizers: Sequence[torch.optim.Optimizer]) -> _Kept:
    """Everything that the optimizers keep, put together on rank 0; the other ranks have no tensors.

    A value is filed under the name of its parameter and its own: NAME.exp_avg, say; one that an
    optimizer keeps in a parameter group, under the numbers of both: group/0.1.k. Tensors in a list
    have a number more: NAME.Q/0.
    """
    tensors: dict[str, torch.Tensor] = {}

    def packed(key: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if (whole := replica.unsharded(value)) is not None:
                tensors[key] = whole.contiguous()
            return {"tensor": key}
        if isinstance(value, list | tuple):
            return [packed(f"{key}/{number}", item) for number, item in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise UserError.of(
            "train.optimizer",
            code=Code.UNSUPPORTED,
            found=f"{key}, which the optimizer keeps, is {type(value).__name__}",
            expected="tensors, numbers and lists of them: what a checkpoint can have",
            remedy="keep each of its tensors and numbers under a separate name",
        )

    values = {}
    for name, p in replica.model.named_parameters():
        for optimizer in optimizers:
            for kind, value in optimizer.state.get(p, {}).items():
                values[f"{name}.{kind}"] = packed(f"{name}.{kind}", value)
    values = {key: value for key, value in values.items() if value != {"tensor": key}}
    for number, optimizer in enumerate(optimizers):
        for place, group in enumerate(optimizer.param_groups):
            for kind, value in changed_entries(group).items():
                key = f"group/{number}.{place}.{kind}"
                values[key] = packed(key, value)
    return tensors, {key: value for key, value in values.items() if value is not None}


def _write(folder: Path, kept: _Kept, record: ProgressRecord, fingerprint: str) -> None:
    content = {"fingerprint": fingerprint, "progress": dataclasses.asdict(record)}
    tensors, values = kept
    save_file(tensors, str(folder / _OPTIMIZER), metadata={"numbers": json.dumps(values)})
    (folder / _PROGRESS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    (folder / _DIGESTS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def load_state(
    folder: Path, replica: Replica, optimizers: Sequence[torch.optim.Optimizer]
) -> ProgressRecord:
    """Puts a checkpoint's weights and optimizer state into a model and its optimizers, one tensor
    after the other: a process never holds more of it than its part and one tensor."""
    load_weights(folder, replica)
    owners = {
        p: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    named = dict(replica.model.named_parameters())
    with safe_open(str(folder / _OPTIMIZER), framework="pt") as file:

        def unpacked(value: Any, p: torch.nn.Parameter) -> Any:
            if isinstance(value, dict):
                return replica.part(file.get_tensor(value["tensor"]), p)
            return [unpacked(item, p) for item in value] if isinstance(value, list) else value

        tensors = {key: {"tensor": key} for key in file.keys() if "/" not in key}  # noqa: SIM118
        numbers = json.loads((file.metadata() or {}).get("numbers", "{}"))
        for key, value in {**tensors, **numbers}.items():
            if key.startswith("group/"):
                number, place, kind = key.removeprefix("group/").split(".", 2)
                group = optimizers[int(number)].param_groups[int(place)]
                group[kind] = unpacked(value, group["params"][0])
            else:
                name, _, kind = key.rpartition(".")
                owners[named[name]].state[named[name]][kind] = unpacked(value, named[name])
    record, _ = _read_progress(folder)
    return record


def load_weights(folder: Path, replica: Replica) -> None:
    """Puts a checkpoint's weights into a model; every process calls it."""
    theirs = hub_names(replica.model)
    with safe_open(str(folder / _MODEL), framework="pt") as weights:
        for name, p in replica.model.named_parameters():
            whole = torch.cat([weights.get_tensor(part) for part in theirs[name]])
            with torch.no_grad():
                p.copy_(replica.part(whole, p))


def check_state(folder: Path, fingerprint: str) -> ProgressRecord:
    """Whether a checkpoint is complete, and of this run.

    Raises:
        DamagedCheckpoint: it is not.
        UserError: another version of mlmlab wrote it.
    """
    try:
        digests = json.loads((folder / _DIGESTS).read_text(encoding="utf-8"))
        for name in {_MODEL, _OPTIMIZER, _PROGRESS, *digests}:
            if digests[name] != _digest(folder / name):
                raise DamagedCheckpoint(f"{name} is not as it was written")
        record, written_for = _read_progress(folder)
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{_DIGESTS} cannot be read: {error}") from error
    if written_for != fingerprint:
        raise DamagedCheckpoint("it belongs to a run with another config")
    return record


def newest_state(
    run_dir: Path, fingerprint: str, tell: Callable[[str], None]
) -> tuple[Path, ProgressRecord] | None:
    """The newest complete checkpoint of a run; None if there is none.

    Args:
        tell: gets a line about each damaged one that was skipped.
    """
    for folder in reversed(checkpoint_folders(run_dir)):
        try:
            return folder, check_state(folder, fingerprint)
        except DamagedCheckpoint as error:
            tell(f"{folder} is skipped: {error}")
    return None


def checkpoint_folders(run_dir: Path, up_to: int | None = None) -> list[Path]:
    """The run's checkpoints, oldest first.

    Args:
        up_to: leaves out those of later steps.
    """
    found = []
    for folder in (run_dir / "checkpoints").glob("step_*"):
        if match := re.fullmatch(r"step_(\d+)(\.replaced)?", folder.name):
            found.append((int(match.group(1)), match.group(2) is None, folder))
    return [folder for step, _, folder in sorted(found) if up_to is None or step <= up_to]


def remove_old(run_dir: Path, keep: int, record: ProgressRecord) -> None:
    """Removes all but the newest `keep` checkpoints and the best one.

    Those of later steps, which are damaged or the run would have gone on from them, neither count
    nor go: the run comes to them.
    """
    for folder in checkpoint_folders(run_dir, record.steps)[: -keep or None]:
        if folder.name != f"step_{record.best_step}":
            shutil.rmtree(folder)


def _read_progress(folder: Path) -> tuple[ProgressRecord, str]:
    content = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    fields = content["progress"]
    if differing := fields.keys() ^ {field.name for field in dataclasses.fields(ProgressRecord)}:
        raise UserError.of(
            "resume",
            code=Code.OTHER_VERSION,
            found=f"{folder}, written by another version of mlmlab: {', '.join(sorted(differing))} "
            "differ in its progress record",
            expected="a checkpoint that this version wrote",
            remedy="resume the run with that version; or start a new run from its weights: "
            f"checkpoint={folder}",
        )
    window = fields["window"] | {"loss_sums": tuple(fields["window"]["loss_sums"])}
    record = ProgressRecord(
        **fields | {"window": LogWindow(**window), "loss_scale": LossScale(**fields["loss_scale"])}
    )
    return record, content["fingerprint"]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
