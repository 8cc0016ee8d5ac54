"""A small model, and batches whose rows and predicted tokens are dealt out unequally."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import EvalLoader, TrainLoader
from mlmlab.evaluation.masked_perplexity import evaluate
from mlmlab.masking import MaskingConfig, VocabularyInfo
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.families import ARCHITECTURES
from mlmlab.random import Seeds
from mlmlab.runs.train import build_replica
from mlmlab.runtime.config import Parallel, Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE, Ranks
from mlmlab.tracking.progress_bar import ProgressBar
from mlmlab.training.config import TrainConfig
from mlmlab.training.optimizer import build_optimizers, freeze
from mlmlab.training.step import StepResult, train_step

BLOCK = 16
VOCABULARY = VocabularyInfo(60, 4, (0, 1, 2, 3, 4))
CPU = Compute(torch.device("cpu"), Precision.FP32)


def small_model(**changes: Any) -> MaskedLanguageModel:
    """The same weights in every process.

    Args:
        changes: fields of its config that are not as here.
    """
    family = changes.get("family", Family.ROBERTA)
    config = ModelConfig(
        family=family,
        vocabulary_size=60,
        hidden_size=32,
        layers=1,
        heads=2,
        intermediate_size=64,
        max_positions=BLOCK,
        **ARCHITECTURES[family].checkpoint_defaults(),
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
        objective=Masker(MaskingConfig(rate=0.3), VOCABULARY),
        seeds=SEEDS,
        ranks=ranks,
    )


def eval_masker(loader: TrainLoader) -> Masker[MaskingConfig]:
    """What masks the examples of a loader for an evaluation."""
    assert isinstance(loader.objective, Masker)
    return dataclasses.replace(loader.objective, seed=SEEDS.eval_masks)


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


@dataclass
class Sharing:
    """A small model that trains in this process, alone or with others."""

    ranks: Ranks
    parallel: Parallel = Parallel.FSDP
    config: TrainConfig = dataclasses.field(default_factory=lambda: mlmlab.compose().train)
    model: MaskedLanguageModel = dataclasses.field(default_factory=small_model)
    micro_batch_size: int = 8
    loss_scale: float | None = None

    def __post_init__(self) -> None:
        freeze(self.model, self.config)
        self.model.gradient_checkpointing = self.config.gradient_checkpointing
        self.replica = build_replica(self.model, self.ranks, CPU, self.parallel)
        self.optimizers = build_optimizers(self.model, self.config)
        self.loader = loader_of(self.ranks, self.micro_batch_size, UNEQUAL)
        self.suppressed = torch.zeros(())

    def step(self, number: int) -> StepResult:
        return train_step(
            self.replica,
            self.optimizers,
            self.loader.batch(number),
            schedule_factor=1e-3 / self.config.learning_rate,
            max_grad_norm=self.config.max_grad_norm,
            seeds=SEEDS,
            suppressed=self.suppressed,
            loss_scale=self.loss_scale,
        )

    def unsharded(
        self, of: Callable[[torch.nn.Parameter], torch.Tensor | None]
    ) -> torch.Tensor | None:
        """Something of every parameter, in a row; None in all processes but the first."""
        parts = [part for p in self.model.parameters() if (part := of(p)) is not None]
        wholes = [self.replica.unsharded(part) for part in parts]
        if not self.ranks.is_rank_zero:
            return None
        return torch.cat([whole.flatten() for whole in wholes if whole is not None])


def evaluation(model: MaskedLanguageModel, ranks: Ranks, draws: int) -> dict[str, object]:
    """Of `draws` chunks; the loss to the bit."""
    loader = loader_of()
    chunks = EvalLoader(loader.blocks, eval_masker(loader), draws=draws)
    assert chunks.chunk_count == draws
    result = evaluate(model, chunks, CPU, ProgressBar(0, quiet=True), ranks=ranks)
    figures = dataclasses.asdict(result)
    documents = figures.pop("by_document")
    bits = [documents[name].tobytes() for name in ("loss_sums", "masked_tokens")]
    return {**figures, "hex": result.loss.hex(), "by_document": (*bits, documents["test"])}
