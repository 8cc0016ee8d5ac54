"""Compiled functions, and the object files that they come from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mlmlab
from mlmlab.compiled import SOURCES, compiled, object_code

PACKAGE = Path(mlmlab.__file__).parent

SELECTED = """
import sys
import numpy as np
from mlmlab.masking import MaskingConfig, VocabularyInfo, mask_batch
vocabulary = VocabularyInfo(size=100, mask_id=4, protected_ids=(0, 1, 2, 3, 4))
ids, rows = np.full((2, 64), 50), np.arange(2)
config = MaskingConfig()
print(mask_batch(
    ids, example_ids=rows, epoch=0, seed=0, config=config, vocabulary=vocabulary
).positions)
print("numba" in sys.modules)
"""


def selected(package_of: Path, objects: Path | None = None) -> tuple[str, bool]:
    """What a process with that package on its path selects, and whether it imported Numba."""
    environment = os.environ | {"PYTHONPATH": str(package_of)}
    environment.pop("NUMBA_CACHE_DIR", None)
    if objects is not None:
        environment["NUMBA_CACHE_DIR"] = str(objects)
    done = subprocess.run(
        [sys.executable, "-c", SELECTED], cwd=package_of, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    positions, _, has_numba = done.stdout.strip().rpartition("\n")
    return positions, has_numba == "True"


def test_every_module_with_compiled_functions_is_part_of_the_digest() -> None:
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if re.search(r"^from mlmlab\.compiled import|^@(compiled|inlined)", file.read_text(), re.M)
    }
    assert len(users) >= 3
    assert users <= set(SOURCES)


def test_a_change_of_an_inlined_function_is_never_hidden_by_an_object_file(tmp_path: Path) -> None:
    # The masking kernel inlines random.py's Philox.
    shutil.copytree(PACKAGE, tmp_path / "mlmlab", ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "mlmlab" / "random.py"
    text, before = module.read_text(), selected(tmp_path)
    assert "range(10)" in text
    module.write_text(text.replace("range(10)", "range(9)"))
    assert selected(tmp_path)[0] != before[0]
    module.write_text(text)
    assert selected(tmp_path) == (before[0], False)


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_a_flipped_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def emptied(_: bytes) -> bytes:
    return b""


def test_only_a_whole_object_file_is_loaded_and_it_needs_no_numba(tmp_path: Path) -> None:
    first, imported = selected(PACKAGE.parent, tmp_path)
    assert imported
    (file,) = tmp_path.rglob("mask_tokens-int64.o")
    whole = file.read_bytes()
    assert selected(PACKAGE.parent, tmp_path) == (first, False)
    for damaged in (halved, emptied, with_a_flipped_bit):
        assert object_code(file) is not None
        file.write_bytes(damaged(whole))
        assert object_code(file) is None, damaged.__name__
        file.write_bytes(whole)
    file.write_bytes(with_a_flipped_bit(whole))
    assert selected(PACKAGE.parent, tmp_path) == (first, True)  # compiled again
    assert file.read_bytes() == whole
    assert [other.name for other in file.parent.iterdir()] == [file.name]


def test_without_a_place_for_object_files_a_function_is_compiled_anew(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "within"
    expected, _ = selected(PACKAGE.parent)
    assert selected(PACKAGE.parent, nowhere) == (expected, True)


def test_a_function_that_could_raise_or_call_is_refused_when_it_is_compiled() -> None:
    @compiled("int64")
    def picky(number):  # type: ignore[no-untyped-def]
        if number > 3:
            raise ValueError
        return number

    with pytest.raises(AssertionError, match=r"picky needs \['numba_gil_ensure'"):
        picky.of()
