"""Where words begin: as the tokenizer's own pre-tokenization says, a bit a token, built once."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from refusals import check
from shares import SEEDS
from test_corpus import Documents
from tokenizers import models, pre_tokenizers, trainers

import mlmlab
from mlmlab import schema
from mlmlab.data.batch import Masker
from mlmlab.data.blocks import DocumentBlocks, Order, PackedBlocks
from mlmlab.data.config import TokenizerKind
from mlmlab.data.corpus import Corpus, open_corpus
from mlmlab.data.loader import EvalLoader, TrainLoader
from mlmlab.data.tokenizer import Tokenizer, train_tokenizer, word_tokenizer
from mlmlab.data.word_starts import with_word_starts
from mlmlab.errors import Code
from mlmlab.masking import MaskingConfig, RateSchedule
from mlmlab.runs.setup import set_up

TEXTS = tuple(
    f"{first} {second}, don't stop: {first}s and {second}ing (unbelievably {second})."
    for first in ("token", "masking", "transformer", "language")
    for second in ("model", "walk", "tree", "extraordinary", "Zürich")
)


def unigram() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return Tokenizer(backend, {"mask_token": "<mask>", "unk_token": "<unk>"})


TOKENIZERS = {
    "byte-level BPE": lambda: train_tokenizer(TEXTS, TokenizerKind.BPE, 320),
    "WordPiece": lambda: train_tokenizer(TEXTS, TokenizerKind.WORDPIECE, 120),
    "unigram": unigram,
    "words": lambda: word_tokenizer(["token", "model", ",", "and"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_between_two_starts_are_one_pre_token(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    split_words = 0
    for text, starts in zip(TEXTS, tokenizer.word_starts_batch(TEXTS), strict=True):
        ids = tokenizer.encode(text)
        assert starts.dtype == np.bool_
        assert len(starts) == len(ids)
        special = {
            tokenizer.backend.token_to_id(token) for token in ("<s>", "</s>", "[CLS]", "[SEP]")
        }
        inner = [n for n, number in enumerate(ids) if number not in special]
        assert all(starts[n] for n in range(len(ids)) if n not in inner)
        words: list[str] = []
        for n in inner:
            piece = tokenizer.token(ids[n])
            if starts[n]:
                words.append(piece)
            else:
                words[-1] += piece.removeprefix("##")
                split_words += 1
        backend = tokenizer.backend
        normalized = backend.normalizer.normalize_str(text) if backend.normalizer else text
        expected = [token for token, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
        if name == "words":  # what it does not know is <unk>
            assert len(words) == len(expected)
        else:
            assert words == expected
    assert (split_words > 0) == (name != "words")


def corpus_of(tokenizer: Tokenizer, source: Documents) -> Corpus:
    corpus = open_corpus(source, tokenizer, test_fraction=0.3, seed=0)
    return with_word_starts(corpus, source, tokenizer)


def test_the_bits_are_those_of_the_tokens_and_built_once(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, source = TOKENIZERS["byte-level BPE"](), Documents((*TEXTS, "", *TEXTS * 200))
    plain = open_corpus(source, tokenizer, test_fraction=0.3, seed=0)
    assert plain.train.word_starts is None
    corpus = corpus_of(tokenizer, source)
    for shard in (corpus.train, corpus.test):
        assert shard.word_starts is not None
        assert len(shard.word_starts) == -(-len(shard.tokens) // 8)
        bits = np.unpackbits(shard.word_starts, bitorder="little")[: len(shard.tokens)]
        for document in range(0, shard.documents, 97):
            start = shard.begins[document]
            end = start + shard.offsets[document + 1] - shard.offsets[document]
            text = tokenizer.decode(shard.tokens[start:end].tolist())
            assert np.array_equal(bits[start:end], tokenizer.word_starts_batch([text])[0])
    monkeypatch.setattr(Tokenizer, "word_starts_batch", None)  # nobody asks again
    again = corpus_of(tokenizer, source)
    assert again.test.word_starts is not None
    assert corpus.test.word_starts is not None
    assert np.array_equal(again.test.word_starts, corpus.test.word_starts)


def test_an_interrupted_build_leaves_no_bits(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, source = TOKENIZERS["WordPiece"](), Documents(TEXTS)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "word_starts_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            corpus_of(tokenizer, source)
    assert not list((fresh_cache / "corpora").rglob("starts"))
    assert corpus_of(tokenizer, source).train.word_starts is not None


def test_packed_rows_say_where_words_and_documents_begin(fresh_cache: Path) -> None:
    tokenizer = TOKENIZERS["byte-level BPE"]()
    shard = corpus_of(tokenizer, Documents(TEXTS)).train
    blocks = PackedBlocks(shard, 13, keep_rest=True)
    assert shard.word_starts is not None
    bits = np.unpackbits(shard.word_starts, bitorder="little")
    bits[shard.begins] = 2
    sizes = np.diff(shard.offsets)
    flags = np.concatenate(
        [bits[begin : begin + size] for begin, size in zip(shard.begins, sizes, strict=True)]
    )
    starts = blocks.take(np.arange(blocks.full_examples)).word_starts
    rest = blocks.take(np.array([blocks.full_examples])).word_starts
    assert starts is not None
    assert rest is not None
    assert np.array_equal(np.concatenate([starts.ravel(), rest.ravel()]), flags)


def test_rows_of_documents_say_where_words_begin(fresh_cache: Path) -> None:
    tokenizer = TOKENIZERS["WordPiece"]()
    shard = corpus_of(tokenizer, Documents(TEXTS)).train
    blocks = DocumentBlocks(
        shard, 12, frame=tokenizer.frame, pad_id=tokenizer.pad_id, cut_off=False
    )
    rows = blocks.take(np.arange(len(blocks)))
    assert rows.word_starts is not None
    assert rows.lengths is not None
    for ids, starts, length in zip(rows.input_ids, rows.word_starts, rows.lengths, strict=True):
        for token, start in list(zip(ids[2 : length - 1], starts[2 : length - 1], strict=True)):
            assert start == (not tokenizer.token(int(token)).startswith("##"))


@pytest.mark.parametrize("layout", ["packed", "lines", "documents"])
def test_a_run_that_masks_words_masks_them_whole(
    tmp_path: Path, fresh_cache: Path, layout: str
) -> None:
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 5))
    TOKENIZERS["WordPiece"]().save(tmp_path)
    config = mlmlab.compose(
        "data=text", f"data.path={tmp_path / 'text.txt'}", f"tokenizer.path={tmp_path}",
        f"data.layout={layout}", "data.block_size=24",
        "masking=whole_word", "masking.mask_fraction=1", "masking.random_fraction=0",
    )  # fmt: skip
    inputs = set_up(config)
    loader = EvalLoader(
        inputs.test, Masker(config.masking, inputs.tokenizer.vocabulary(), SEEDS.eval_masks)
    )
    pieces = 0
    for chunk in loader.chunks():
        hidden = chunk.batch.masked.input_ids == inputs.tokenizer.mask_id
        whole = chunk.batch.masked.input_ids.clone()
        whole.flatten()[chunk.batch.masked.positions] = chunk.batch.masked.labels
        for row, masked in zip(whole.tolist(), hidden.tolist(), strict=True):
            for place in range(1, len(row)):
                if inputs.tokenizer.token(row[place]).startswith("##"):
                    assert masked[place] == masked[place - 1]
                    pieces += masked[place]
    assert pieces > 5


# Rates that move


def moving(schedule: RateSchedule, **changes: object) -> MaskingConfig:
    return MaskingConfig(schedule=schedule, **changes)  # type: ignore[arg-type]


def test_a_schedule_begins_at_its_start_and_ends_at_the_rate() -> None:
    for schedule in (RateSchedule.LINEAR, RateSchedule.COSINE):
        config = moving(schedule, start_rate=0.3)
        rates = [config.rate_at(step, 101) for step in range(101)]
        assert rates[0] == 0.3
        assert rates[-1] == pytest.approx(0.15, abs=1e-12)
        assert rates[50] == pytest.approx(0.225, abs=1e-12)
        assert rates == sorted(rates, reverse=True)
    linear = moving(RateSchedule.LINEAR, start_rate=0.3)
    assert linear.rate_at(25, 101) == pytest.approx(0.2625)
    assert moving(RateSchedule.COSINE, start_rate=0.3).rate_at(25, 101) > 0.27
    assert MaskingConfig().rate_at(7, 10) == 0.15


def test_rates_hold_from_their_step_on() -> None:
    config = moving(RateSchedule.STEPS, rate_steps=("10:0.4", "20:0.2"))
    rates = [config.rate_at(step, 30) for step in (0, 9, 10, 19, 20, 29)]
    assert rates == [0.15, 0.15, 0.4, 0.4, 0.2, 0.2]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"schedule": RateSchedule.LINEAR}, "masking.start_rate"),
        ({"start_rate": 0.3}, "masking.start_rate"),
        ({"schedule": RateSchedule.STEPS}, "masking.rate_steps"),
        ({"rate_steps": ("1:0.2",)}, "masking.rate_steps"),
        ({"schedule": RateSchedule.STEPS, "rate_steps": ("2:0.2", "1:0.3")}, "masking.rate_steps"),
        ({"schedule": RateSchedule.STEPS, "rate_steps": ("1:0.2", "1:0.3")}, "masking.rate_steps"),
        ({"schedule": RateSchedule.STEPS, "rate_steps": ("one:0.2",)}, "masking.rate_steps"),
        ({"schedule": RateSchedule.STEPS, "rate_steps": ("1:1.2",)}, "masking.rate_steps"),
        ({"schedule": RateSchedule.STEPS, "rate_steps": ("1:0",)}, "masking.rate_steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_a_problem(changes: dict[str, object], where: str) -> None:
    config = MaskingConfig(**changes)  # type: ignore[arg-type]
    (problem,) = schema.all_problems(config, "masking")
    check(problem, where, Code.CONFLICT, "masking.schedule=")


def test_the_rate_follows_the_steps_and_the_masks_the_batches(fresh_cache: Path) -> None:
    shard = corpus_of(TOKENIZERS["byte-level BPE"](), Documents(TEXTS * 30)).train
    blocks = PackedBlocks(shard, 32)
    vocabulary = TOKENIZERS["byte-level BPE"]().vocabulary()
    loader = TrainLoader(
        blocks, Order(len(blocks), 16, 0), 16,
        Masker(moving(RateSchedule.LINEAR, start_rate=0.9), vocabulary, total_steps=5), SEEDS,
    )  # fmt: skip
    batches = loader.batches(first=3, step=0)
    rates = [next(batches).masking_rate for _ in range(5)]
    assert rates == pytest.approx([0.9, 0.7125, 0.525, 0.3375, 0.15])
    few, many = (set(loader.batch(3, u).micro_batches[0].masked.positions.tolist()) for u in (4, 0))
    assert few < many  # the same words, cut elsewhere
