"""Who selects the tokens to predict: the kernel, or a policy of the user's own.

B sequences   T positions
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlmlab import seams
from mlmlab.errors import Code, UserError
from mlmlab.masking.config import UNITS, Corrupt, MaskingPolicy
from mlmlab.masking.kernel import MaskedBatch, mask_batch
from mlmlab.masking.vocabulary import VocabularyInfo
from mlmlab.random import Domain, derive_seed, uniforms


@dataclass(frozen=True, eq=False)
class PolicyBatch:
    """What a user's own policy selects from."""

    input_ids: NDArray[np.int64]
    """`[B, T]`, a copy."""
    example_ids: NDArray[np.int64]
    """`[B]`: with the epoch, they name the rows."""
    epoch: int
    """From 0; always 0 for masking.mode=static; for an evaluation, the draw."""
    rate: float
    """The step's masking rate, where a schedule moves it."""
    word_starts: NDArray[np.uint8] | None
    """`[B, T]`: 1 where a word begins, 2 where a document does. Special tokens are words, too, and
    a word begins where the row does. None unless the policy has `needs_words = True`."""
    selectable: NDArray[np.bool_]
    """`[B, T]`: False for special tokens and padding, which are never predicted."""
    seed: int
    """Of the masks, for a policy's own generators; `uniform` uses it already."""

    def uniform(self, stream: int = 0) -> NDArray[np.float64]:
        """Random numbers in [0, 1), float64 `[B, T]`: each a function of the seed, the epoch, its
        row's example id, its position and the stream. No others in a run depend on them.

        Args:
            stream: 0 or above; each has its own numbers.
        """
        seed = derive_seed(self.seed, Domain.POLICY, stream)
        length = self.input_ids.shape[1]
        return uniforms(seed, Domain.POLICY, self.example_ids, length, self.epoch)


class OwnPolicy(Protocol):
    """A policy of the user's own.

    Two more things are optional: `needs_words = True` asks for `batch.word_starts`;
    `units(batch)`, integers `[B, T]`, makes corrupt=unit possible: the selected tokens of a row
    that have equal numbers are masked, replaced or kept at once.
    """

    def select(self, batch: PolicyBatch) -> NDArray[np.bool_]:
        """The tokens to predict, bool `[B, T]`; special tokens and padding are left out afterwards.

        For masks that depend on nothing but the example, each row must follow from that row alone.
        """


class KernelPolicy:
    """A built-in policy: the kernel selects and corrupts in one pass."""

    def __init__(self, config: MaskingPolicy) -> None:
        self.needs_words = config.unit != "token"


POLICIES = dict.fromkeys(UNITS, KernelPolicy)


def build_policy(config: MaskingPolicy) -> KernelPolicy | OwnPolicy:
    """The policy that `unit` names, built with the config and its options.

    Raises:
        UserError: a custom one that cannot be found, cannot be built, or has no select or units.
    """
    key = f"{config.path}.unit"
    build = seams.find(
        key,
        config.unit,
        POLICIES,
        arguments=("config",),
        options=config.options,
        options_key=f"{config.path}.options",
    )
    policy: KernelPolicy | OwnPolicy = build(config)
    if isinstance(policy, KernelPolicy):
        return policy
    seams.require(key, config.unit, policy, "select(batch)")
    if config.corrupt is Corrupt.UNIT and not callable(getattr(policy, "units", None)):
        raise UserError.of(
            f"{config.path}.corrupt",
            code=Code.CONFLICT,
            found=f"unit, and {config.unit} has no units(batch)",
            expected="a policy that says which tokens are one unit: units(batch), integers [B, T]",
            remedy=f"{config.path}.corrupt=token, or add units(batch)",
        )
    return policy


def needs_words(policy: KernelPolicy | OwnPolicy) -> bool:
    """Whether a policy is to know where words begin."""
    return bool(getattr(policy, "needs_words", False))


def mask_with_policy(
    policy: KernelPolicy | OwnPolicy,
    input_ids: NDArray[np.integer],
    *,
    example_ids: NDArray[np.int64],
    epoch: int,
    seed: int,
    config: MaskingPolicy,
    vocabulary: VocabularyInfo,
    word_starts: NDArray[Any] | None,
    selected: NDArray[np.bool_] | None = None,
) -> MaskedBatch[NDArray[Any]]:
    """`mask_batch`, where the policy selects the tokens.

    Args:
        policy: built with the config, but for the rate, which a schedule may have moved.
        word_starts: as for `mask_batch`; ignored where the policy does not need words.
        selected: as for `mask_batch`; the policy is not asked then.

    Raises:
        UserError: what the user's own policy returns is no selection.
    """
    starts = word_starts if needs_words(policy) and selected is None else None
    units = None
    if selected is None and not isinstance(policy, KernelPolicy):
        selectable = ~vocabulary.protected[input_ids]
        if starts is not None:  # a word begins at a special token, after one, and with the row
            begins = np.ones_like(selectable)
            begins[:, 1:] = ~selectable[:, 1:] | ~selectable[:, :-1]
            starts = np.maximum(starts, begins).astype(np.uint8)
        batch = PolicyBatch(
            input_ids=input_ids.astype(np.int64),
            example_ids=example_ids,
            epoch=epoch,
            rate=config.rate,
            word_starts=starts,
            selectable=selectable,
            seed=seed,
        )
        starts = None  # they are for the policy, and nothing to the kernel
        selected = _checked(policy, "select", batch, config, "b", "bool")
        if config.corrupt is Corrupt.UNIT:
            units = _checked(policy, "units", batch, config, "iu", "integers")
    return mask_batch(
        input_ids,
        example_ids=example_ids,
        epoch=epoch,
        seed=seed,
        config=config,
        vocabulary=vocabulary,
        word_starts=starts,
        selected=selected,
        units=units,
    )


def _checked(
    policy: OwnPolicy,
    method: str,
    batch: PolicyBatch,
    config: MaskingPolicy,
    kinds: str,
    name: str,
) -> NDArray[Any]:
    """What a method of the user's own policy returns, an array of one of NumPy's `kinds`."""
    found = getattr(policy, method)(batch)
    shape = batch.selectable.shape
    is_array = isinstance(found, np.ndarray)
    if not is_array or found.shape != shape or found.dtype.kind not in kinds:
        what = f"{found.dtype} {list(found.shape)}" if is_array else type(found).__name__
        raise UserError.of(
            f"{config.path}.unit",
            code=Code.INVALID,
            found=f"{config.unit}, whose {method}(batch) returned {what}",
            expected=f"a NumPy array, {name} {list(shape)}, the shape of batch.input_ids",
            remedy=f"return such an array from {method}",
        )
    return np.asarray(found)
