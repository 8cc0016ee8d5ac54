"""The weight files of a checkpoint folder: safetensors, in shards or whole, or a safe .bin."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from mlmlab.errors import UserError

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
LEGACY_FILE = "pytorch_model.bin"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by the names in its files, as fp32 on the CPU.

    Nothing is ever unpickled freely: a .bin is read with `weights_only=True`.

    Raises:
        UserError: no weights there, or a damaged or unsafe file.
    """
    if (folder / SINGLE_FILE).is_file():
        tensors = _read_safetensors(folder / SINGLE_FILE)
    elif (folder / SHARD_INDEX).is_file():
        tensors = {}
        for name in _shards(folder / SHARD_INDEX):
            if not (folder / name).is_file():
                raise UserError.of(
                    f"checkpoint {folder}",
                    found=f"no {name}, which {SHARD_INDEX} lists",
                    expected="every shard beside the index",
                    remedy="fetch the missing file",
                )
            tensors |= _read_safetensors(folder / name)
    elif (folder / LEGACY_FILE).is_file():
        tensors = _read_legacy(folder / LEGACY_FILE)
    else:
        raise UserError.of(
            "checkpoint",
            found=f"{folder}: no weights in it",
            expected=f"{SINGLE_FILE}, {SHARD_INDEX} with its shards, or {LEGACY_FILE}",
            remedy="checkpoint=DIR, the folder that holds config.json and the weights",
        )
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    return {name: tensor.float() for name, tensor in floating.items()} | {
        name: tensor for name, tensor in tensors.items() if name not in floating
    }


def _shards(index: Path) -> list[str]:
    with _damage_named(index):
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    with _damage_named(file), safe_open(str(file), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def _read_legacy(file: Path) -> dict[str, torch.Tensor]:
    with _damage_named(file):
        content = torch.load(file, map_location="cpu", weights_only=True)
        return {name: t for name, t in content.items() if isinstance(t, torch.Tensor)}


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turns what the readers raise for a damaged file into one message that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError.of(
            f"checkpoint {file}",
            found="a pickle that is damaged or holds more than tensors",
            expected="tensors only; anything else could run code and is never opened",
            remedy="use a copy saved as safetensors",
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError.of(
            f"checkpoint {file}",
            found=f"a file that cannot be read: {str(error).splitlines()[0]}",
            expected="complete weights",
            remedy="fetch or copy the file again",
        ) from error
