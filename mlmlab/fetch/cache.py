"""The folder for what is downloaded or built once, and how to build in it."""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mlmlab.errors import Code, UserError
from mlmlab.system import flush

_RACY_SECONDS = 5.0
"""A file that changed less than this ago may change again within one tick of its timestamps."""


def absolute(path: str) -> str:
    """A local path as it is written into config.yaml: the same from any folder. `~` is expanded."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (globs, too)


def local_path(name: str) -> Path | None:
    """The file or folder of that name; None if there is none, so that it may be one on the Hub."""
    path = os.path.expanduser(name)  # noqa: PTH111 (Path's raises for an unknown user)
    # Path's would raise for a name that is too long to be a file's.
    return Path(path) if os.path.exists(path) else None  # noqa: PTH110


def cache_folder() -> Path:
    """Where corpora, tokenizers and downloads are kept: $MLMLAB_CACHE, or ~/.cache/mlmlab."""
    if "MLMLAB_CACHE" in os.environ:
        return Path(os.environ["MLMLAB_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mlmlab"


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Holds the lock of something in the cache, the file PATH.lock, which stays there.

    The operating system frees the lock when the process ends, however it ends.

    Args:
        doing: what the holder does, for the line on stderr of a process that has to wait.

    Raises:
        OSError: the lock file cannot be written, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process that is {doing}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def built_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Has one process at a time fill a folder under another name, then renames it: the folder is
    complete or absent.

    Returns:
        True if the folder was there already, and nothing was built.

    Raises:
        UserError: the folder cannot be written.
    """
    if folder.is_dir():
        return True
    try:
        with locked(folder, f"building {folder}"):
            if folder.is_dir():  # another process built it in the meantime
                return True
            building = folder.with_name(f"{folder.name}.building")
            shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
            building.mkdir()
            try:
                build(building)
                for file in building.iterdir():
                    flush(file)
                building.rename(folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise unwritable(folder.parent, error) from error
    return False


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. It is remembered in the cache for as long as the file's
    name, size, times and inode stay the same.

    Raises:
        OSError: the file cannot be read.
    """
    now = path.stat()
    identity = f"{path.absolute()}\n{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino}"
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    memory = cache_folder() / "digests" / name[:32]
    with suppress(OSError):
        remembered = memory.read_text()
        if len(remembered) == 64:  # a power cut can leave an empty file
            return remembered
    is_settled = time.time() - max(now.st_mtime, now.st_ctime) > _RACY_SECONDS
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if is_settled:
        with suppress(OSError):  # a cache that cannot be written costs the time to hash, no more
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(memory, digest)
    return digest


def write_at_once(path: Path, text: str) -> None:
    """Writes a small file: other processes see all of it, or what was there before."""
    building = path.with_name(f"{path.name}.{os.getpid()}")
    building.write_text(text, encoding="utf-8")
    building.replace(path)


def unwritable(folder: Path, error: OSError) -> UserError:
    """The refusal of a cache folder that cannot be written."""
    return UserError.of(
        "the cache folder",
        code=Code.NOT_WRITABLE,
        found=f"{folder}: {error.strerror or error}",
        expected="a folder that can be written, on a file system with locks and with enough room",
        remedy="set the environment variable MLMLAB_CACHE to another folder",
    )
