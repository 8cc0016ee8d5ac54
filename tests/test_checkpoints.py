"""Files of every dialect are read in full, and whatever is not used is named."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference.hub_models import FAMILIES, VOCABULARY, write_reference
from refusals import refusal
from safetensors.torch import load_file, save_file

import mlmlab
from mlmlab.checkpoints import LoadReport, check_vocabularies, load_model, save_pretrained
from mlmlab.checkpoints.key_maps import hub_names
from mlmlab.data.tokenizer import load_tokenizer, word_tokenizer
from mlmlab.errors import Code
from mlmlab.model import MaskedLanguageModel

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference("bert", tmp_path_factory.mktemp("bert")).folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reference("roberta", tmp_path_factory.mktemp("roberta")).folder


def _variant(
    source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> Path:
    """A copy of a checkpoint whose tensors were changed."""
    target.mkdir(exist_ok=True)
    tensors = load_file(str(source / "model.safetensors"))
    change(tensors)
    save_file({k: v.clone() for k, v in tensors.items()}, str(target / "model.safetensors"))
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target


def _logits(model: MaskedLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS)
    return logits


def _same(folder: Path, original: Path) -> LoadReport:
    loaded = load_model(str(folder))
    assert torch.equal(_logits(loaded.model), _logits(load_model(str(original)).model))
    return loaded.report


def test_every_parameter_is_loaded_and_nothing_else_is_there(bert: Path) -> None:
    loaded = load_model(str(bert))
    report = loaded.report
    assert set(report.loaded) == {name for name, _ in loaded.model.named_parameters()}
    assert (report.tied, report.ignored, report.fresh) == ((), (), ())
    assert not loaded.model.training


def test_old_layer_norm_names_are_read(bert: Path, tmp_path: Path) -> None:
    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)

    _same(_variant(bert, tmp_path / "old", age), bert)


def test_gamma_is_renamed_only_right_after_layer_norm(bert: Path, tmp_path: Path) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: t.update({"other.gamma": torch.ones(1)}))
    assert _same(folder, bert).ignored == ("other.gamma",)


def test_a_body_without_the_prefix_is_read(bert: Path, roberta: Path, tmp_path: Path) -> None:
    for source, prefix in ((bert, "bert."), (roberta, "roberta.")):

        def strip(tensors: dict[str, torch.Tensor], prefix: str = prefix) -> None:
            for name in list(tensors):
                tensors[name.removeprefix(prefix)] = tensors.pop(name)

        _same(_variant(source, tmp_path / prefix, strip), source)


def test_poolers_buffers_and_foreign_heads_are_ignored_and_listed(
    bert: Path, tmp_path: Path
) -> None:
    foreign = {
        "bert.embeddings.position_ids": torch.arange(40)[None],
        "bert.pooler.dense.weight": torch.ones(32, 32),
        "cls.seq_relationship.weight": torch.ones(2, 32),
        "species_classifier.bias": torch.ones(3),
    }
    report = _same(_variant(bert, tmp_path / "x", lambda t: t.update(foreign)), bert)
    assert set(report.ignored) == set(foreign)
    for name in foreign:
        assert name in str(report)


def test_tied_tensors_may_be_repeated(bert: Path, roberta: Path, tmp_path: Path) -> None:
    words = "embeddings.word_embeddings.weight"
    for source, table, decoder, bias in (
        (bert, f"bert.{words}", "cls.predictions.decoder", "cls.predictions.bias"),
        (roberta, f"roberta.{words}", "lm_head.decoder", "lm_head.bias"),
    ):

        def repeat(
            tensors: dict[str, torch.Tensor],
            table: str = table,
            decoder: str = decoder,
            bias: str = bias,
        ) -> None:
            tensors[f"{decoder}.weight"] = tensors[table]
            tensors[f"{decoder}.bias"] = tensors[bias]

        report = _same(_variant(source, tmp_path / decoder, repeat), source)
        assert set(report.tied) == {f"{decoder}.weight", f"{decoder}.bias"}


def test_a_bias_under_its_other_name_alone_is_read(roberta: Path, tmp_path: Path) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")

    _same(_variant(roberta, tmp_path / "x", rename), roberta)


def test_a_decoder_that_is_not_tied_is_refused(bert: Path, tmp_path: Path) -> None:
    other = {"cls.predictions.decoder.weight": torch.ones(VOCABULARY, 32)}
    folder = _variant(bert, tmp_path / "x", lambda t: t.update(other))
    with refusal(f"checkpoint {folder}", Code.UNSUPPORTED, *other):
        load_model(str(folder))


def _behead(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        if not name.startswith("bert."):
            del tensors[name]


def test_a_checkpoint_without_a_head_is_refused_unless_a_fresh_one_is_asked_for(
    bert: Path, tmp_path: Path
) -> None:
    folder = _variant(bert, tmp_path / "x", _behead)
    with refusal(f"checkpoint {folder}", Code.MISMATCH, "checkpoint_head=fresh"):
        load_model(str(folder))
    loaded = load_model(str(folder), fresh_head_seed=3)
    head = {name for name, _ in loaded.model.named_parameters() if name.startswith("head.")}
    assert set(loaded.report.fresh) == head
    dense = loaded.model.head.dense.weight
    assert 0.01 < dense.std().item() < 0.02
    again = load_model(str(folder), fresh_head_seed=3).model
    assert torch.equal(dense, again.head.dense.weight)
    assert not torch.equal(
        dense, load_model(str(folder), fresh_head_seed=4).model.head.dense.weight
    )


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fine_tuned_classifier_gives_its_encoder_to_a_fresh_head(
    family: str, task: str, tmp_path: Path
) -> None:
    import transformers

    config = write_reference(family, tmp_path / "mlm").model.config
    theirs = getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()
    folder = tmp_path / "classifier"
    theirs.save_pretrained(folder)
    with refusal(f"checkpoint {folder}", Code.MISMATCH, "without a masked-LM head"):
        load_model(str(folder))
    loaded = load_model(str(folder), fresh_head_seed=0)
    with torch.no_grad():
        expected = theirs.base_model(input_ids=IDS).last_hidden_state
        assert torch.allclose(loaded.model.encode(IDS), expected, rtol=0, atol=1e-5)
    head = {name for name, _ in loaded.model.named_parameters() if name.startswith("head.")}
    assert set(loaded.report.fresh) == head
    body = {name for names in hub_names(loaded.model).values() for name in names}
    assert set(loaded.report.ignored) == {
        name for name in theirs.state_dict() if name not in body or name.startswith("head.")
    }
    assert "ignored" in str(loaded.report)

    gone = min(name for name in body if name.startswith(f"{theirs.base_model_prefix}."))
    damaged = _variant(folder, tmp_path / "damaged", lambda t: t.pop(gone))
    with refusal(f"checkpoint {damaged}", Code.MISMATCH, gone):
        load_model(str(damaged), fresh_head_seed=0)


def test_a_head_without_its_decoder_is_damage_where_no_other_task_has_one(tmp_path: Path) -> None:
    modernbert = write_reference("modernbert", tmp_path / "a").folder
    folder = _variant(modernbert, tmp_path / "b", lambda t: t.pop("decoder.bias"))
    for seed in (None, 0):
        with refusal(f"checkpoint {folder}", Code.MISMATCH, "decoder.bias"):
            load_model(str(folder), fresh_head_seed=seed)


def test_half_a_head_is_damage_not_a_headless_checkpoint(bert: Path, tmp_path: Path) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: t.pop("cls.predictions.bias"))
    for seed in (None, 0):
        with refusal(f"checkpoint {folder}", Code.MISMATCH, "cls.predictions.bias"):
            load_model(str(folder), fresh_head_seed=seed)


def test_missing_and_unknown_parts_of_the_body_are_refused_by_name(
    bert: Path, tmp_path: Path
) -> None:
    gone = "bert.encoder.layer.1.output.dense.weight"
    folder = _variant(bert, tmp_path / "a", lambda t: t.pop(gone))
    with refusal(f"checkpoint {folder}", Code.MISMATCH, gone):
        load_model(str(folder))
    extra = "bert.encoder.layer.2.output.dense.weight"
    folder = _variant(bert, tmp_path / "b", lambda t: t.update({extra: torch.ones(1)}))
    with refusal(f"checkpoint {folder}", Code.MISMATCH, extra):
        load_model(str(folder))


def test_a_misspelt_head_is_not_taken_for_another_tasks(bert: Path, tmp_path: Path) -> None:
    extra = {"cls.predictions.bais": torch.ones(3)}
    folder = _variant(bert, tmp_path / "x", lambda t: t.update(extra))
    with refusal(f"checkpoint {folder}", Code.MISMATCH, "cls.predictions.bais"):
        load_model(str(folder))


def test_a_tensor_of_another_shape_is_refused_by_name(bert: Path, tmp_path: Path) -> None:
    name = "bert.embeddings.position_embeddings.weight"
    folder = _variant(bert, tmp_path / "x", lambda t: t.update({name: torch.ones(7, 32)}))
    with refusal(f"checkpoint {folder}", Code.MISMATCH, name, "[7, 32]"):
        load_model(str(folder))


def test_shards_and_bin_files_hold_the_same_model(bert: Path, tmp_path: Path) -> None:
    tensors = load_file(str(bert / "model.safetensors"))
    names = sorted(tensors)
    config = (bert / "config.json").read_bytes()

    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_bytes(config)
    places = {n: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, n in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: tensors[n] for n in names if places[n] == shard}, str(sharded / shard))
    index = {"metadata": {}, "weight_map": places}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    _same(sharded, bert)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    missing = "model-00002-of-00002.safetensors"
    index_file = sharded / "model.safetensors.index.json"
    with refusal(f"checkpoint {index_file}", Code.NOT_FOUND, missing):
        load_model(str(sharded))

    for legacy in (False, True):
        pickled = tmp_path / f"bin-{legacy}"
        pickled.mkdir()
        (pickled / "config.json").write_bytes(config)
        file = pickled / "pytorch_model.bin"
        torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
        _same(pickled, bert)


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (print, ("unpickled freely",))


def test_a_bin_file_that_holds_more_than_tensors_is_never_unpickled(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    torch.save({"x": _Bomb()}, tmp_path / "pytorch_model.bin")
    with refusal(f"checkpoint {tmp_path / 'pytorch_model.bin'}", Code.CORRUPT):
        load_model(str(tmp_path))
    assert "unpickled" not in capsys.readouterr().out


def test_half_precision_files_are_read_as_fp32(bert: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].half()

    model = load_model(str(_variant(bert, tmp_path / "x", halve))).model
    assert all(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "code", "found"),
    [
        ({"model_type": "gpt2"}, Code.UNSUPPORTED, "model_type='gpt2'"),
        ({"hidden_act": "relu"}, Code.UNSUPPORTED, "hidden_act='relu'"),
        ({"position_embedding_type": "relative_key"}, Code.UNSUPPORTED, "relative_key"),
        ({"is_decoder": True}, Code.UNSUPPORTED, "is_decoder"),
        ({"tie_word_embeddings": False}, Code.UNSUPPORTED, "tie_word_embeddings"),
        ({"num_hidden_layers": None}, Code.CORRUPT, "num_hidden_layers"),
        ({"hidden_size": "32"}, Code.CORRUPT, "hidden_size='32'"),
        ({"num_attention_heads": 5}, Code.CORRUPT, "5"),
        ({"max_position_embeddings": 0}, Code.CORRUPT, "max_position_embeddings=0"),
    ],
)
def test_an_architecture_that_is_not_ours_is_refused(
    bert: Path, tmp_path: Path, change: dict[str, object], code: Code, found: str
) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    content = json.loads((bert / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(content))
    with refusal(f"checkpoint {folder / 'config.json'}", code, found):
        load_model(str(folder))


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b'{"model_type": "\\ud800"}',
        b'{"model_type": "bert", "x": %s}' % (b"9" * 5000),
        b'{"model_type": "bert", "x": %s}' % (b"[" * 50_000 + b"]" * 50_000),
        b'{"model_type": "bert", "x": "\xff"}',
    ],
    ids=["list", "null", "surrogate", "digits", "nested", "latin-1"],
)
def test_a_config_that_is_no_json_object_is_refused_by_file(
    bert: Path, tmp_path: Path, content: bytes
) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    (folder / "config.json").write_bytes(content)
    with refusal(folder / "config.json", Code.CORRUPT):
        load_model(str(folder))


def test_a_model_type_that_is_none_is_refused_by_file(bert: Path, tmp_path: Path) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    (folder / "config.json").write_text(json.dumps({"model_type": ["bert"]}))
    with refusal(f"checkpoint {folder / 'config.json'}", Code.UNSUPPORTED, "model_type=['bert']"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 120.0),
        ("hidden_size", 10**30),
        ("hidden_size", True),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_attention_heads", [4]),
        ("intermediate_size", -64),
        ("type_vocab_size", "2"),
        ("layer_norm_eps", "1e-12"),
        ("layer_norm_eps", float("nan")),
        ("pad_token_id", -1),
        ("pad_token_id", VOCABULARY),
        ("hidden_dropout_prob", 1.5),
        ("initializer_range", float("inf")),
    ],
)
def test_a_value_of_the_config_that_cannot_be_is_refused_by_file_and_key(
    bert: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    content = json.loads((bert / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(content))
    with refusal(f"checkpoint {folder / 'config.json'}", Code.CORRUPT, f"{key}="):
        load_model(str(folder))


def test_sizes_that_the_weights_do_not_have_are_refused_before_they_take_memory(
    bert: Path, tmp_path: Path
) -> None:
    """Of the width alone, a model of this config would have 1.5 TB; torch cannot allocate that."""
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    content = json.loads((bert / "config.json").read_text())
    sizes = {"hidden_size": 100_000, "intermediate_size": 1_000_000}
    (folder / "config.json").write_text(json.dumps(content | sizes))
    with refusal(f"checkpoint {folder}", Code.MISMATCH, "weight"):
        load_model(str(folder))


def test_every_part_of_a_joined_parameter_has_its_own_shape(bert: Path, tmp_path: Path) -> None:
    query = "bert.encoder.layer.0.attention.self.query.weight"
    key = "bert.encoder.layer.0.attention.self.key.weight"
    for name, rows in ((key, (16, 31)), (query, (48, 32))):

        def change(
            tensors: dict[str, torch.Tensor], name: str = name, rows: tuple[int, int] = rows
        ) -> None:
            tensors[name] = torch.ones(rows)
            tensors[key] = tensors[key][: 64 - rows[0]]  # 96 rows in all, as there should be

        folder = _variant(bert, tmp_path / name, change)
        with refusal(f"checkpoint {folder}", Code.MISMATCH, name, list(rows)):
            load_model(str(folder))


def test_weights_that_are_whole_numbers_are_refused_by_name(bert: Path, tmp_path: Path) -> None:
    whole = torch.ones(VOCABULARY, dtype=torch.int)
    for name, code in (
        ("cls.predictions.bias", Code.MISMATCH),
        ("cls.predictions.decoder.bias", Code.UNSUPPORTED),  # the other name of the same tensor
    ):
        folder = _variant(bert, tmp_path / name, lambda t, name=name: t.update({name: whole}))
        with refusal(f"checkpoint {folder}", code, name):
            load_model(str(folder))


@pytest.mark.parametrize(
    ("index", "where", "code"),
    [
        ([], "$", Code.CORRUPT),
        ({}, "checkpoint $", Code.CORRUPT),
        ({"weight_map": None}, "checkpoint $", Code.CORRUPT),
        ({"weight_map": ["a"]}, "checkpoint $", Code.CORRUPT),
        ({"weight_map": {"a": 3}}, "checkpoint $", Code.CORRUPT),
        ({"weight_map": {"a": "../config.json"}}, "checkpoint $", Code.NOT_FOUND),
        ({"weight_map": {"a": "\0"}}, "checkpoint $", Code.NOT_FOUND),
        ({"weight_map": {"a": "a" * 10_000}}, "checkpoint $", Code.NOT_FOUND),
    ],
)
def test_an_index_that_names_no_files_is_refused_by_file(
    bert: Path, tmp_path: Path, index: object, where: str, code: Code
) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps(index))
    with refusal(where.replace("$", str(file)), code):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "where", "code"),
    [
        ([1, 2], "checkpoint $/pytorch_model.bin", Code.CORRUPT),
        ("text", "checkpoint $/pytorch_model.bin", Code.CORRUPT),
        ({1: 2}, "checkpoint $", Code.MISMATCH),
    ],
)
def test_a_bin_file_that_holds_no_named_tensors_is_refused(
    bert: Path, tmp_path: Path, content: object, where: str, code: Code
) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    torch.save(content, tmp_path / "pytorch_model.bin")
    with refusal(where.replace("$", str(tmp_path)), code):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "where", "code"),
    [
        ("truncated", "checkpoint $/model.safetensors", Code.CORRUPT),
        ("empty", "checkpoint $/model.safetensors", Code.CORRUPT),
        ("not json", "$/config.json", Code.CORRUPT),
        ("no weights", "checkpoint", Code.NOT_FOUND),
        ("no config", "checkpoint", Code.NOT_FOUND),
    ],
)
def test_damaged_checkpoints_are_refused_by_file(
    bert: Path, tmp_path: Path, damage: str, where: str, code: Code
) -> None:
    folder = _variant(bert, tmp_path / "x", lambda t: None)
    weights, config = folder / "model.safetensors", folder / "config.json"
    named: list[object] = []
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "not json":
        config.write_text("{")
    elif damage == "no weights":
        weights.unlink()
        named = [folder, weights.name]
    else:
        config.unlink()
        named = [folder, config.name]
    with refusal(where.replace("$", str(folder)), code, *named):
        load_model(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_and_loading_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    original = load_model(str(write_reference(family, tmp_path / "a").folder)).model
    tokenizer = word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)])
    save_pretrained(original, tokenizer, tmp_path / "b")
    model, loaded_tokenizer = mlmlab.load_pretrained(str(tmp_path / "b"))
    assert model.config == original.config
    for (name, a), b in zip(original.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert loaded_tokenizer.encode("w3 w4") == tokenizer.encode("w3 w4")


def test_the_names_of_a_family_are_its_files_names(bert: Path, roberta: Path) -> None:
    for folder in (bert, roberta):
        table = hub_names(load_model(str(folder)).model)
        theirs = [name for names in table.values() for name in names]
        assert sorted(theirs) == sorted(load_file(str(folder / "model.safetensors")))
        assert len(theirs) == len(set(theirs))


@pytest.mark.parametrize(
    ("ids", "is_its_own", "accepted"),
    [
        (1000, True, True),
        (1000, False, True),
        (950, False, True),  # the table is padded for the hardware
        (700, True, True),
        (700, False, False),  # probably another model's tokenizer
        (1001, True, False),
        (1001, False, False),
    ],
)
def test_a_tokenizer_that_cannot_be_the_models_is_refused(
    bert: Path, ids: int, is_its_own: bool, accepted: bool
) -> None:
    config = dataclasses.replace(load_model(str(bert)).model.config, vocabulary_size=1000)
    tokenizer = word_tokenizer([f"w{n}" for n in range(ids - 5)])
    if accepted:
        check_vocabularies(config, tokenizer, "it", is_its_own=is_its_own)
    else:
        key = "checkpoint" if is_its_own else "tokenizer.path"
        with refusal(key, Code.MISMATCH, ids, 1000):
            check_vocabularies(config, tokenizer, "it", is_its_own=is_its_own)


@pytest.mark.slow
def test_the_antiberty_file_loads_with_its_foreign_heads_listed(
    index_package: Callable[[str], Path],
) -> None:
    """A legacy pickle of a trained BERT with its own heads, from a package index."""
    models = index_package("antiberty==0.1.3") / "antiberty" / "trained_models"
    loaded = load_model(str(models / "AntiBERTy_md_smooth"))
    assert loaded.model.config.vocabulary_size == 25
    assert loaded.report.ignored
    assert not loaded.report.fresh
    tokenizer = load_tokenizer(models / "vocab.txt")
    sequence = "E V Q L V E S G G G L V Q P G G S L R L S C A A S G F T F S"
    ids = torch.tensor([tokenizer.encode(sequence)])
    positions = torch.arange(2, ids.shape[1] - 2)
    right = 0
    for position in positions:
        masked = ids.clone()
        masked[0, position] = tokenizer.mask_id
        with torch.no_grad():
            best = loaded.model(masked, positions=position[None]).argmax()
        right += int(best == ids[0, position])
    assert right / len(positions) > 0.8  # an antibody's first frame, which every such model knows
