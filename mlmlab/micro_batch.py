"""Masked examples, ready for one forward pass.

B sequences   T positions   M predicted tokens
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mlmlab.data.blocks import Blocks, Rows
from mlmlab.masking import MaskedBatch, MaskingPolicy, Unit, VocabularyInfo, mask_batch

if TYPE_CHECKING:
    from mlmlab.masking.kernel_cuda import DeviceMaskedBatch

Policy = TypeVar("Policy", bound=MaskingPolicy, covariant=True)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward pass needs: on the host, or on the device where it was masked."""

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
        """Predicted tokens; known without asking the device."""
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
            name: None if tensor is None else on_device(tensor, device)
            for name, tensor in tensors.items()
        }

    def without_predictions(self) -> "MicroBatch":
        """The same with nothing to predict, for a process that has no rows of its own: its loss is
        a zero that still reaches every parameter, as DDP and FSDP expect of each process."""
        nothing = self.labels[:0]
        offsets = torch.zeros_like(self.row_offsets)
        return dataclasses.replace(
            self, positions=nothing, labels=nothing, row_offsets=offsets, token_count=0
        )


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of a micro-batch on the device, without waiting for it."""
    if tensor.is_cuda:  # made on the masker's stream: its memory is ours until this stream is done
        tensor.record_stream(torch.cuda.current_stream(device))
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Masker(Generic[Policy]):
    """Examples to micro-batches."""

    config: Policy
    vocabulary: VocabularyInfo
    pin_memory: bool = False
    """Whether tensors lie in page-locked memory, from where they reach CUDA without a stop."""
    device: torch.device | None = None
    """Where to mask: on this device with the Triton kernel; None: on the host. The bits are the
    same."""

    def micro_batch(
        self, blocks: Blocks, examples: NDArray[np.int64], *, epoch: int, seed: int, rate: float
    ) -> MicroBatch:
        """Masks some examples.

        Args:
            examples: int64 `[B]`.
            epoch: or the draw, for an evaluation.
            rate: in place of the config's, for one that moves.
        """
        rows = blocks.take(examples)
        config: MaskingPolicy = self.config
        if rate != config.rate:
            config = dataclasses.replace(config, rate=rate)
        mask = self._on_host if self.device is None else self._on_device
        masked = mask(rows, examples, epoch, seed, config)
        tensors = dict(zip(masked._fields, masked, strict=True))
        if (attention_mask := _attention_mask(rows)) is not None:
            tensors["attention_mask"] = torch.from_numpy(attention_mask)
        if rows.documents is not None:
            tensors["documents"] = torch.from_numpy(rows.documents)
        if self.pin_memory:
            tensors = {
                name: tensor if tensor.is_cuda else tensor.pin_memory()
                for name, tensor in tensors.items()
            }
        tokens = rows.input_ids.size if rows.lengths is None else int(rows.lengths.sum())
        return MicroBatch(**tensors, token_count=tokens)

    def _on_host(
        self,
        rows: Rows,
        examples: NDArray[np.int64],
        epoch: int,
        seed: int,
        config: MaskingPolicy,
    ) -> MaskedBatch[torch.Tensor]:
        batch = mask_batch(
            rows.input_ids,
            example_ids=examples,
            epoch=epoch,
            seed=seed,
            config=config,
            vocabulary=self.vocabulary,
            word_starts=None if config.unit is Unit.TOKEN else rows.word_starts,
        )
        return MaskedBatch(*map(torch.from_numpy, batch))

    def _on_device(
        self,
        rows: Rows,
        examples: NDArray[np.int64],
        epoch: int,
        seed: int,
        config: MaskingPolicy,
    ) -> MaskedBatch[torch.Tensor]:
        """Runs in the loader's thread, on a stream beside the model's: only this thread waits."""
        from mlmlab.masking.kernel_cuda import mask_batch_on_device

        starts = None if config.unit is Unit.TOKEN else rows.word_starts
        with torch.cuda.stream(self._stream):
            ids, identities = self._upload(rows.input_ids), self._upload(examples)
            word_starts = None if starts is None else self._upload(starts)

            def masked(capacity: int | None) -> "DeviceMaskedBatch":
                return mask_batch_on_device(
                    ids,
                    example_ids=identities,
                    epoch=epoch,
                    seed=seed,
                    config=config,
                    vocabulary=self.vocabulary,
                    word_starts=word_starts,
                    capacity=capacity,
                )

            batch = masked(None)
            count = int(batch.row_offsets[-1])
            if count > len(batch.labels):  # more than eight standard deviations above the mean
                batch = masked(count)
            if batch.ids_outside.any():
                raise ValueError(f"an id outside the vocabulary of {self.vocabulary.size}")
        return MaskedBatch(
            batch.input_ids, batch.positions[:count], batch.labels[:count], batch.row_offsets
        )

    @cached_property
    def _stream(self) -> torch.cuda.Stream | None:
        is_cuda = self.device is not None and self.device.type == "cuda"
        return torch.cuda.Stream(self.device) if is_cuda else None  # type: ignore[no-untyped-call]

    def _upload(self, array: NDArray[np.generic]) -> torch.Tensor:
        assert self.device is not None
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _attention_mask(rows: Rows) -> NDArray[np.bool_] | None:
    width = rows.input_ids.shape[1]
    if rows.lengths is None or rows.lengths.min() == width:
        return None
    mask: NDArray[np.bool_] = np.arange(width) < rows.lengths[:, None]
    return mask
