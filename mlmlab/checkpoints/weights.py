"""The weight files of a checkpoint folder: safetensors, sharded or in one file, or a safe .bin."""

import pickle
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

from mlmlab.data.json_file import read_json_object
from mlmlab.errors import Code, UserError

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
LEGACY_FILE = "pytorch_model.bin"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by the names in its files, as they are there. Those of
    safetensors files are mapped from the disk: they take memory only where they are copied.

    Nothing is ever unpickled freely: a .bin is read with `weights_only=True`.

    Raises:
        UserError: no weights there, or a damaged or unsafe file.
    """
    single, index, legacy = folder / SINGLE_FILE, folder / SHARD_INDEX, folder / LEGACY_FILE
    if single.is_file():
        return _read_safetensors(single)
    if index.is_file():
        tensors: dict[str, torch.Tensor] = {}
        present = {file.name for file in folder.iterdir()}
        for name in _shards(index):
            if name not in present:
                raise UserError.of(
                    f"checkpoint {index}",
                    code=Code.NOT_FOUND,
                    found=f"{name[:100]}, which is not in the folder",
                    expected="every shard next to the index",
                    remedy="fetch the missing file",
                )
            tensors |= _read_safetensors(folder / name)
        return tensors
    if legacy.is_file():
        with _damage_named(legacy):
            content = torch.load(legacy, map_location="cpu", weights_only=True)
            return {n: t for n, t in content.items() if isinstance(t, torch.Tensor)}
    raise UserError.of(
        "checkpoint",
        code=Code.NOT_FOUND,
        found=f"{folder}: no weights in it",
        expected=f"{SINGLE_FILE}, {SHARD_INDEX} with its shards, or {LEGACY_FILE}",
        remedy="checkpoint=DIR, the folder that holds config.json and the weights",
    )


def _shards(index: Path) -> list[str]:
    weight_map = read_json_object(index, remedy="fetch the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise UserError.of(
            f"checkpoint {index}",
            code=Code.CORRUPT,
            found=f"weight_map={reprlib.repr(weight_map)}",
            expected="an object that names the file of every tensor",
            remedy="fetch the file again",
        )
    return sorted(set(weight_map.values()))


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    with _damage_named(file), safe_open(str(file), framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turns what the readers raise for a damaged file into one message that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError.of(
            f"checkpoint {file}",
            code=Code.CORRUPT,
            found="a pickle that is damaged or holds more than tensors",
            expected="tensors only; anything else could run code and is never opened",
            remedy="use a copy saved as safetensors",
        ) from error
    except Exception as error:  # unpickling damaged bytes may end in any exception
        raise UserError.of(
            f"checkpoint {file}",
            code=Code.CORRUPT,
            found=f"a file that cannot be read: {(str(error) or repr(error)).splitlines()[0]}",
            expected="complete weights",
            remedy="fetch or copy the file again",
        ) from error
