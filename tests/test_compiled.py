"""Compiled functions, and the cache on disk that they come from."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlmlab
from mlmlab.compiled import SOURCES

PACKAGE = Path(mlmlab.__file__).parent

SELECTED = """
import numpy as np
from mlmlab.masking import MaskingConfig, VocabularyInfo, mask_batch
vocabulary = VocabularyInfo(size=100, mask_id=4, protected_ids=(0, 1, 2, 3, 4))
ids, rows = np.full((2, 64), 50), np.arange(2)
config = MaskingConfig()
print(mask_batch(
    ids, example_ids=rows, epoch=0, seed=0, config=config, vocabulary=vocabulary
).positions)
"""


def test_every_module_with_compiled_functions_is_part_of_the_digest() -> None:
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if re.search(r"^from mlmlab\.compiled import|^@compiled", file.read_text(), re.MULTILINE)
    }
    assert len(users) >= 3
    assert users <= set(SOURCES)


def test_a_change_of_an_inlined_function_is_never_hidden_by_the_cache(tmp_path: Path) -> None:
    # The masking kernel in kernel.py inlines random.py's Philox: Numba looks at kernel.py alone.
    shutil.copytree(PACKAGE, tmp_path / "mlmlab", ignore=shutil.ignore_patterns("__pycache__"))

    def selected() -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        environment.pop("NUMBA_CACHE_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", SELECTED], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    module = tmp_path / "mlmlab" / "random.py"
    text, before = module.read_text(), selected()
    assert "range(10)" in text
    module.write_text(text.replace("range(10)", "range(9)"))
    assert selected() != before
    module.write_text(text)
    assert selected() == before
