"""The ids that masking works on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VocabularyInfo:
    """The ids that a masking kernel needs to know."""

    size: int
    """Ids are 0 ... size - 1."""
    mask_id: int
    """The id of the mask token."""
    protected_ids: tuple[int, ...]
    """Ids that are never selected and never drawn: special tokens, padding, the mask itself."""

    def __post_init__(self) -> None:
        for number in (self.mask_id, *self.protected_ids):
            if not 0 <= number < self.size:
                raise ValueError(f"id {number} is outside the vocabulary of {self.size} ids")
        if not self.replacement_ids.size:
            raise ValueError("every id is protected: nothing is left to draw a replacement from")

    @cached_property
    def protected(self) -> NDArray[np.bool_]:
        """A table, bool `[size]`: True for a protected id."""
        table = np.zeros(self.size, np.bool_)
        table[[self.mask_id, *self.protected_ids]] = True
        return table

    @cached_property
    def replacement_ids(self) -> NDArray[np.int64]:
        """int64, ascending: the ids that a replaced token is drawn from."""
        return np.flatnonzero(~self.protected).astype(np.int64)
