"""What to mask: the policy (`MaskingConfig`) and the ids it works on (`VocabularyInfo`)."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from mlmlab.errors import Problem


class Unit(Enum):
    """What is selected together."""

    TOKEN = "token"


class MaskingMode(Enum):
    """Whether the masks change from epoch to epoch."""

    DYNAMIC = "dynamic"
    STATIC = "static"


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """The masking policy (Devlin et al. 2019, section 3.1, and its later variants)."""

    rate: float = 0.15
    """Chance that a token is selected, that is, predicted."""
    unit: Unit = Unit.TOKEN
    """What is selected together."""
    mask_fraction: float = 0.8
    """Share of the selected tokens that become the mask token."""
    random_fraction: float = 0.1
    """Share that become a random id; the rest keep their own."""
    mode: MaskingMode = MaskingMode.DYNAMIC
    """dynamic: new masks each epoch (RoBERTa). static: the same ones (the original BERT)."""

    def problems(self) -> Iterator[Problem]:
        """What no masking kernel could do."""
        for name in ("rate", "mask_fraction", "random_fraction"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                yield Problem(
                    f"masking.{name}",
                    str(value),
                    "a share between 0 and 1",
                    f"for instance masking.{name}={type(self).__dataclass_fields__[name].default}",
                )
        if self.mask_fraction + self.random_fraction > 1.0 + 1e-9:
            yield Problem(
                "masking.mask_fraction + masking.random_fraction",
                f"{self.mask_fraction} + {self.random_fraction}",
                "a sum of at most 1; what is left is the share of kept tokens",
                "for instance masking.mask_fraction=0.8 masking.random_fraction=0.1",
            )

    def thresholds(self) -> tuple[np.uint64, np.uint64, np.uint64]:
        """Where a token's 32-bit word is cut: below the first it is masked, below the second
        replaced, below the third kept but predicted, and above it is left alone."""
        cuts = (
            self.rate * self.mask_fraction,
            self.rate * min(1.0, self.mask_fraction + self.random_fraction),
            self.rate,
        )
        mask, replace, select = (np.uint64(round(cut * 2**32)) for cut in cuts)
        return mask, replace, select


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
        if not self.replacement_ids().size:
            raise ValueError("every id is protected: nothing is left to draw a replacement from")

    def protected(self) -> NDArray[np.bool_]:
        """A table, bool `[size]`: True for a protected id."""
        table = np.zeros(self.size, np.bool_)
        table[[self.mask_id, *self.protected_ids]] = True
        return table

    def replacement_ids(self) -> NDArray[np.int64]:
        """int64, ascending: the ids that a replaced token is drawn from."""
        return np.flatnonzero(~self.protected()).astype(np.int64)
