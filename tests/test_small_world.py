"""Claims about `mlmlab.data.small_world`: what the documents are a function of, and that they are
the chain's."""

import hashlib
import re
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from stopping import TINY

import mlmlab
from mlmlab.data.small_world.chain import SmallWorld, small_world

SPECIALS = 5
CORPUS = "820c1bfff9ac84a91351f82379b57ec70297c64e7ff4668389be0d7af70996ab"
"""SHA-256 of the first 200 documents of seed 0."""


def word_ids(world: SmallWorld) -> dict[str, int]:
    return {word: SPECIALS + number for number, word in enumerate(world.words)}


def test_the_corpus_is_the_same_on_every_machine() -> None:
    text = "\n".join(small_world().documents(200, seed=0))
    assert hashlib.sha256(text.encode()).hexdigest() == CORPUS


def test_a_document_depends_on_the_seed_and_its_index_only() -> None:
    world = small_world()
    many = list(world.documents(2000, seed=7))
    assert len(many) == 2000
    for count in (1, 18, 1024, 1025):
        assert list(world.documents(count, seed=7)) == many[:count]
    assert list(islice(world.documents(10**9, seed=7), 20)) == many[:20]
    assert list(world.documents(20, seed=8)) != many[:20]
    assert len(set(many)) > 1500  # documents of one short sentence repeat


def test_long_documents_are_not_cut() -> None:
    lengths = [document.count(" ") + 1 for document in small_world().documents(2000, seed=7)]
    assert max(lengths) > 256  # more than two doublings of the first batch of random numbers
    assert all(document.endswith(" .") for document in small_world().documents(2000, seed=7))


def test_probabilities_add_up_to_one() -> None:
    world = small_world()
    for table in (world.initial, world.transition, world.end, world.emission):
        assert table.dtype == np.float64
        assert (table >= 0).all()
    np.testing.assert_allclose(world.initial.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(world.transition.sum(axis=1) + world.end, 1.0, rtol=1e-12)
    np.testing.assert_allclose(world.emission.sum(axis=1), 1.0, rtol=1e-12)


def test_documents_are_lower_case_words_of_the_world() -> None:
    world = small_world()
    assert 200 <= len(world.words) <= 400
    assert all(re.fullmatch(r"[a-z]+|[.,]", word) for word in world.words)
    used = Counter(word for text in world.documents(5000, seed=1) for word in text.split(" "))
    assert set(used) == set(world.words)


def test_facts_never_contradict_each_other() -> None:
    text = "\n".join(small_world().documents(5000, seed=2))
    claims = (
        r"(\w+) lives in \w+ (\w+) ",
        r"(\w+) works in \w+ (\w+) \. ",
        r"the day after (\w+) is (\w+) ",
        r"the opposite of (\w+) is (\w+) ",
        r"(\w+) works in \w+ \w+ \. (\w+) ",
        r"(\w+) [a-z]+ in \w+ [a-z]+ \. it (?:must|can|will) (\w+) ",
        r"(\w+) brings (\w+) ",
    )
    for claim in claims:
        facts = set(re.findall(claim, text))
        subjects = [subject for subject, _ in facts]
        assert len(facts) >= 4, claim
        assert len(subjects) == len(set(subjects)), claim


def test_pairs_of_tokens_are_as_frequent_as_the_chain_says() -> None:
    """Documents are independent, so each pair's count has a standard error."""
    world = small_world()
    ids, size, count = word_ids(world), SPECIALS + len(world.words), 10_000
    chain = world.token_chain(ids, size, cls_id=0, sep_id=2)
    joint = chain.emission.T @ (chain.start[:, None] * chain.transition) @ chain.emission
    expected = joint / chain.start[-1]  # pairs a document; the last state is the </s> of each

    sums, squares = np.zeros((size, size)), np.zeros((size, size))
    for document in world.documents(count, seed=3):
        tokens = [0, *(ids[word] for word in document.split()), 2]
        for pair, times in Counter(pairwise(tokens)).items():
            sums[pair] += times
            squares[pair] += times**2
    sums[2, 0] = squares[2, 0] = count  # the next document begins
    assert (sums[expected == 0] == 0).all()

    frequent = expected * count >= 50
    means = sums / count
    errors = np.sqrt((squares / count - means**2) / count)
    once = errors == 0  # "</s> <s>" and ". </s>" stand once in each document
    assert once[frequent].sum() == 2
    np.testing.assert_allclose(means[frequent & once], expected[frequent & once], rtol=1e-12)
    deviations = (means - expected)[frequent & ~once] / errors[frequent & ~once]
    assert len(deviations) > 500
    assert np.abs(deviations).max() < 4.5
    assert deviations.std() == pytest.approx(1.0, abs=0.1)


def test_the_token_chain_starts_from_its_stationary_distribution() -> None:
    world = small_world()
    chain = world.token_chain(word_ids(world), SPECIALS + len(world.words), cls_id=0, sep_id=2)
    np.testing.assert_allclose(chain.start.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(chain.transition.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(chain.emission.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(chain.start @ chain.transition, chain.start, rtol=0, atol=1e-15)

    frequency = chain.start @ chain.emission
    assert frequency[0] == pytest.approx(frequency[2])  # as many <s> as </s>
    assert (frequency[[1, 3, 4]] == 0).all()


def test_words_may_share_an_id_and_none_may_lack_one() -> None:
    world = small_world()
    shared = dict.fromkeys(world.words, 3)
    chain = world.token_chain(shared, 4, cls_id=0, sep_id=2)
    np.testing.assert_allclose(chain.emission[:-2, 3], 1.0)
    del shared["cow"]
    with pytest.raises(ValueError, match="cow"):
        world.token_chain(shared, 4, cls_id=0, sep_id=2)


def test_a_run_on_ones_own_text_never_compiles_the_grammar(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"line {number} of a text" for number in range(400)))
    small_world.cache_clear()
    keys = ("data=text", f"data.path={text}", "data.block_size=16", "tokenizer.vocabulary_size=300")
    config = mlmlab.compose(*TINY, *keys, "train.max_steps=2", f"run_dir={tmp_path / 'run'}")
    summary = mlmlab.run(config, quiet=True).summary
    mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(f"checkpoint={tmp_path / 'run'}"), quiet=True
    )
    assert summary.floor_perplexity is None
    assert small_world.cache_info().misses == 0
