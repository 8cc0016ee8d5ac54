"""A small model, and batches whose rows and predicted tokens are dealt out unequally."""

import dataclasses
from typing import Any

import numpy as np
import torch

from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import TrainLoader
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.random import Seeds
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE, Ranks

BLOCK = 16
VOCABULARY = VocabularyInfo(60, 4, (0, 1, 2, 3, 4))
CPU = Compute(torch.device("cpu"), Precision.FP32)


def small_model(**changes: Any) -> MaskedLanguageModel:
    """The same weights in every process.

    Args:
        changes: fields of its config that are not as here.
    """
    config = ModelConfig(
        family=Family.ROBERTA,
        vocabulary_size=60,
        hidden_size=32,
        layers=1,
        heads=2,
        intermediate_size=64,
        max_positions=BLOCK,
        position_offset=2,
        token_types=1,
        layer_norm_eps=1e-5,
        pad_id=1,
        initializer_range=0.02,
        dropout=0.0,
        attention_dropout=0.0,
    )
    model = MaskedLanguageModel(dataclasses.replace(config, **changes))
    model.initialize(0)
    return model


SEEDS = Seeds.of(0, 0, 0)


def loader_of(
    ranks: Ranks = ALONE, micro_batch_size: int = 8, tokens_free: str = ""
) -> TrainLoader:
    """50 examples in batches of 8, the last of 2.

    Args:
        tokens_free: for each example of batches 0, 1, ... in turn: "." where no token may be
            predicted, "1" where one may, "#" where all may, as beyond the text's end.
    """
    order = Order(50, 8, 0)
    tokens = np.random.default_rng(0).integers(5, 60, (50, BLOCK)).astype(np.uint16)
    places = [example for number in range(7) for example in order.batch(number)[1]]
    for example, free in zip(places, tokens_free, strict=False):
        tokens[example, {".": 0, "1": 1, "#": BLOCK}[free] :] = 3  # a protected id
    offsets = np.arange(0, tokens.size + 1, BLOCK)
    blocks = PackedBlocks(Shard(tokens.ravel(), offsets[:-1], offsets), BLOCK)
    return TrainLoader(
        blocks=blocks,
        order=order,
        micro_batch_size=micro_batch_size,
        masker=Masker(MaskingConfig(rate=0.3), VOCABULARY),
        seeds=SEEDS,
        ranks=ranks,
    )


# Of 8 rows two processes take 4 each in turn, three take 3, 3 and 2.
UNEQUAL = (
    "#.#.#.#."  # the second of two has nothing to predict
    ".1.#.1.1"  # the first of two
    "#......."  # all but one
    "###....."  # in micro-batches of 1: none in the second ones of two
    "........"  # a step without anything
    "########"
    "##"  # fewer rows than three processes
)
