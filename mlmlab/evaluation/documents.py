"""The losses of an evaluation's documents, and the file that keeps them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from mlmlab.errors import Code, UserError

DOCUMENTS, EVALUATION = "eval_documents.npz", "evaluation.json"
"""The losses' file, in the folder of a run and of an evaluation that is kept; and the figures of
the latter."""


@dataclass(frozen=True, eq=False)
class DocumentLosses:
    """What two evaluations of the same test are compared by, document by document."""

    loss_sums: NDArray[np.float64]
    """float64 `[documents]`, nats."""
    masked_tokens: NDArray[np.int64]
    """int64 `[documents]`, how many tokens were predicted in each; 0 in one that was left out."""
    test: str
    """SHA-256 of what was asked: the masked inputs, the predicted positions and the true ids. Two
    evaluations compare if it is the same, whatever texts, tokenizers and masks their configs
    name."""

    def write(self, folder: Path) -> None:
        """`DOCUMENTS` in the folder."""
        np.savez(
            folder / DOCUMENTS,
            loss_sums=self.loss_sums,
            masked_tokens=self.masked_tokens,
            test=np.array(self.test),
        )

    @classmethod
    def read(cls, folder: Path) -> "DocumentLosses":
        """What `write` wrote.

        Raises:
            UserError: it is damaged.
        """
        try:
            with (folder / DOCUMENTS).open("rb") as opened, np.load(opened) as file:
                return cls(file["loss_sums"], file["masked_tokens"], str(file["test"]))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError.of(
                str(folder / DOCUMENTS),
                code=Code.CORRUPT,
                found=str(error),
                expected="the losses that mlmlab writes, as NumPy's npz",
                remedy="remove the file: the rest is reported without it",
            ) from error


def digest_of(*arrays: NDArray[np.int64]) -> bytes:
    """SHA-256 of integers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.digest()
