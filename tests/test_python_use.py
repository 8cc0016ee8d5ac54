"""mlmlab from Python: docs/python.md runs as written, and gives what transformers gives."""

import dataclasses
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.hub_models import FAMILIES, padded_batch, write_reference
from refusals import refusals

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.config import (
    DataConfig,
    EvaluateConfig,
    ModelSettings,
    RunConfig,
    RuntimeConfig,
    TokenizerConfig,
    TrainConfig,
)
from mlmlab.data.config import TokenizerKind
from mlmlab.data.tokenizer import Tokenizer, train_tokenizer
from mlmlab.errors import Code, UserError
from mlmlab.evaluation import fill_mask
from mlmlab.model import MaskedLanguageModel
from mlmlab.model.config import Family

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
TEXTS = ["the cow", "the cow lives in the barn, and the dog sat on the mat!", "", "Ünïcödé 数字"]
CORPUS = ["the Milky Way is a galaxy. the cow lives in the barn; a dog sat on the mat!"] * 20


@pytest.fixture(scope="module", params=["bert", "roberta"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def pretrained(folder: Path) -> tuple[MaskedLanguageModel, Tokenizer]:
    return mlmlab.load_pretrained(str(folder), quiet=True)


def write_checkpoint(family: str, folder: Path) -> Path:
    import transformers

    kind = TokenizerKind.WORDPIECE if family == "bert" else TokenizerKind.BPE
    config = transformers.BertConfig if family == "bert" else transformers.RobertaConfig
    tokenizer = train_tokenizer(CORPUS, kind, 300)
    sizes = {
        "vocab_size": tokenizer.vocabulary_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 140,
        "pad_token_id": tokenizer.pad_id,
    }
    write_reference(family, folder, config(**sizes))
    tokenizer.save(folder)
    return folder


def test_the_version_is_that_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlmlab.__version__ == metadata.version("mlmlab")

    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert mlmlab.__version__ == "unknown"


def test_dir_lists_the_public_names_and_each_of_them_is_there() -> None:
    assert dir(mlmlab) == sorted(mlmlab.__all__)
    assert {"__version__", "FillMask", "MaskingConfig", "VocabularyInfo", "mask_batch"} <= {
        name for name in dir(mlmlab) if getattr(mlmlab, name) is not None
    }


def test_the_package_says_that_it_has_types() -> None:
    assert (Path(mlmlab.__file__).parent / "py.typed").is_file()


def test_a_look_at_the_package_imports_nothing_heavy() -> None:
    look = "import sys, mlmlab; dir(mlmlab); mlmlab.__version__; mlmlab.MaskingConfig"
    check = "sys.exit(str({'torch', 'numba', 'hydra', 'tokenizers'} & {*sys.modules} or ''))"
    done = subprocess.run([sys.executable, "-c", f"{look}; {check}"], capture_output=True)
    assert done.stderr.strip() == b""


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    reference = write_reference(family, tmp_path)
    ours = load_model(str(tmp_path)).model
    ids, mask = padded_batch(ours.config.pad_id)
    whole = torch.where(mask, ids, 50)
    with torch.no_grad():
        expected = reference.model.base_model(whole).last_hidden_state
        hidden = ours.encode(whole)  # [B, T, C]
        assert torch.allclose(hidden, expected, rtol=0, atol=1e-5)
        assert torch.equal(ours.head(hidden, ours.embeddings.token.weight), ours(whole))
        expected = reference.model.base_model(ids, attention_mask=mask.long()).last_hidden_state
        hidden = ours.encode(ids, mask)
        assert torch.allclose(hidden[mask], expected[mask], rtol=0, atol=1e-5)
        assert torch.equal(ours.head(hidden, ours.embeddings.token.weight), ours(ids, mask))


def _assert_as_transformers(ours: Any, theirs: Any) -> None:
    assert ours["input_ids"].dtype is torch.int64
    assert ours["attention_mask"].dtype is torch.bool
    assert ours["input_ids"].tolist() == theirs["input_ids"]
    assert ours["attention_mask"].long().tolist() == theirs["attention_mask"]


def test_padded_texts_are_those_of_transformers(folder: Path) -> None:
    import transformers

    reference = transformers.AutoTokenizer.from_pretrained(folder)
    _, tokenizer = mlmlab.load_pretrained(str(folder), quiet=True)
    pad = tokenizer.roles["pad_token"]
    for texts in (TEXTS, TEXTS[:1], [f"a {pad} is no padding", "a"], [*TEXTS, "the cow " * 60]):
        _assert_as_transformers(tokenizer(texts), reference(texts, padding=True))
        for longest in (3, 7):
            cut = reference(texts, padding=True, truncation=True, max_length=longest)
            _assert_as_transformers(tokenizer(texts, max_length=longest), cut)


def test_one_text_is_a_batch_of_one_and_no_text_an_empty_one(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    _, tokenizer = pretrained
    assert tokenizer("the cow")["input_ids"].tolist() == [tokenizer.encode("the cow")]
    assert tokenizer([])["input_ids"].shape == tokenizer([])["attention_mask"].shape == (0, 0)
    assert tokenizer([])["input_ids"].dtype is torch.int64


def test_a_max_length_without_room_for_text_is_refused(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    with pytest.raises(UserError, match="max_length"):
        pretrained[1]("the cow", max_length=2)


def test_padded_texts_go_into_the_model_as_they_are(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    model, tokenizer = pretrained
    batch = tokenizer(TEXTS)
    with torch.no_grad():
        logits = model(**batch)
        for row, text in enumerate(TEXTS):
            alone = model(**tokenizer(text))[0]
            assert torch.allclose(
                logits[row, batch["attention_mask"][row]], alone, rtol=0, atol=1e-5
            )


def _masked(tokenizer: Tokenizer, count: int) -> list[str]:
    """Texts of several lengths, every third with two masks."""
    mask = tokenizer.mask_token
    return [
        f"{'the cow ' * (n % 5)}lives in {mask}" + f" and {mask}." * (n % 3 == 2)
        for n in range(count)
    ]


def _numbers(answers: Any, key: str) -> Any:
    return answers[key] if isinstance(answers, dict) else [_numbers(a, key) for a in answers]


def _flat(nested: Any) -> list[float]:
    return [x for part in nested for x in _flat(part)] if isinstance(nested, list) else [nested]


def test_several_texts_are_filled_as_one_by_one_in_few_forward_passes(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    model, tokenizer = pretrained
    fill = mlmlab.FillMask(model, tokenizer)
    texts = _masked(tokenizer, fill_mask._BATCH_SIZE + 3)
    alone = [fill(text, top_k=3) for text in texts]
    passes: list[Any] = []
    model.register_forward_pre_hook(lambda module, arguments: passes.append(arguments))
    together = fill(texts, top_k=3)
    assert len(passes) == 2
    for key in ("token", "token_str", "sequence"):
        assert _numbers(together, key) == _numbers(alone, key)
    scores = _flat(_numbers(alone, "score"))
    assert _flat(_numbers(together, "score")) == pytest.approx(scores, abs=1e-6)


def test_complete_has_one_shape_for_any_number_of_masks(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    fill = mlmlab.FillMask(*pretrained)
    texts = _masked(fill.tokenizer, 3)
    completed = fill.complete(texts, top_k=2)
    assert [[len(mask) for mask in masks] for masks in completed] == [[2], [2], [2, 2]]
    assert fill(texts, top_k=2) == [completed[0][0], completed[1][0], completed[2]]
    assert fill.complete([]) == []


def test_padding_that_looks_like_a_mask_is_not_filled(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    model, tokenizer = pretrained
    texts = _masked(tokenizer, 3)
    without_pad = Tokenizer(tokenizer.backend, {"mask_token": tokenizer.mask_token})
    assert without_pad.pad_id == without_pad.mask_id
    completed = mlmlab.FillMask(model, without_pad).complete(texts)
    assert [len(masks) for masks in completed] == [1, 1, 2]


def test_filling_leaves_every_module_in_the_mode_it_was_in(
    pretrained: tuple[MaskedLanguageModel, Tokenizer],
) -> None:
    model, tokenizer = pretrained
    fill = mlmlab.FillMask(model, tokenizer)
    text = f"the cow {tokenizer.mask_token}"
    expected = fill(text)
    assert not model.training
    model.train()
    model.embeddings.eval()  # frozen without dropout, say
    modes = [module.training for module in model.modules()]
    assert fill(text) == expected  # no dropout
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(UserError):
        fill("no mask")
    assert [module.training for module in model.modules()] == modes


# A config made in Python


def own_config(folder: Path, **changes: Any) -> RunConfig:
    """A small run on a file, made of dataclasses alone, with values as YAML has them."""
    (folder / "my.txt").write_text("\n".join(CORPUS))
    keys = {
        "name": "mine",
        "run_dir": folder / "run",
        "data": DataConfig(path=folder / "my.txt", block_size=16),
        "tokenizer": TokenizerConfig(vocabulary_size=300),
        "model": ModelSettings(
            family="roberta", hidden_size=32, layers=1, heads=2, intermediate_size=64,
            max_positions=32, initializer_range=0.02, dropout=0,
        ),
        "train": TrainConfig(max_steps=2, learning_rate=1e-3),
        "runtime": RuntimeConfig(device="cpu", threads=1),
    }  # fmt: skip
    return RunConfig(**(keys | changes))


def test_a_config_made_of_dataclasses_is_checked_and_runs(tmp_path: Path) -> None:
    config = own_config(tmp_path)
    result = mlmlab.run(config, quiet=True)
    assert result.summary.steps == 2
    assert result.model.config.family is Family.ROBERTA
    wrong = dataclasses.replace(
        config, train=TrainConfig(learning_rate=-1, epochs="three"), run_dir=tmp_path / "other"
    )
    with refusals(("train.epochs", Code.WRONG_TYPE)):
        mlmlab.run(wrong, quiet=True)
    wrong = dataclasses.replace(wrong, train=TrainConfig(learning_rate=-1))
    with refusals(("train.learning_rate", Code.INVALID)):
        mlmlab.run(wrong, quiet=True)
    assert not (tmp_path / "other").exists()


def test_the_same_call_begins_and_resumes_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = own_config(tmp_path, resume="auto")
    assert mlmlab.run(config, quiet=True).summary.steps == 2
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=3))
    assert mlmlab.run(longer).summary.steps == 3
    assert "from step 2" in capsys.readouterr().out
    with refusals(("seed", Code.CHANGED)):
        mlmlab.run(dataclasses.replace(longer, seed=1), quiet=True)
    with refusals(("resume", Code.MISSING)):
        mlmlab.run(dataclasses.replace(config, run_dir=None), quiet=True)


def test_an_evaluation_config_made_of_dataclasses_scores_all_of_the_text(tmp_path: Path) -> None:
    checkpoint = write_checkpoint("roberta", tmp_path / "checkpoint")
    data = own_config(tmp_path).data
    report = mlmlab.evaluate_checkpoint(
        EvaluateConfig(checkpoint=checkpoint, data=data), quiet=True
    )
    assert report.documents == len(CORPUS)
    assert report.to_mapping()["split"] == "all"
    with refusals(("checkpoint", Code.MISSING)):
        mlmlab.evaluate_checkpoint(EvaluateConfig(data=data), quiet=True)


def test_an_assignment_to_a_config_says_what_to_do_instead() -> None:
    config: Any = mlmlab.compose()
    parts = [getattr(config, field.name) for field in dataclasses.fields(config)]
    groups = [part for part in parts if dataclasses.is_dataclass(part)]
    assert len(groups) >= 8
    for part in (config, config.eval.masking, *groups):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError) as error:
            setattr(part, name, 1)
        assert f"dataclasses.replace(config, {name}=...)" in str(error.value)
        assert "mlmlab.compose" in str(error.value)


def test_an_evaluations_config_says_so_too() -> None:
    config: Any = mlmlab.compose_evaluation("checkpoint=x", "data.path=x")
    with pytest.raises(dataclasses.FrozenInstanceError, match="replace"):
        config.eval.seed = 1


def test_readmes_python_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    hub_id = '"distilbert/distilroberta-base"'
    assert hub_id in blocks[0]
    checkpoint = write_checkpoint("roberta", tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text("\n".join(CORPUS))
    names: dict[str, Any] = {}
    for block in blocks:
        # The recipe would train on the Hub's data.
        local = block.replace(hub_id, repr(str(checkpoint))).replace(
            '"+experiment=eli5", "train.max_steps=10"', '"debug=one_step"'
        )
        exec(local, names)
    assert names["logits"].shape == (len(names["masked"].labels), names["logits"].shape[-1])
    assert names["hidden"].shape == (*names["batch"]["input_ids"].shape, 32)
    again, _ = mlmlab.load_pretrained("out", quiet=True)
    assert torch.equal(again(**names["batch"]), names["model"](**names["batch"]))
    assert names["embeddings"].shape == (2, 32)
    assert names["report"].tokens > 0
    assert len(names["losses"]) == 1
    assert [result.summary.seed for result in names["results"]] == [0, 1]
    assert names["result"].summary.steps == 10
