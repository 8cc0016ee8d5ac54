"""Masked examples, ready for one forward pass.

B sequences   T positions   M predicted tokens
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import Blocks
from mlmlab.masking import MaskedBatch, MaskingPolicy, VocabularyInfo
from mlmlab.masking.policy import KernelPolicy, OwnPolicy, build_policy, mask_with_policy

Policy = TypeVar("Policy", bound=MaskingPolicy, covariant=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass needs, in host memory."""

    masked: MaskedBatch[torch.Tensor]
    attention_mask: torch.Tensor | None = None
    """bool `[B, T]`, True for a real token; None: no padding."""
    documents: torch.Tensor | None = None
    """int64 `[B, T]`, each token's document where documents are hidden from each other."""
    token_count: int = 0
    """Real tokens, padding not counted."""

    @property
    def masked_count(self) -> int:
        """Predicted tokens."""
        return len(self.masked.labels)

    def model_inputs(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """The arguments of the model's forward pass, on their way to the device."""
        tensors = {
            "input_ids": self.masked.input_ids,
            "attention_mask": self.attention_mask,
            "positions": self.masked.positions,
            "documents": self.documents,
        }
        return {
            name: None if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
        }

    def without_predictions(self) -> "MicroBatch":
        """The same with nothing to predict, for a rank without examples: its loss is a zero that
        still reaches every parameter, as DDP and FSDP expect of each rank."""
        ids, positions, labels, row_offsets = self.masked
        masked = MaskedBatch(ids, positions[:0], labels[:0], torch.zeros_like(row_offsets))
        return dataclasses.replace(self, masked=masked, token_count=0)


@dataclass(frozen=True, eq=False)
class Masker(Generic[Policy]):
    """Examples to micro-batches."""

    config: Policy
    vocabulary: VocabularyInfo
    pin_memory: bool = False
    """Whether tensors are in page-locked memory, which is copied to CUDA asynchronously."""

    @cached_property
    def policy(self) -> KernelPolicy | OwnPolicy:
        """What selects the tokens, built once."""
        return build_policy(self.config)

    def micro_batch(
        self, blocks: Blocks, example_ids: NDArray[np.int64], *, epoch: int, seed: int, rate: float
    ) -> MicroBatch:
        """Masks some examples.

        Args:
            example_ids: int64 `[B]`.
            epoch: for an evaluation, the draw.
            rate: replaces the config's, where a schedule moves it.
        """
        examples = blocks.take(example_ids)
        config: MaskingPolicy = self.config
        if rate != config.rate:
            config = dataclasses.replace(config, rate=rate)
        masked = mask_with_policy(
            self.policy,
            examples.input_ids,
            example_ids=example_ids,
            epoch=epoch,
            seed=seed,
            config=config,
            vocabulary=self.vocabulary,
            word_starts=examples.word_starts,
        )
        lengths, width = examples.lengths, masked.input_ids.shape[1]
        attention_mask, token_count = None, masked.input_ids.size
        if lengths is not None:
            token_count = int(lengths.sum())
            if lengths.min() < width:
                attention_mask = self._tensor(np.arange(width) < lengths[:, None])
        return MicroBatch(
            MaskedBatch(*map(self._tensor, masked)),
            attention_mask,
            None if examples.documents is None else self._tensor(examples.documents),
            token_count,
        )

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self.pin_memory else tensor
