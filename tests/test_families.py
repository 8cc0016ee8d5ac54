"""Each family has one record, one key map and a file of sizes, all of them complete."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from reference.hub_models import VOCABULARY, padded_batch, write_reference
from refusals import refusal
from safetensors.torch import load_file, save_file

from mlmlab.checkpoints import load_model, save_pretrained
from mlmlab.checkpoints.hub_config import hub_config, read_hub_config
from mlmlab.checkpoints.key_maps import KEY_MAPS, hub_names
from mlmlab.cli.compose import config_folder
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.errors import Code
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig, ModelSettings
from mlmlab.model.families import ARCHITECTURES, FeedForwards, Norms, Positions
from mlmlab.model.flops import actual_flops


def _config(family: Family) -> ModelConfig:
    settings = ModelSettings(
        family=family,
        hidden_size=32,
        layers=2,
        heads=4,
        intermediate_size=48,
        max_positions=16,
        initializer_range=0.3,  # wide, so that tokens do influence each other
        dropout=0.0,
    )
    return ModelConfig.from_settings(settings, vocabulary_size=60, pad_id=1)


def _model(family: Family) -> MaskedLanguageModel:
    model = MaskedLanguageModel(_config(family))
    model.initialize(0)
    return model.eval()


def _ids() -> torch.Tensor:
    return torch.randint(5, 60, (3, 16), generator=torch.Generator().manual_seed(0))


def test_every_family_has_a_record_a_key_map_and_sizes() -> None:
    sizes = [OmegaConf.load(file) for file in Path(config_folder(), "model").glob("*.yaml")]
    assert set(ARCHITECTURES) == set(KEY_MAPS) == set(Family)
    to_be_trained = set(Family) - {Family.ELECTRA, Family.ERNIE}  # read and fine-tuned
    assert {size.family for size in sizes} == {None, *(family.value for family in to_be_trained)}


@pytest.mark.parametrize("family", Family)
def test_a_family_can_be_built_counted_and_written(family: Family, tmp_path: Path) -> None:
    config = _config(family)
    assert actual_flops(config, examples=3, length=16, predicted=5) > 0
    (tmp_path / "config.json").write_text(json.dumps(hub_config(config)))
    assert read_hub_config(tmp_path) == config
    model = _model(family)
    theirs = [name for names in hub_names(model).values() for name in names]
    assert len(theirs) == len(set(theirs)) >= len(list(model.parameters()))
    assert set(hub_names(model)) == {name for name, _ in model.named_parameters()}


def test_a_config_that_is_silent_gets_the_familys_own_values(tmp_path: Path) -> None:
    content = hub_config(_config(Family.DISTILBERT))
    assert not {"type_vocab_size", "layer_norm_eps"} & set(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_hub_config(tmp_path)
    assert (config.token_types, config.layer_norm_eps) == (0, 1e-12)


def test_a_record_has_no_value_that_no_family_needs() -> None:
    records = ARCHITECTURES.values()
    assert {record.positions for record in records} == set(Positions)
    assert {record.norms for record in records} == set(Norms)
    assert {record.feed_forward for record in records} == set(FeedForwards)


def test_a_model_type_means_one_family() -> None:
    names = [name for key_map in KEY_MAPS.values() for name in key_map.model_types]
    assert len(names) == len(set(names))
    assert [KEY_MAPS[family].model_types[0] for family in Family] == [f.value for f in Family]


# Layouts of published models


def test_logits_at_the_proportions_of_bert_large_are_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=256,
    )
    reference = write_reference("bert", tmp_path, config)
    model = load_model(str(tmp_path)).model
    ids, mask = padded_batch(model.config.pad_id)
    with torch.no_grad():
        expected = reference.model(input_ids=ids, attention_mask=mask.long()).logits
        assert torch.allclose(model(ids, mask)[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooler", [False, True])
@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_minilm_is_a_bare_encoder_with_or_without_a_pooler(
    family: str, pooler: bool, tmp_path: Path
) -> None:
    import transformers

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,  # 12 heads and four times the width, as in the published files
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 192,
    }
    kind = "Bert" if family == "bert" else "XLMRoberta"
    config = getattr(transformers, f"{kind}Config")(**sizes)
    theirs = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=pooler).eval()
    theirs.save_pretrained(tmp_path)
    with refusal(f"checkpoint {tmp_path}", Code.MISMATCH, "checkpoint_head=fresh"):
        load_model(str(tmp_path))
    loaded = load_model(str(tmp_path), fresh_head_seed=0)
    assert all(name.startswith("head.") for name in loaded.report.fresh)
    assert len(loaded.report.ignored) == 2 * pooler
    assert all(".pooler.dense." in name for name in loaded.report.ignored)
    ids, mask = padded_batch(loaded.model.config.pad_id)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hidden = loaded.model.encode(ids, mask)
        assert torch.allclose(hidden[mask], expected[mask], rtol=0, atol=1e-5)


def test_ernie_with_task_ids_is_refused_by_key(tmp_path: Path) -> None:
    import transformers

    config = transformers.ErnieConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1)
    content = config.to_dict() | {"use_task_id": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with refusal(f"checkpoint {tmp_path / 'config.json'}", Code.UNSUPPORTED, "use_task_id=True"):
        read_hub_config(tmp_path)


# A family without biases


@pytest.fixture
def unbiased(monkeypatch: pytest.MonkeyPatch) -> Family:
    """BERT without biases."""
    record = dataclasses.replace(ARCHITECTURES[Family.BERT], biases=False)
    monkeypatch.setitem(ARCHITECTURES, Family.BERT, record)  # type: ignore[arg-type]
    return Family.BERT


def test_without_biases_only_the_decoder_has_one(unbiased: Family) -> None:
    names = [name for name, _ in _model(unbiased).named_parameters()]
    assert [name for name in names if name.endswith("bias")] == ["head.decoder_bias"]


def test_without_biases_a_checkpoint_is_written_and_read(unbiased: Family, tmp_path: Path) -> None:
    model = _model(unbiased)
    save_pretrained(model, word_tokenizer([f"w{n}" for n in range(55)]), tmp_path)
    file = load_file(str(tmp_path / "model.safetensors"))
    assert [name for name in file if name.endswith("bias")] == ["cls.predictions.bias"]
    loaded = load_model(str(tmp_path))
    assert set(loaded.report.loaded) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        assert torch.equal(loaded.model(_ids()), model(_ids()))


def test_without_biases_a_file_that_has_one_is_refused(unbiased: Family, tmp_path: Path) -> None:
    save_pretrained(_model(unbiased), word_tokenizer([f"w{n}" for n in range(55)]), tmp_path)
    weights, bias = tmp_path / "model.safetensors", "bert.encoder.layer.0.output.dense.bias"
    save_file(load_file(str(weights)) | {bias: torch.zeros(32)}, str(weights))
    with refusal(f"checkpoint {tmp_path}", Code.MISMATCH, bias):
        load_model(str(tmp_path))


def test_without_biases_a_missing_head_is_seen_and_made(unbiased: Family, tmp_path: Path) -> None:
    save_pretrained(_model(unbiased), word_tokenizer([f"w{n}" for n in range(55)]), tmp_path)
    weights = tmp_path / "model.safetensors"
    body = {n: t for n, t in load_file(str(weights)).items() if not n.startswith("cls.")}
    save_file(body, str(weights))
    with refusal(f"checkpoint {tmp_path}", Code.MISMATCH, "checkpoint_head=fresh"):
        load_model(str(tmp_path))
    fresh = load_model(str(tmp_path), fresh_head_seed=1).report.fresh
    assert fresh == ("head.decoder_bias", "head.dense.weight", "head.norm.weight")


def test_without_biases_gathered_rows_are_those_of_all_rows(unbiased: Family) -> None:
    model, positions = _model(unbiased), torch.tensor([0, 7, 20, 41])
    with torch.no_grad():
        dense = model(_ids()).flatten(0, 1)[positions]
        torch.testing.assert_close(model(_ids(), positions=positions), dense, rtol=0, atol=1e-5)


# A mask a layer


def test_each_layer_sees_by_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, itself = _model(Family.BERT), torch.eye(16, dtype=torch.bool)
    changed = _ids()
    changed[:, 0] = 59

    def reach(*masks: torch.Tensor | None) -> bool:
        """Whether a row's first token reaches the others through layers with these masks."""
        monkeypatch.setattr("mlmlab.model.encoder.visible_by_layer", lambda *_: list(masks))
        with torch.no_grad():
            return not torch.equal(model(_ids())[:, 1:], model(changed)[:, 1:])

    assert not reach(itself, itself)
    assert reach(itself, None)
    assert reach(None, itself)
