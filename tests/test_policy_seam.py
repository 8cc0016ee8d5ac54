"""One's own masking policy: masking.unit=package.module:name, and the kernel corrupts."""

import dataclasses
import hashlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from reference import chi_square
from refusals import Refusal, refusal
from stopping import TINY, as_killed, bits

import mlmlab
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import Blocks, DocumentBlocks, Order, PackedBlocks
from mlmlab.data.corpus import Shard
from mlmlab.data.loader import TrainLoader
from mlmlab.data.tokenizer import load_tokenizer
from mlmlab.errors import Code
from mlmlab.masking import (
    UNITS,
    Budget,
    Corrupt,
    MaskingConfig,
    MaskingMode,
    PolicyBatch,
    RateSchedule,
    VocabularyInfo,
)
from mlmlab.masking.policy import build_policy, mask_with_policy
from mlmlab.random import Domain, Seeds, words
from mlmlab.show_masks import main as show_masks

IDEAS = '''
import numpy as np


class EveryOther:
    """A share of the tokens at even positions."""

    def __init__(self, config, *, share=0.3):
        self.share = share

    def select(self, batch):
        return (np.arange(batch.input_ids.shape[1]) % 2 == 0) & (batch.uniform() < self.share)


class Plain:
    def __init__(self, config):
        self.batches = []

    def select(self, batch):
        self.batches.append(batch)
        return batch.uniform() < batch.rate


class Words(Plain):
    """Whole words: what its first token draws decides a word."""

    needs_words = True

    def units(self, batch):
        return np.cumsum(batch.word_starts > 0, axis=1)

    def select(self, batch):
        super().select(batch)
        first = np.maximum.accumulate(
            np.where(batch.word_starts > 0, np.arange(batch.input_ids.shape[1]), 0), axis=1
        )
        return np.take_along_axis(batch.uniform(), first, axis=1) < batch.rate


class All(Plain):
    def select(self, batch):
        batch.input_ids[:] = 0
        return np.ones_like(batch.selectable)


class Numbers(Plain):
    def select(self, batch):
        return batch.uniform()


class Narrow(Plain):
    def select(self, batch):
        return np.ones((len(batch.input_ids), 3), bool)


class Nothing(Plain):
    def select(self, batch):
        pass


class WrongUnits(Plain):
    def units(self, batch):
        return batch.uniform()


class Speechless:
    def __init__(self, config):
        pass


number = 3
'''


@pytest.fixture(autouse=True)
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with my_ideas.py, which no other test has imported."""
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_ideas", raising=False)
    return tmp_path


VOCABULARY = VocabularyInfo(1000, 4, (0, 1, 2, 3, 4))
PAD, CLS, SEP = 1, 0, 2
SEEDS = Seeds.of(0, 0, 0)
OWN = ("masking.unit=my_ideas:EveryOther", "masking.options.share=0.2")


def shard(sizes: list[int]) -> Shard:
    """Documents of N tokens, each between special tokens."""
    generator = np.random.default_rng(0)
    offsets = np.cumsum([0, *sizes])
    tokens = generator.integers(5, 1000, offsets[-1]).astype(np.uint16)
    tokens[offsets[:-1]], tokens[offsets[1:] - 1] = CLS, SEP
    starts = generator.random(len(tokens)) < 0.6
    return Shard(tokens, offsets[:-1], offsets, np.packbits(starts, bitorder="little"))


def packed() -> Blocks:
    return PackedBlocks(shard([30, 71, 64, 200] * 10), 64)


def padded() -> Blocks:
    return DocumentBlocks(
        shard([30, 12, 64, 200, 9] * 8), 64, frame=([CLS], [SEP]), pad_id=PAD, cut_off=False
    )


def masker(name: str, **changes: Any) -> Masker[MaskingConfig]:
    config = MaskingConfig(unit=f"my_ideas:{name}", **changes)
    return Masker(config, VOCABULARY, total_steps=5)


def rows_of(
    masker: Masker[MaskingConfig], blocks: Blocks, examples: list[int], **changes: int
) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Each example's corrupted ids but for padding, predicted positions and labels."""
    masker = dataclasses.replace(masker, seed=changes.get("seed", 7))
    ids = np.array(examples)
    micro = masker.micro_batch(blocks.take(ids), ids, epoch=changes.get("epoch", 3))
    ids, positions, labels, offsets = (part.numpy() for part in micro.masked)
    found = {}
    for row, example in enumerate(examples):
        mine = slice(offsets[row], offsets[row + 1])
        text = ids[row].tolist()
        while text[-1] == PAD:
            text.pop()
        found[example] = (text, (positions[mine] % ids.shape[1]).tolist(), labels[mine].tolist())
    return found


def _run(*overrides: str) -> Any:
    return mlmlab.run(mlmlab.compose(*overrides), quiet=True).summary


# The built-in policies


def test_the_masks_of_the_built_in_policies_are_those_before_there_were_others() -> None:
    digest = hashlib.sha256()
    blocks, examples = packed(), np.array([3, 9, 1, 40])
    for unit, budget, corrupt in itertools.product(UNITS, Budget, Corrupt):
        config = MaskingConfig(unit=unit, budget=budget, corrupt=corrupt)
        for epoch, rate in ((0, 0.15), (1, 0.4)):
            masker = Masker(dataclasses.replace(config, rate=rate), VOCABULARY, seed=5)
            micro = masker.micro_batch(blocks.take(examples), examples, epoch=epoch)
            for part in micro.masked:
                digest.update(part.numpy().tobytes())
    assert digest.hexdigest() == BEFORE


BEFORE = "b0c6bfc0800a6b67a86412d8ce94304dd26340809faa8a09dbe00b7f0b467b12"


@pytest.mark.parametrize("unit", UNITS)
def test_options_of_a_built_in_policy_are_refused(unit: str) -> None:
    with refusal("masking.options", Code.INVALID, "share"):
        build_policy(MaskingConfig(unit=unit, options={"share": 0.1}))


# What a policy gets


def uniform(examples: list[int], *, epoch: int = 0, seed: int = 0, stream: int = 0) -> Any:
    batch = PolicyBatch(
        input_ids=np.zeros((len(examples), 250), np.int64), example_ids=np.array(examples),
        epoch=epoch, rate=0.15, word_starts=None, selectable=np.ones((0, 0), bool), seed=seed,
    )  # fmt: skip
    return batch.uniform(stream)


def test_uniform_numbers_are_flat_in_every_stream() -> None:
    for stream in (0, 1, 2**40):
        sample = uniform([*range(400)], stream=stream)
        assert sample.dtype == np.float64
        assert sample.shape == (400, 250)
        assert 0.0 <= sample.min() < sample.max() < 1.0
        counts = np.bincount((sample.ravel() * 256).astype(int), minlength=256)
        assert chi_square.p_value(counts) > 1e-4


def test_uniform_numbers_belong_to_seed_epoch_example_position_and_stream() -> None:
    whole = uniform([5, 2**40, 9])
    assert np.array_equal(uniform([9, 5]), whole[[2, 0]])
    others = [uniform([5]), uniform([6]), uniform([5], epoch=1), uniform([5], seed=1)]
    others += [uniform([5], stream=1), uniform([5], stream=2)]
    numbers = np.concatenate(others).ravel()
    assert len(np.unique(numbers)) == len(numbers)  # a chance of 3e-4 of equal ones


def test_uniform_numbers_are_none_that_the_kernel_draws() -> None:
    ours = set((uniform([5]).ravel() * 2**32).astype(np.uint32).tolist())
    for domain in (Domain.SELECT, Domain.CORRUPT, Domain.REPLACE, Domain.BUDGET):
        assert not ours & set(words(0, domain, np.array([5]), 250).ravel().tolist())


def test_how_tokens_are_corrupted_does_not_follow_from_how_they_were_selected() -> None:
    """Plain selects where its number is low: were it the kernel's, all would become the mask."""
    ids = np.arange(50)
    micro = masker("Plain", rate=0.5).micro_batch(packed().take(ids), ids, epoch=0)
    shown = micro.masked.input_ids.flatten()[micro.masked.positions]
    count = len(shown)
    assert count > 1000
    masked = int((shown == VOCABULARY.mask_id).sum())
    assert chi_square.p_value([masked, count - masked], [0.8, 0.2]) > 1e-4


def test_a_policy_knows_where_words_begin_if_it_asks() -> None:
    ids = np.array([[CLS, 10, 11, 12, SEP, 13, PAD]], np.uint16)
    for name, expected in (("Words", [[1, 1, 0, 2, 1, 1, 1]]), ("Plain", None)):
        policy: Any = build_policy(MaskingConfig(unit=f"my_ideas:{name}"))
        mask_with_policy(
            policy, ids, example_ids=np.zeros(1, np.int64), epoch=0, seed=0,
            config=MaskingConfig(unit=f"my_ideas:{name}"), vocabulary=VOCABULARY,
            word_starts=np.array([[0, 0, 0, 2, 0, 0, 0]], np.uint8),
        )  # fmt: skip
        (batch,) = policy.batches
        starts = batch.word_starts
        assert (None if starts is None else starts.tolist()) == expected
        assert batch.selectable.tolist() == [[False, True, True, True, False, True, False]]
        assert batch.input_ids.dtype == np.int64


# What becomes of what it selects


@pytest.mark.parametrize("name", ["EveryOther", "Plain", "Words"])
@pytest.mark.parametrize("blocks", [packed, padded])
def test_masks_do_not_depend_on_the_batch_or_the_rank(name: str, blocks: Any) -> None:
    examples = [*range(24)]
    whole = rows_of(masker(name), blocks(), examples)
    assert sum(len(positions) for _, positions, _ in whole.values()) > 50
    for part in ([7, 3, 11, 0], examples[1::2], [5]):
        for example, row in rows_of(masker(name), blocks(), part).items():
            assert row == whole[example]


@pytest.mark.parametrize("name", ["EveryOther", "Plain", "Words"])
def test_masks_are_others_in_other_epochs_and_seeds(name: str) -> None:
    examples = [*range(24)]
    found = [
        rows_of(masker(name), packed(), examples, **changes)
        for changes in ({}, {"epoch": 4}, {"seed": 8})
    ]
    for one, other in itertools.combinations(found, 2):
        assert all(one[example] != other[example] for example in examples)


@pytest.mark.parametrize("blocks", [packed, padded])
def test_special_tokens_and_padding_are_never_predicted_and_all_else_may_be(blocks: Any) -> None:
    examples = [*range(24)]
    rows = rows_of(masker("All", mask_fraction=1.0, random_fraction=0.0), blocks(), examples)
    taken = blocks().take(np.array(examples)).input_ids
    for (text, positions, labels), ids in zip(rows.values(), taken.tolist(), strict=True):
        free = [place for place, token in enumerate(ids) if token > 4]
        assert positions == free
        assert labels == [ids[place] for place in free]  # whatever the policy did to its copy
        assert all(text[place] == VOCABULARY.mask_id for place in free)


def test_units_of_ones_own_are_corrupted_at_once() -> None:
    config = {"rate": 0.5, "mask_fraction": 0.5, "random_fraction": 0.0}
    mixed = {}
    for corrupt in Corrupt:
        own = masker("Words", corrupt=corrupt, **config)
        micro = own.micro_batch(packed().take(np.arange(50)), np.arange(50), epoch=0)
        policy: Any = own.policy
        (batch,) = policy.batches
        positions = micro.masked.positions.numpy()
        numbers = policy.units(batch)
        unit = (numbers + 1000 * np.arange(50)[:, None]).ravel()[positions]
        hidden = (micro.masked.input_ids.flatten()[micro.masked.positions] == 4).numpy()
        shares = [hidden[unit == number].mean() for number in np.unique(unit)]
        mixed[corrupt] = sum(0.0 < share < 1.0 for share in shares)
        assert 0.4 < hidden.mean() < 0.6
    assert mixed[Corrupt.UNIT] == 0
    assert mixed[Corrupt.TOKEN] > 50


def loader(policy: Masker[MaskingConfig]) -> TrainLoader:
    blocks = packed()
    order = Order(len(blocks), 8, 0)
    return TrainLoader(blocks, order, 8, policy, SEEDS)


def test_a_schedule_moves_the_rate_that_a_policy_gets() -> None:
    own = masker("Plain", schedule=RateSchedule.LINEAR, start_rate=0.9)
    batches = loader(own).batches(first=0, step=0)
    counts = [next(batches).masked_count for _ in range(5)]
    batches.close()
    policy: Any = own.policy
    rates = [batch.rate for batch in policy.batches[:5]]
    assert rates == pytest.approx([0.9, 0.7125, 0.525, 0.3375, 0.15])
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("mode", MaskingMode)
def test_static_masks_are_those_of_epoch_0(mode: MaskingMode) -> None:
    own = masker("Plain", mode=mode)
    batches = loader(own)
    per_epoch = batches.order.batches_per_epoch
    for number in range(2 * per_epoch):
        batches.batch(number)
    policy: Any = own.policy
    epochs = [batch.epoch for batch in policy.batches]
    second = 0 if mode is MaskingMode.STATIC else 1
    assert epochs == [0] * per_epoch + [second] * per_epoch


# Runs


def test_a_run_trains_with_ones_own_policy_and_evaluates_with_bert(ideas: Path) -> None:
    summary = _run(*TINY, *OWN, "run_dir=run")
    assert summary.eval_perplexity < summary.initial_eval_perplexity
    plain = _run(*TINY, "run_dir=plain")
    assert summary.eval_masked_tokens == plain.eval_masked_tokens
    assert summary.floor_perplexity == plain.floor_perplexity
    assert summary.eval_loss != plain.eval_loss
    digest = hashlib.sha256(IDEAS.encode()).hexdigest()
    config = Path("run/config.yaml").read_text()
    assert f"my_ideas:EveryOther: {digest}" in config
    assert "share: 0.2" in config


def test_an_evaluation_with_ones_own_policy_is_repeated_by_evaluate(ideas: Path) -> None:
    own = ("eval.masking.unit=my_ideas:EveryOther", "eval.masking.options.share=0.2")
    summary = _run(*TINY, *own, "run_dir=run")
    assert summary.floor_perplexity is None
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation("checkpoint=run"), quiet=True)
    assert report.evaluation.loss == summary.eval_loss
    other = mlmlab.compose_evaluation("checkpoint=run", "eval.masking.options.share=0.4")
    more = mlmlab.evaluate_checkpoint(other, quiet=True).evaluation.masked_count
    assert more == pytest.approx(2 * summary.eval_masked_tokens, rel=0.1)
    with refusal("eval.masking.options", Code.INVALID, "share", "~eval.masking.options."):
        changed = mlmlab.compose_evaluation("checkpoint=run", "eval.masking.unit=token")
        mlmlab.evaluate_checkpoint(changed, quiet=True)
    token = ("eval.masking.unit=token", "~eval.masking.options.share")
    report = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation("checkpoint=run", *token), quiet=True
    )
    assert report.evaluation.masked_count == _run(*TINY, "run_dir=plain").eval_masked_tokens


def test_words_of_ones_own_policy_are_found(ideas: Path) -> None:
    summary = _run(*TINY, "eval.masking.unit=my_ideas:Words", "run_dir=run", "train.max_steps=3")
    assert summary.eval_masked_tokens > 0
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation("checkpoint=run"), quiet=True)
    assert report.evaluation.loss == summary.eval_loss


def test_a_killed_run_with_ones_own_policy_is_resumed_with_the_same_bits(ideas: Path) -> None:
    _run(*TINY, *OWN, "run_dir=whole")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[45])
    _run(f"resume={killed}")
    assert bits(killed) == bits(Path("whole"))


@pytest.mark.parametrize("group", ["masking", "eval.masking"])
def test_a_resume_refuses_other_options_another_policy_and_changed_code(
    ideas: Path, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    own = (f"{group}.unit=my_ideas:EveryOther", f"{group}.options.share=0.2")
    _run(*TINY, *own, "run_dir=whole", "train.max_steps=20")
    killed = as_killed(Path("whole"), Path("killed"), checkpoints=[15])
    for key, value in (("options.share", "0.1"), ("unit", "my_ideas:Plain")):
        where = f"{group}.{key.partition('.')[0]}"
        with refusal(where, Code.CHANGED):
            mlmlab.compose(f"resume={killed}", f"{group}.{key}={value}")
    (ideas / "my_ideas.py").write_text(IDEAS.replace("% 2 == 0", "% 2 == 1"))
    monkeypatch.delitem(sys.modules, "my_ideas")
    with refusal(f"{group}.unit", Code.CHANGED, "my_ideas:EveryOther"):
        _run(f"resume={killed}")


# What does not fit


WRONG: dict[tuple[str, ...], Refusal] = {
    ("masking.unit=wrod",): ("masking.unit", Code.WRONG_TYPE),
    ("masking.unit=no_such_module:It",): ("masking.unit", Code.NOT_FOUND),
    ("masking.unit=my_ideas:Everyother",): ("masking.unit", Code.NOT_FOUND),
    ("masking.unit=my_ideas:number",): ("masking.unit", Code.INVALID),
    ("masking.unit=my_ideas:Speechless",): ("masking.unit", Code.INVALID),
    ("eval.masking.unit=my_ideas:Speechless",): ("eval.masking.unit", Code.INVALID),
    ("masking.options.share=0.1",): ("masking.options", Code.INVALID),
    (*OWN, "masking.options.chare=0.1"): ("masking.options", Code.INVALID),
    (*OWN, "masking.budget=exact"): ("masking.budget", Code.CONFLICT),
    (*OWN, "masking.corrupt=unit"): ("masking.corrupt", Code.CONFLICT),
    ("masking.unit=my_ideas:Numbers",): ("masking.unit", Code.INVALID),
    ("masking.unit=my_ideas:Narrow",): ("masking.unit", Code.INVALID),
    ("masking.unit=my_ideas:Nothing",): ("masking.unit", Code.INVALID),
    ("eval.masking.unit=my_ideas:Nothing",): ("eval.masking.unit", Code.INVALID),
    ("masking.unit=my_ideas:WrongUnits", "masking.corrupt=unit"): ("masking.unit", Code.INVALID),
}


@pytest.mark.parametrize("overrides", WRONG, ids=" ".join)
def test_what_is_no_policy_is_refused(overrides: tuple[str, ...]) -> None:
    with refusal(*WRONG[overrides]):
        _run(*TINY, *overrides, "run_dir=run")


def test_a_wrong_policy_is_refused_before_anything_is_tokenized(
    ideas: Path, fresh_cache: Path
) -> None:
    for name in ("masking", "eval.masking"):
        with refusal(f"{name}.options", Code.INVALID, "chare"):
            _run(*TINY, f"{name}.unit=my_ideas:EveryOther", f"{name}.options.chare=0.1")
    assert not fresh_cache.exists()


def test_evaluate_refuses_what_is_no_policy(ideas: Path) -> None:
    with refusal("eval.masking.unit", Code.INVALID, "Speechless"):
        mlmlab.evaluate_checkpoint(
            mlmlab.compose_evaluation(
                "checkpoint=nowhere", "data.path=x", "eval.masking.unit=my_ideas:Speechless"
            ),
            quiet=True,
        )


# Made visible


def test_show_masks_shows_ones_own_policy(ideas: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(*TINY, "run_dir=run", "train.max_steps=1")
    text = "the gentle brown cow lives in the barn . it eats fresh grass every day ."
    common = [text, "--tokenizer", "run", "--unit", "my_ideas:EveryOther"]
    show_masks([*common, "--option", "share=1.0", "--mask-fraction", "1", "--random-fraction", "0"])
    shown = capsys.readouterr().out.split("\n\n", 1)[1]
    ids: NDArray[Any] = np.array(load_tokenizer(Path("run/export")).encode(text))
    assert f"{(len(ids) - 1) // 2} of {len(ids) - 2} tokens selected" in shown
    assert shown.count("[") == (len(ids) - 1) // 2
    show_masks([*common, "--option", "share=0"])
    assert "0 of" in capsys.readouterr().out
    with refusal("masking.options", Code.INVALID, "chare"):
        show_masks([*common, "--option", "chare=0"])
    with refusal("the command line", Code.SYNTAX, "share"):
        show_masks([*common, "--option", "share"])
