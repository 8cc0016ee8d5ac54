"""Numba, with a cache on disk that cannot be stale."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

_NUMBA: Any = numba.config  # its variables are made at run time, from the environment
_PACKAGE = Path(__file__).resolve().parent
SOURCES = ("random.py", "masking/config.py", "masking/units.py", "masking/kernel.py")
"""Every module with compiled functions, or with constants that become part of them."""


def compiled(**options: Any) -> Callable[[Compiled], Compiled]:
    """`numba.njit` with a cache on disk.

    Numba compiles a function anew when its own file has changed, but not when another file has
    whose functions are inlined into it. So the cache's folder is named by the digest of all.

    Args:
        options: those of `numba.njit`.
    """

    def decorate(function: Compiled) -> Compiled:
        # Numba chooses the folder when it decorates; other packages keep theirs.
        theirs = _NUMBA.CACHE_DIR
        _NUMBA.CACHE_DIR = _folder(theirs)
        try:
            decorated: Compiled = numba.njit(cache=True, **options)(function)
        finally:
            _NUMBA.CACHE_DIR = theirs
        return decorated

    return decorate


@cache
def _folder(chosen: str) -> str:
    """Within $NUMBA_CACHE_DIR where it is set; else beside the package, or, where that cannot be
    written, in the user's cache."""
    digest = hashlib.sha256(b"".join((_PACKAGE / name).read_bytes() for name in SOURCES))
    name = f"mlmlab-{digest.hexdigest()[:16]}"
    if chosen:
        return str(Path(chosen) / name)
    if os.access(_PACKAGE, os.W_OK):
        return str(_PACKAGE / "__pycache__" / name)
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return str(cache_home / "mlmlab" / "compiled" / name)
