"""Masked examples, ready for one forward pass.

B sequences   T positions   M predicted tokens
"""

import dataclasses
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import Blocks, Examples
from mlmlab.masking import MaskingPolicy, Unit, VocabularyInfo, mask_batch

Policy = TypeVar("Policy", bound=MaskingPolicy, covariant=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass needs, in host memory."""

    input_ids: torch.Tensor
    """int64 `[B, T]`, corrupted."""
    positions: torch.Tensor
    """int64 `[M]`, flat indices into B*T."""
    labels: torch.Tensor
    """int64 `[M]`, the original ids there."""
    row_offsets: torch.Tensor
    """int64 `[B + 1]`, where each row's positions begin."""
    attention_mask: torch.Tensor | None = None
    """bool `[B, T]`, True where a real token stands; None: no padding."""
    documents: torch.Tensor | None = None
    """int64 `[B, T]`, each token's document where documents are hidden from each other."""
    token_count: int = 0
    """Real tokens, padding not counted."""

    @property
    def masked_count(self) -> int:
        """Predicted tokens."""
        return len(self.labels)

    def model_inputs(self, device: torch.device) -> dict[str, torch.Tensor | None]:
        """The arguments of the model's forward pass, on their way to the device."""
        tensors = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "positions": self.positions,
            "documents": self.documents,
        }
        return {
            name: None if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in tensors.items()
        }

    def without_predictions(self) -> "MicroBatch":
        """The same with nothing to predict, for a process that has no examples: its loss is
        a zero that still reaches every parameter, as DDP and FSDP expect of each process."""
        nothing = self.labels[:0]
        offsets = torch.zeros_like(self.row_offsets)
        return dataclasses.replace(
            self, positions=nothing, labels=nothing, row_offsets=offsets, token_count=0
        )


@dataclass(frozen=True, eq=False)
class Masker(Generic[Policy]):
    """Examples to micro-batches."""

    config: Policy
    vocabulary: VocabularyInfo
    pin_memory: bool = False
    """Whether tensors lie in page-locked memory, from where they reach CUDA without a stop."""

    def micro_batch(
        self, blocks: Blocks, example_ids: NDArray[np.int64], *, epoch: int, seed: int, rate: float
    ) -> MicroBatch:
        """Masks some examples.

        Args:
            examples: int64 `[B]`.
            epoch: or the draw, for an evaluation.
            rate: in place of the config's, for one that moves.
        """
        examples = blocks.take(example_ids)
        config: MaskingPolicy = self.config
        if rate != config.rate:
            config = dataclasses.replace(config, rate=rate)
        masked = mask_batch(
            examples.input_ids,
            example_ids=example_ids,
            epoch=epoch,
            seed=seed,
            config=config,
            vocabulary=self.vocabulary,
            word_starts=None if config.unit is Unit.TOKEN else examples.word_starts,
        )
        tensors = {name: torch.from_numpy(array) for name, array in masked._asdict().items()}
        if (attention_mask := _attention_mask(examples)) is not None:
            tensors["attention_mask"] = torch.from_numpy(attention_mask)
        if examples.documents is not None:
            tensors["documents"] = torch.from_numpy(examples.documents)
        if self.pin_memory:
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        tokens = (
            examples.input_ids.size if examples.lengths is None else int(examples.lengths.sum())
        )
        return MicroBatch(**tensors, token_count=tokens)


def _attention_mask(examples: Examples) -> NDArray[np.bool_] | None:
    width = examples.input_ids.shape[1]
    if examples.lengths is None or examples.lengths.min() == width:
        return None
    mask: NDArray[np.bool_] = np.arange(width) < examples.lengths[:, None]
    return mask
