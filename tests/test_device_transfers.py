"""A training step on a device that only pretends to compute, so that no GPU is needed.

Its tensors know their device and shape and have no numbers (FakeTensorMode). An operation that
mixes devices fails, and so does reading a number on the host (`.item()`, `if tensor`), which makes
the host wait for the device. What this cannot see: `.cpu()` and what else copies a full tensor,
autocast, page-locked memory, streams, CUDA graphs and nccl.
"""

import dataclasses
import multiprocessing
import traceback
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import mlmlab
from mlmlab.data.batch import Masker, MicroBatch
from mlmlab.data.blocks import Examples
from mlmlab.data.loader import StepBatch
from mlmlab.masking import MaskedBatch, MaskingConfig, VocabularyInfo
from mlmlab.model import MaskedLanguageModel, ModelConfig
from mlmlab.random import Seeds
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE
from mlmlab.training.backward import Loss
from mlmlab.training.config import TrainConfig
from mlmlab.training.objective import masked_token_loss
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.step import train_step

SMALL = ("model.hidden_size=32", "model.layers=2", "model.heads=2", "model.intermediate_size=64")
ROBERTA, MODERNBERT = ("model=tiny", "model.dropout=0.1"), ("model=modernbert_base", *SMALL)


def two_steps(model: tuple[str, ...], loss: Loss) -> None:
    """Forward and backward pass of two micro-batches, one of them padded, clipping, and AdamW."""
    _setup_privateuseone_for_python_backend("pretended")  # autograd refuses its default name
    device, mode = torch.device("pretended:0"), FakeTensorMode()
    vocabulary = VocabularyInfo(size=60, mask_id=4, protected_ids=(0, 1, 2, 3, 4))
    masker = Masker(MaskingConfig(rate=0.3), vocabulary)
    ids, examples = np.full((4, 16), 7, np.uint16), np.arange(4)
    rows = (Examples(ids), Examples(ids, lengths=np.array([16, 9, 12, 3])))
    micros = [masker.micro_batch(some, examples, epoch=0) for some in rows]
    count = sum(micro.masked_count for micro in micros)
    settings = mlmlab.compose(*model).model
    config = ModelConfig.from_settings(settings, vocabulary_size=vocabulary.size, pad_id=1)

    def fake(micro: MicroBatch) -> MicroBatch:
        mask = micro.attention_mask
        return dataclasses.replace(
            micro,
            masked=MaskedBatch(*map(mode.from_tensor, micro.masked)),
            attention_mask=None if mask is None else mode.from_tensor(mask),
        )

    batch = StepBatch(0, 0, tuple(map(fake, micros)), count, count, 4 * 16, 0.3)
    with mode, device:
        network = MaskedLanguageModel(config)
        suppressed = torch.zeros(())
    with mode:
        network.to = lambda _: network  # type: ignore[assignment]  # fake weights cannot move
        replica = Replica(network, ALONE, Compute(device, Precision.FP32), loss)
        optimizers = build_optimizers(network, TrainConfig())
        for _ in range(2):
            train_step(
                replica, optimizers, batch, schedule_factor=1.0, max_grad_norm=1.0,
                seeds=Seeds.of(0, 0, 0), suppressed=suppressed,
            )  # fmt: skip
    assert all(p.grad is not None and p.grad.device == device for p in network.parameters())


def loss_that_waits(model: nn.Module, micro: MicroBatch) -> torch.Tensor:
    total = masked_token_loss(model, micro)
    return total if total.item() > 0 else -total


def loss_that_mixes_devices(model: nn.Module, micro: MicroBatch) -> torch.Tensor:
    return (masked_token_loss(model, micro) * torch.ones(3)).sum()


def failure(model: tuple[str, ...], loss: Loss) -> str:
    """The traceback, as a text: PyTorch's exceptions do not travel between processes."""
    try:
        two_steps(model, loss)
    except Exception:
        return traceback.format_exc()
    return ""


def failure_in_new_process(model: tuple[str, ...], loss: Loss) -> str:
    """As above, where the registration of the device reaches no other test."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(failure, model, loss).result()


@pytest.mark.parametrize("model", [ROBERTA, MODERNBERT], ids=["roberta", "modernbert"])
def test_a_step_neither_mixes_devices_nor_waits_for_one(model: tuple[str, ...]) -> None:
    assert failure_in_new_process(model, masked_token_loss) == ""


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (loss_that_waits, "_local_scalar_dense"),
        (loss_that_mixes_devices, "the same device"),
    ],
)
def test_a_loss_that_does_either_is_found_out(loss: Loss, message: str) -> None:
    assert message in failure_in_new_process(ROBERTA, loss)
