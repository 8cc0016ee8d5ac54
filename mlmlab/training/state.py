"""A checkpoint of the run: weights, moments and a small progress record. No generator states:
data, masks and dropout are functions of the batch number.

    step_N/model.safetensors       the weights, by our names
    step_N/optimizer.safetensors   AdamW's moments, by the parameter's name
    step_N/progress.json           written last
"""

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mlmlab.fetch.cache import flush
from mlmlab.model import MaskedLanguageModel

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True)
class ProgressRecord:
    """How far the run is."""

    batches: int = 0
    """Batches consumed: what data, masks and dropout follow."""
    updates: int = 0
    """Updates applied: what the learning rate follows."""
    tokens: int = 0
    """Tokens in the batches consumed."""
    initial_eval_loss: float | None = None
    best_eval_loss: float | None = None


def save_state(
    folder: Path,
    model: MaskedLanguageModel,
    optimizer: torch.optim.Optimizer,
    progress: ProgressRecord,
) -> None:
    """Writes a checkpoint under a temporary name and renames it: complete or absent."""
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    weights = {name: p.detach().cpu() for name, p in model.named_parameters()}
    moments = {
        f"{name}.{kind}": optimizer.state[p][kind].detach().cpu()
        for name, p in model.named_parameters()
        for kind in _MOMENTS
        if p in optimizer.state
    }
    save_file(weights, str(building / "model.safetensors"))
    save_file(moments, str(building / "optimizer.safetensors"))
    record = json.dumps(dataclasses.asdict(progress), indent=2)
    (building / "progress.json").write_text(record, encoding="utf-8")
    for file in building.iterdir():
        flush(file)
    flush(building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    flush(folder.parent)


def load_state(
    folder: Path, model: MaskedLanguageModel, optimizer: torch.optim.Optimizer
) -> ProgressRecord:
    """Puts a checkpoint's weights and moments into a model and its optimizer."""
    weights = load_file(str(folder / "model.safetensors"))
    moments = load_file(str(folder / "optimizer.safetensors"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
            if f"{name}.step" in moments:
                optimizer.state[parameter] = {
                    kind: moments[f"{name}.{kind}"].to(parameter.device) for kind in _MOMENTS
                }
    return ProgressRecord(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))


def checkpoint_folders(run_dir: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    found = [
        (int(match.group(1)), folder)
        for folder in (run_dir / "checkpoints").glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", folder.name))
    ]
    return [folder for _, folder in sorted(found)]


def remove_old(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for folder in checkpoint_folders(run_dir)[: -keep or None]:
        shutil.rmtree(folder)
