"""The folder for what is downloaded or built once, and how to build in it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mlmlab.errors import UserError


def absolute(path: str) -> str:
    """A local path as it is written into config.yaml: the same from any folder. `~` is expanded."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (globs, too)


def cache_folder() -> Path:
    """Where corpora, tokenizers and downloads are kept: $MLMLAB_CACHE, or ~/.cache/mlmlab."""
    if "MLMLAB_CACHE" in os.environ:
        return Path(os.environ["MLMLAB_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlmlab"


def built_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Has `build` fill a folder under a temporary name, then renames it: complete or absent.

    Returns:
        True if the folder was there already, and nothing was built.

    Raises:
        UserError: the folder cannot be written.
    """
    if folder.is_dir():
        return True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as name:
            building = Path(name) / folder.name
            building.mkdir()
            build(building)
            for file in building.iterdir():
                flush(file)
            try:
                building.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run was faster
                    raise
    except OSError as error:
        raise UserError.of(
            "the cache folder",
            found=f"{folder.parent}: {error.strerror or error}",
            expected="a folder that can be written, with room for the tokens",
            remedy="set the environment variable MLMLAB_CACHE to another folder",
        ) from error
    return False


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
