"""Masked examples, ready for one forward pass.

B sequences   T positions   N tokens of all groups   M predicted tokens
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import Examples
from mlmlab.data.groups import Groups, in_groups
from mlmlab.masking import (
    MaskedBatch,
    MaskingConfig,
    MaskingMode,
    MaskingPolicy,
    VocabularyInfo,
)
from mlmlab.masking.policy import KernelPolicy, OwnPolicy, build_policy, mask_with_policy
from mlmlab.random import Domain, derive_seed, uniforms

_IGNORED = -100
"""The label that PyTorch's cross-entropy leaves out."""
Policy = TypeVar("Policy", bound=MaskingPolicy, covariant=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass needs, in host memory."""

    masked: MaskedBatch[torch.Tensor]
    attention_mask: torch.Tensor | None = None
    """bool `[B, T]`, True for a real token; None: no padding."""
    documents: torch.Tensor | None = None
    """int64 `[B, T]`, each token's document where documents are hidden from each other."""
    groups: Groups | None = None
    """Where given, ids and mask are flat, `[N]`, and documents are rows: each group's rows and
    their length, as for `MaskedLanguageModel.encode`."""
    token_count: int = 0
    """Real tokens, padding not counted."""
    has_fixed_shape: bool = False
    """Whether all micro-batches of as many examples have as many positions (`fixed_count`)."""
    masking_rate: float | None = None
    """The share of its tokens that was to be predicted; None: a custom objective selected
    them."""
    weights: torch.Tensor | None = None
    """fp32 `[M]`, what each prediction's loss is multiplied by; None: 1."""
    loss_weight: float | None = None
    """What it adds to the number that the step's loss is divided by; None: its predicted tokens."""

    @property
    def masked_count(self) -> int:
        """Predicted tokens."""
        return int(self.masked.row_offsets[-1])

    @property
    def divisor(self) -> float:
        """`loss_weight`, as a number."""
        return self.masked_count if self.loss_weight is None else self.loss_weight

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on its way to the device, but for `row_offsets`, which the host alone reads."""

        def moved(tensor: torch.Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        ids, positions, labels, row_offsets = self.masked
        return dataclasses.replace(
            self,
            masked=MaskedBatch(moved(ids), moved(positions), moved(labels), row_offsets),
            attention_mask=moved(self.attention_mask),
            documents=moved(self.documents),
            weights=moved(self.weights),
        )

    def model_inputs(self) -> dict[str, Any]:
        """The arguments of the model's forward pass."""
        return {
            "input_ids": self.masked.input_ids,
            "attention_mask": self.attention_mask,
            "positions": self.masked.positions,
            "documents": self.documents,
            "groups": self.groups,
        }

    def in_groups(self) -> "MicroBatch":
        """The same with rows and documents of nearly one length next to each other; predictions
        stay in their order. Packed rows that see each other's documents are one group already."""
        mask, documents = self.attention_mask, self.documents
        if mask is None and documents is None:
            return self
        masked, real, groups = in_groups(
            MaskedBatch(*(x.numpy() for x in self.masked)),
            None if mask is None else mask.numpy(),
            None if documents is None else documents.numpy(),
        )
        return dataclasses.replace(
            self,
            masked=MaskedBatch(*map(torch.from_numpy, masked)),
            attention_mask=torch.from_numpy(real),
            documents=None,
            groups=groups,
        )

    def pieces(
        self, tokens: int, position_multiple: int
    ) -> Iterator[tuple[torch.Tensor, "MicroBatch"]]:
        """The same in groups, at most `tokens` tokens (or one row) at a time.

        Args:
            position_multiple: as for a `Masker`.

        Yields:
            Which of the M predictions a piece has, int64; and the piece.
        """
        grouped = self.in_groups()
        ids, positions, labels, _ = grouped.masked
        groups = grouped.groups or (tuple(ids.shape),)
        parts = [
            (min(most, rows - first), length)
            for rows, length, most in ((*shape, max(1, tokens // shape[1])) for shape in groups)
            for first in range(0, rows, most)
        ]
        begin, mask = 0, grouped.attention_mask
        while parts:
            end, chosen = begin, list[tuple[int, int]]()
            while parts and (not chosen or end + math.prod(parts[0]) <= begin + tokens):
                chosen.append(parts.pop(0))
                end += math.prod(chosen[-1])
            which = ((positions >= begin) & (positions < end)).nonzero().flatten()
            count = len(which) + -len(which) % position_multiple
            part = MaskedBatch(
                ids.flatten()[begin:end].numpy(),
                (positions[which] - begin).numpy(),
                labels[which].numpy(),
                np.array([0, len(which)]),
            )
            yield (
                which,
                MicroBatch(
                    MaskedBatch(*map(torch.from_numpy, with_more_positions(part, count))),
                    None if mask is None else mask[begin:end],
                    groups=tuple(chosen),
                ),
            )
            begin = end

    def without_predictions(self) -> "MicroBatch":
        """The same with nothing to predict, for a rank without examples: its loss is a zero that
        still reaches every parameter, as DDP and FSDP expect of each rank."""
        ids, positions, labels, row_offsets = self.masked
        masked = MaskedBatch(ids, positions[:0], labels[:0], torch.zeros_like(row_offsets))
        weights = None if self.weights is None else self.weights[:0]
        return dataclasses.replace(
            self, masked=masked, token_count=0, weights=weights, loss_weight=None
        )


@dataclass(frozen=True, eq=False)
class Masker(Generic[Policy]):
    """Examples to micro-batches."""

    config: Policy
    vocabulary: VocabularyInfo
    seed: int = 0
    """Of the masks."""
    total_steps: int = 1
    """Of the run, for a masking rate that moves."""
    pin_memory: bool = False
    """Whether tensors are in page-locked memory, which is copied to CUDA asynchronously."""
    fixed_for_rate: float | None = None
    """Where given, micro-batches without padding get as many positions as up to this rate are
    needed (`fixed_count`)."""
    position_multiple: int = 1
    """Others get a multiple of this."""

    @cached_property
    def policy(self) -> KernelPolicy | OwnPolicy:
        """What selects the tokens, built once."""
        return build_policy(self.config)

    def rate_at(self, step: int) -> float:
        """The masking rate after `step` steps."""
        if isinstance(self.config, MaskingConfig):
            return self.config.rate_at(step, self.total_steps)
        return self.config.rate

    def micro_batch(
        self,
        examples: Examples,
        example_ids: NDArray[np.int64],
        *,
        epoch: int,
        step: int = 0,
        selected: NDArray[np.bool_] | None = None,
    ) -> MicroBatch:
        """Masks some examples.

        Args:
            example_ids: int64 `[B]`.
            epoch: for an evaluation, the draw. It does not count where masks are static.
            step: steps applied before, which decide the rate.
            selected: bool `[B, T]`, the tokens to predict, in place of those that the policy
                selects (`mask_batch`).
        """
        config: MaskingPolicy = self.config
        if isinstance(config, MaskingConfig) and config.mode is MaskingMode.STATIC:
            epoch = 0
        if (rate := self.rate_at(step)) != config.rate:
            config = dataclasses.replace(config, rate=rate)
        masked = mask_with_policy(
            self.policy,
            examples.input_ids,
            example_ids=example_ids,
            epoch=epoch,
            seed=self.seed,
            config=config,
            vocabulary=self.vocabulary,
            word_starts=examples.word_starts,
            selected=selected,
        )
        lengths, documents = examples.lengths, examples.documents
        width = masked.input_ids.shape[1]
        mask, token_count = None, masked.input_ids.size
        if lengths is not None:
            token_count = int(lengths.sum())
            if lengths.min() < width:
                mask = np.arange(width) < lengths[:, None]  # [B, T]
        count, has_fixed_shape = len(masked.positions), False
        if self.fixed_for_rate is not None and lengths is None and examples.documents is None:
            fixed = fixed_count(masked.input_ids.size, self.fixed_for_rate)
            has_fixed_shape = count <= fixed
            count = max(count, fixed)
        count += -count % self.position_multiple
        return MicroBatch(
            MaskedBatch(*map(self._tensor, with_more_positions(masked, count, mask))),
            None if mask is None else self._tensor(mask),
            None if documents is None else self._tensor(documents),
            token_count=token_count,
            has_fixed_shape=has_fixed_shape,
            masking_rate=rate if selected is None else None,
        )

    def prepare(
        self, examples: Examples, example_ids: NDArray[np.int64], epoch: int, step: int
    ) -> MicroBatch:
        """What masked language modelling trains on."""
        return self.micro_batch(examples, example_ids, epoch=epoch, step=step)

    def uniform(
        self, example_ids: NDArray[np.int64], epoch: int, *, length: int = 1, stream: int = 0
    ) -> NDArray[np.float64]:
        """Random numbers for a custom objective, in [0, 1), float64 `[B, length]`: each a
        function of the seed, the epoch, the example's id, its place in the row and the stream."""
        seed = derive_seed(self.seed, Domain.OBJECTIVE, stream)
        return uniforms(seed, Domain.OBJECTIVE, example_ids, length, epoch)

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pin_memory else tensor


def fixed_count(tokens: int, rate: float) -> int:
    """Positions that suffice for any but the most improbable masks: the mean plus eight standard
    deviations, in multiples of 64."""
    mean = rate * tokens
    likely = mean + 8.0 * math.sqrt(mean * (1.0 - rate))
    return min(tokens, 64 * math.ceil(likely / 64))


def with_more_positions(
    masked: MaskedBatch[NDArray[Any]], count: int, mask: NDArray[np.bool_] | None = None
) -> MaskedBatch[NDArray[Any]]:
    """`count` positions, or all that there are: those in addition are of real tokens that are not
    predicted, with the label that the loss ignores, -100.

    Args:
        mask: bool `[B, T]`, True for a real token; None: all are real.
    """
    ids, positions, labels, row_offsets = masked
    if count == len(positions):
        return masked
    is_free = np.ones(ids.size, bool) if mask is None else mask.flatten()
    is_free[positions] = False
    others = np.flatnonzero(is_free)[: count - len(positions)]
    positions = np.concatenate((positions, others))
    labels = np.concatenate((labels, np.full(len(others), _IGNORED)))
    return MaskedBatch(ids, positions, labels, row_offsets)
