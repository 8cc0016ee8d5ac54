"""Claims about `mlmlab.evaluation.floor`: exact on small chains, the lowest on the small world."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference.floor import joint_table

from mlmlab.data.small_world.chain import TokenChain, small_world
from mlmlab.evaluation.floor import lowest_losses, token_posteriors
from mlmlab.masking import MaskedBatch, MaskingConfig, VocabularyInfo, mask_batch

TINY = VocabularyInfo(7, mask_id=3, protected_ids=(0, 1, 2, 3))  # words are 4, 5, 6
LENGTH = 4


def tiny_chain(seed: int) -> TokenChain:
    """Three states that write `<s>` (id 0) and two of the three words; id 6 is never written."""
    generator = np.random.default_rng(seed)
    emission = np.zeros((3, TINY.size))
    emission[:, [0, 4, 5]] = generator.dirichlet(np.ones(3), 3)
    emission[1, 0] = emission[2, 4] = 0.0  # states that rule ids out
    emission /= emission.sum(axis=1, keepdims=True)
    transition = generator.dirichlet(np.ones(3), 3)
    transition[2] = (0.0, 1.0, 0.0)
    return TokenChain(generator.dirichlet(np.ones(3)), transition, emission)


@pytest.mark.parametrize("rate", [0.15, 0.5, 1.0])
@pytest.mark.parametrize(
    ("mask_fraction", "random_fraction"), [(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)]
)
def test_posteriors_equal_the_sum_over_everything_that_can_happen(
    rate: float, mask_fraction: float, random_fraction: float
) -> None:
    config = MaskingConfig(rate=rate, mask_fraction=mask_fraction, random_fraction=random_fraction)
    chain = tiny_chain(seed=3)
    table = joint_table(chain.start, chain.transition, chain.emission, LENGTH, config, TINY)
    assert sum(entry.sum() for entry in table.values()) > 0
    blocks = np.array(list(table))
    joint = np.array(list(table.values()))  # [blocks, LENGTH, V]
    positions = np.flatnonzero(joint.sum(axis=2) > 0)  # those that can have been selected
    expected = joint.reshape(-1, TINY.size)[positions]
    expected /= expected.sum(axis=1, keepdims=True)

    posteriors = token_posteriors(chain, blocks, positions, config, TINY)

    np.testing.assert_allclose(posteriors, expected, rtol=0, atol=1e-12)
    if (rate, mask_fraction, random_fraction) == (0.5, 0.8, 0.1):
        assert len(blocks) == 5**LENGTH  # every block of <s>, <mask> and three words was compared


@dataclass(frozen=True)
class Sample:
    """Blocks of the built-in world, masked."""

    chain: TokenChain
    vocabulary: VocabularyInfo
    config: MaskingConfig
    blocks: NDArray[np.int64]
    masked: MaskedBatch[NDArray[Any]]

    def floor(self, chain: TokenChain | None = None) -> float:
        """Mean loss of the posteriors of a chain, by default the one that wrote the blocks."""
        losses = lowest_losses(
            chain or self.chain, self.masked.input_ids, self.masked.positions, self.masked.labels,
            self.config, self.vocabulary,
        )  # fmt: skip
        assert len(losses) == len(self.masked.labels)
        return float(losses.mean())


@lru_cache(maxsize=1)
def world_sample() -> Sample:
    rows, length = 150, 64
    world = small_world()
    word_ids = {word: 5 + number for number, word in enumerate(world.words)}
    vocabulary = VocabularyInfo(5 + len(word_ids), mask_id=4, protected_ids=(0, 1, 2, 3, 4))
    stream: list[int] = []
    for document in world.documents(rows * length // 20, seed=11):
        stream += [0, *(word_ids[word] for word in document.split()), 2]
    blocks = np.array(stream[: rows * length]).reshape(rows, length)
    config = MaskingConfig()
    masked = mask_batch(
        blocks, example_ids=np.arange(rows), epoch=0, seed=5, config=config, vocabulary=vocabulary
    )
    return Sample(
        world.token_chain(word_ids, vocabulary.size, 0, 2), vocabulary, config, blocks, masked
    )


def test_the_floor_is_the_entropy_that_the_posteriors_themselves_expect() -> None:
    sample = world_sample()
    masked = sample.masked
    posteriors = token_posteriors(
        sample.chain, masked.input_ids, masked.positions, sample.config, sample.vocabulary
    )
    losses = -np.log(posteriors[np.arange(len(masked.labels)), masked.labels])
    entropies = -(posteriors * np.log(np.maximum(posteriors, 1e-300))).sum(axis=1)
    surprise = losses - entropies  # mean 0 only if the posteriors are the true distribution
    assert abs(surprise.mean()) < 4 * surprise.std() / len(surprise) ** 0.5
    assert losses.mean() == pytest.approx(sample.floor(), rel=1e-12)
    np.testing.assert_allclose(posteriors.sum(axis=1), 1.0, rtol=1e-12)
    assert (posteriors[:, sample.vocabulary.protected] == 0).all()


def test_no_other_predictor_reaches_the_floor() -> None:
    sample = world_sample()
    chain = sample.chain
    floor = sample.floor()

    unigram = chain.start @ chain.emission
    unigram_loss = -np.log(unigram[sample.masked.labels]).mean()
    assert unigram_loss > floor + 2.0

    blurred = 0.95 * chain.emission + 0.05 * unigram
    assert sample.floor(replace(chain, emission=blurred)) > floor + 0.01

    uneven = chain.transition * np.random.default_rng(0).exponential(size=chain.transition.shape)
    uneven /= uneven.sum(axis=1, keepdims=True)
    assert sample.floor(replace(chain, transition=uneven)) > floor + 0.01


def test_a_predictor_that_misjudges_the_corruption_stays_above_the_floor() -> None:
    sample = world_sample()
    misjudged = replace(sample, config=MaskingConfig(rate=0.4, random_fraction=0.0))
    replaced = sample.masked.input_ids != sample.blocks
    replaced &= sample.masked.input_ids != sample.vocabulary.mask_id
    assert replaced.any()
    with pytest.raises(ValueError, match="cannot"):
        misjudged.floor()  # it holds replaced words to be impossible
    misjudged = replace(sample, config=MaskingConfig(rate=0.9, random_fraction=0.2))
    assert misjudged.floor() > sample.floor() + 0.01


def test_the_chunk_of_rows_does_not_change_the_floor() -> None:
    sample = world_sample()
    few = sample.masked.row_offsets[9]
    arguments = (
        sample.chain, sample.masked.input_ids[:9], sample.masked.positions[:few],
        sample.masked.labels[:few], sample.config, sample.vocabulary,
    )  # fmt: skip
    expected = lowest_losses(*arguments)
    for rows in (1, 4, 9):
        assert lowest_losses(*arguments, chunk_rows=rows) == pytest.approx(expected, rel=1e-12)


def test_no_predicted_token_is_no_loss() -> None:
    sample = world_sample()
    none = np.empty(0, np.int64)
    arguments = (sample.config, sample.vocabulary)
    assert not len(lowest_losses(sample.chain, sample.blocks[:2], none, none, *arguments))


def test_blocks_that_the_world_cannot_write_are_refused() -> None:
    sample = world_sample()
    position = np.array([1])
    padded = np.full((1, 8), 1)
    with pytest.raises(ValueError, match="position 0"):
        lowest_losses(sample.chain, padded, position, position, sample.config, sample.vocabulary)
    block = sample.blocks[:1, :8]
    assert block[0, 0] == 0
    with pytest.raises(ValueError, match="never selects"):
        token_posteriors(sample.chain, block, np.array([0]), sample.config, sample.vocabulary)
    hidden = block.copy()
    hidden[0, 1] = sample.vocabulary.mask_id
    with pytest.raises(ValueError, match="row 0, position 1"):
        lowest_losses(
            sample.chain, hidden, position, np.array([0]), sample.config, sample.vocabulary
        )
