"""An unchanged published checkpoint gives its published figures. They need the Hub itself."""

import pytest

import mlmlab
from mlmlab.errors import Code, UserError
from mlmlab.evaluation.fill_mask import FillMask

pytestmark = pytest.mark.hub

DISTILROBERTA = {
    "Read the rest of this <mask> to understand things in more detail": {
        "article": 0.354191, "post": 0.204787, "guide": 0.071647, "essay": 0.067819,
        "blog": 0.041652,
    },
    "At a <mask> you can drink beer and wine": {
        "discount": 0.228761, "premium": 0.085849, "minimum": 0.077105, "cafe": 0.059273,
        "festival": 0.043463,
    },
    "Performing additions and subtractions is a part of <mask>": {
        "mathematics": 0.085562, "programming": 0.078970, "calculus": 0.064769,
        "arithmetic": 0.030687, "learning": 0.025549,
    },
}  # fmt: skip
"""The five most probable words and their probabilities."""


@pytest.fixture(scope="module")
def fill() -> FillMask:
    try:
        return mlmlab.FillMask(*mlmlab.load_pretrained("distilbert/distilroberta-base"))
    except UserError as error:
        if error.problems[0].code is not Code.UNREACHABLE:
            raise
        pytest.skip(error.problems[0].found)


@pytest.mark.parametrize("text", DISTILROBERTA)
def test_distilroberta_gives_its_published_scores(fill: FillMask, text: str) -> None:
    answers = {answer["token_str"].strip(): answer["score"] for answer in fill(text, top_k=5)}
    assert answers == pytest.approx(DISTILROBERTA[text], abs=1e-3)
    assert list(answers) == list(DISTILROBERTA[text])


def test_distilroberta_numbers_its_tokens_as_published(fill: FillMask) -> None:
    ids = [answer["token"] for answer in fill(next(iter(DISTILROBERTA)), top_k=5)]
    assert ids == [1566, 618, 4704, 14700, 5059]
