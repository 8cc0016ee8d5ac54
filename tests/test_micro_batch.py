"""Micro-batches."""

import numpy as np
import torch

from mlmlab.data.batch import Masker
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.masking import MaskingConfig, VocabularyInfo

VOCABULARY = VocabularyInfo(300, 4, (0, 1, 2, 3, 4))


def shard() -> Shard:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, 300, 2000).astype(np.uint16)
    offsets = np.array([0, 13, 40, 41, 300, 800, 2000])
    starts = generator.random(2000) < 0.6
    starts[offsets[:-1]] = True
    return Shard(tokens, offsets[:-1], offsets, np.packbits(starts, bitorder="little"))


def test_a_micro_batch_without_predictions_keeps_its_rows() -> None:
    masker = Masker(MaskingConfig(rate=0.5), VOCABULARY)
    rows = PackedBlocks(shard(), 64).take(np.arange(2))
    micro = masker.micro_batch(rows, np.arange(2), epoch=0)
    empty = micro.without_predictions()
    assert micro.masked_count > 0
    assert (empty.masked_count, empty.token_count) == (0, 0)
    assert torch.equal(empty.masked.input_ids, micro.masked.input_ids)
    assert empty.masked.row_offsets.tolist() == [0, 0, 0]
