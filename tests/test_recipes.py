"""Every recipe of conf/experiment/ takes a step on stand-ins of what it downloads, offline."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from refusals import refusal
from servers import COMMIT, HubServer, running
from stand_ins import write_checkpoint, write_eli5, write_imdb, write_imdb_csv
from test_hub import use

import mlmlab
from mlmlab.cli.compose import config_folder
from mlmlab.data.sources import FileSource
from mlmlab.errors import Code
from mlmlab.runs.setup import set_up

IMDB = "stanfordnlp/imdb"
OFFLINE_IMDB = (
    "data.source=file",
    "data.path=[imdb/plain_text/train-*.parquet,imdb/plain_text/unsupervised-*.parquet]",
    "data.eval_path=imdb/plain_text/test-*.parquet",
)
SMALL = ("model.hidden_size=32", "model.layers=2", "model.heads=4", "model.intermediate_size=64")
OWN_TEXT = ("data.path=reviews.jsonl", "data.test_fraction=0.2", *SMALL)
RECIPES = {
    # name: its stand-ins, as a user names them
    "cramming": OWN_TEXT,
    "eli5": ("checkpoint=roberta", "data.source=file", "data.path=eli5.json.gz"),
    "eli5_askscience": ("checkpoint=roberta", "data.path=eli5.json.gz"),
    "finetune": ("checkpoint=bert", "data.path=reviews.jsonl"),
    "imdb_bert_tpu": ("checkpoint=bert", "data.path=imdb_tr.csv"),
    "imdb_distilbert": ("checkpoint=distilbert", *OFFLINE_IMDB),
    "imdb_distilbert_whole_word": ("checkpoint=distilbert", *OFFLINE_IMDB),
    "minilm_eli5": ("checkpoint=minilm", "data.source=file", "data.path=eli5.json.gz"),
    "mosaic": ("tokenizer.path=bert", *OWN_TEXT),
    "pretrain": OWN_TEXT,
    "python_docs": ("data.limit=100", *SMALL),
    "scratch_bert_base": OWN_TEXT,
    "scratch_roberta": OWN_TEXT,
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    for family in ("roberta", "bert", "distilbert", "minilm"):
        write_checkpoint(family, folder / family)
    splits = write_imdb(folder / "imdb")
    write_imdb_csv(folder / "imdb_tr.csv")
    write_eli5(folder / "eli5.json.gz")
    rows = (json.dumps({"text": text}) for text in splits["train"])
    (folder / "reviews.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def here(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(stand_ins)
    return stand_ins


def test_every_recipe_is_tried_here_and_has_its_page_and_its_row_in_the_readme() -> None:
    recipes = {file.stem for file in (config_folder() / "experiment").glob("*.yaml")}
    assert recipes == set(RECIPES)
    root = Path(mlmlab.__file__).parents[1]
    readme = (root / "README.md").read_text()
    for name in recipes - {"finetune", "pretrain"}:  # which are no one's published recipe
        page = (root / "experiments" / name / "README.md").read_text()
        assert f"+experiment={name}" in page
        assert f"(experiments/{name}/README.md)" in readme


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_one_step_offline(name: str, here: Path, tmp_path: Path) -> None:
    config = mlmlab.compose(
        f"+experiment={name}", *RECIPES[name], "debug=one_step", f"run_dir={tmp_path / 'run'}"
    )
    result = mlmlab.run(config, quiet=True)
    assert result.summary.steps == 1
    assert result.summary.eval_masked_tokens > 0
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert IMDB not in card  # the text that was read, not the one that the recipe names
    assert "jingshensn2" not in card


# The IMDb recipes, on the real layout


@pytest.fixture
def hub(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with running(HubServer("datasets", IMDB, stand_ins / "imdb")) as server:
        use(server, tmp_path / "hub", monkeypatch)
        yield server


def course_blocks(texts: list[str], checkpoint: Path, size: int = 128) -> int:
    """The chunks of up to 1,000 reviews: all tokens joined, what does not fill a chunk dropped."""
    assert len(texts) <= 1000
    _, tokenizer = mlmlab.load_pretrained(str(checkpoint), quiet=True)
    return sum(len(tokenizer.encode(text)) for text in texts) // size


def split(folder: Path, name: str) -> list[str]:
    files = tuple((folder / "imdb" / "plain_text").glob(f"{name}-*.parquet"))
    return list(FileSource(files).documents())


def test_imdb_from_the_hub_trains_on_two_splits_and_tests_on_the_third(
    hub: HubServer, stand_ins: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = (
        "+experiment=imdb_distilbert", f"checkpoint={stand_ins / 'distilbert'}",
        "data.train_examples=100", "data.test_examples=7", "train.max_steps=2",
        f"data.eval_repository={IMDB}@v1",
    )  # fmt: skip
    summary = mlmlab.run(mlmlab.compose(*recipe, "run_dir=run")).summary
    printed = " ".join(capfd.readouterr().out.split())
    assert sorted(hub.downloads) == [
        f"plain_text/{name}-00000-of-00001.parquet" for name in ("test", "train", "unsupervised")
    ]
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert config.data.revision == COMMIT
    assert config.data.eval_repository == f"{IMDB}@{COMMIT}"
    assert config.data.fingerprint != config.data.eval_fingerprint

    # Sampled from as many blocks as the course's rule gives for each split, and one more where the
    # rest of one meets that of the other.
    checkpoint = stand_ins / "distilbert"
    counts = {name: course_blocks(split(stand_ins, name), checkpoint) for name in
              ("train", "unsupervised", "test")}  # fmt: skip
    both = course_blocks(split(stand_ins, "train") + split(stand_ins, "unsupervised"), checkpoint)
    assert 0 <= both - counts["train"] - counts["unsupervised"] <= 1
    assert f"100 of {both} blocks of 128" in printed
    assert f"7 of {counts['test']} blocks of 128 + one of" in printed
    alone = mlmlab.compose(*recipe, "data.files=plain_text/train-*", "data.train_examples=null")
    assert len(set_up(alone).train) == counts["train"]

    # The same bits from the cache, and once more for an evaluation and a resumed run.
    hub.shutdown()
    report = mlmlab.evaluate_checkpoint(mlmlab.compose_evaluation("checkpoint=run"), quiet=True)
    assert report.evaluation.loss == summary.eval_loss
    resumed = mlmlab.compose("resume=run", f"data.eval_repository={IMDB}", "train.max_steps=3")
    assert mlmlab.run(resumed, quiet=True).summary.steps == 3


def test_a_glob_of_test_files_without_a_match_lists_what_there_is(
    hub: HubServer, stand_ins: Path
) -> None:
    recipe = ("+experiment=imdb_distilbert", f"checkpoint={stand_ins / 'distilbert'}")
    with refusal(
        "data.eval_files", Code.NOT_FOUND, "valid*", "plain_text/test-", "data.eval_files="
    ):
        set_up(mlmlab.compose(*recipe, "data.eval_files=valid*"))
    with refusal("data.files", Code.NOT_FOUND, "valid*", "plain_text/test-"):
        set_up(mlmlab.compose(*recipe, "data.files=[plain_text/train-*,valid*]"))


def test_each_review_of_the_csv_is_a_row_of_at_most_128_tokens_with_its_own_letters(
    here: Path,
) -> None:
    inputs = set_up(mlmlab.compose("+experiment=imdb_bert_tpu", *RECIPES["imdb_bert_tpu"]))
    assert len(inputs.train) + len(inputs.test) == 60
    assert inputs.train.block_size == 128
    assert inputs.train.dropped_tokens > 0  # of reviews longer than a row
    together = "".join(inputs.text.source.documents())
    assert "naïve" in together
    assert "café" in together


def test_whole_word_recipe_masks_every_token_of_a_fifth_of_the_words(here: Path) -> None:
    name = "imdb_distilbert_whole_word"
    config = mlmlab.compose(f"+experiment={name}", *RECIPES[name])
    for masking in (config.masking, config.eval.masking):
        assert (masking.unit, masking.rate) == ("word", 0.2)
        assert (masking.mask_fraction, masking.random_fraction) == (1.0, 0.0)
    assert config.name == name
    assert (config.data.train_examples, config.data.test_examples) == (10000, 1000)
