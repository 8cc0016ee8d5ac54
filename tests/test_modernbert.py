"""ModernBERT's layout: its windows, its rotation, its config.json, and the life of its runs."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.hub_models import VOCABULARY, Reference, write_reference
from refusals import refusal
from stand_ins import reviews, write_checkpoint
from stopping import as_killed, results

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.checkpoints.hub_config import hub_config, read_hub_config
from mlmlab.errors import Code
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig
from mlmlab.model.attention import Group, rotate, visible_by_layer
from mlmlab.model.families import ARCHITECTURES

IDS = {
    **dict.fromkeys(("cls_token_id", "bos_token_id"), 1),
    **dict.fromkeys(("sep_token_id", "eos_token_id"), 2),
    "pad_token_id": 0,
}


def _config(**changes: Any) -> ModelConfig:
    config = ModelConfig(
        family=Family.MODERNBERT,
        vocabulary_size=60,
        hidden_size=32,
        layers=4,
        heads=4,
        intermediate_size=48,
        max_positions=64,
        **ARCHITECTURES[Family.MODERNBERT].checkpoint_defaults(),
        pad_id=0,
        dropout=0.1,
        attention_dropout=0.2,
        initializer_range=0.3,  # wide, so that tokens do influence each other
    )
    return dataclasses.replace(config, **changes)


def _model(**changes: Any) -> MaskedLanguageModel:
    model = MaskedLanguageModel(_config(**changes))
    model.initialize(0)
    return model.eval()


# Windows and rotation


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small model with the published window of 128 tokens, 64 to either side."""
    import transformers

    config = transformers.ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=5, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=512, **IDS,
    )  # fmt: skip
    return write_reference("modernbert", tmp_path_factory.mktemp("published"), config)


@pytest.mark.parametrize("length", [1, 40, 64, 65, 66, 128, 129, 300])
def test_logits_are_those_of_transformers_below_at_and_beyond_the_window(
    published: Reference, length: int
) -> None:
    ours = load_model(str(published.folder)).model
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(5, VOCABULARY, (3, length), generator=generator)
    real = torch.tensor([[length], [length * 5 // 6 + 1], [length // 4 + 1]])
    mask = torch.arange(length) < real
    with torch.no_grad():
        expected = published.model(input_ids=ids).logits
        assert torch.allclose(ours(ids), expected, rtol=0, atol=1e-5)
        expected = published.model(input_ids=ids, attention_mask=mask.long()).logits
        padded = ours(ids, mask)
    assert torch.allclose(padded[mask], expected[mask], rtol=0, atol=1e-5)
    assert padded.isfinite().all()  # of padding that is far from any real token, too


def test_a_local_layer_sees_half_a_window_to_either_side() -> None:
    model = _model(layers=2, local_attention=6)  # a global layer and a local one
    changed = torch.randint(5, 60, (1, 20), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    other = hidden.clone()
    other[10] = 0.0
    everything, near = (
        [Group(1, 20, visible)] for visible in visible_by_layer(model.config, changed, None, None)
    )
    with torch.no_grad():
        reached = (model.layers[1](hidden, near) != model.layers[1](other, near)).any(-1)
        assert reached.nonzero().flatten().tolist() == [*range(7, 14)]
        assert (
            (model.layers[0](hidden, everything) != model.layers[0](other, everything))
            .any(-1)
            .all()
        )


def test_isolated_documents_and_padding_are_narrowed_by_the_window() -> None:
    config = _config(layers=2, local_attention=4)
    ids = torch.zeros(1, 9, dtype=torch.int64)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    _, near = visible_by_layer(config, ids, None, documents)
    assert near is not None
    assert near[0, 0, 3].nonzero().flatten().tolist() == [1, 2, 3]
    assert near[0, 0, 4].nonzero().flatten().tolist() == [4, 5, 6]
    _, near = visible_by_layer(config, ids, torch.arange(9)[None] < 4, None)
    assert near is not None
    assert near[0, 0, 3].nonzero().flatten().tolist() == [1, 2, 3]
    assert near[0, 0, 8].nonzero().flatten().tolist() == [8]  # padding sees itself


def test_a_product_of_rotated_vectors_depends_on_their_distance_alone() -> None:
    q, k = torch.randn(
        2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    rotated_q, rotated_k = rotate(q.expand(1, 1, 40, 16), k.expand(1, 1, 40, 16), 10_000.0)
    scores = (rotated_q.double() @ rotated_k.double().transpose(-1, -2))[0, 0]  # [T, T]
    for distance in (-7, 0, 1, 30):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), rtol=0, atol=1e-4)
    assert scores[0].std() > 0.1


def test_the_last_projections_of_sublayers_start_smaller() -> None:
    weights = _model(layers=8, hidden_size=64, initializer_range=0.02).state_dict()
    for name, weight in weights.items():
        if weight.ndim == 2:
            is_last = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            expected = 0.02 * 0.88 / (4 if is_last else 1)  # sqrt(2 * 8); 0.88: the cut tails
            assert weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_dropout_falls_where_it_does_in_transformers(
    published: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With PyTorch's own noise, which a compiled model has, the same numbers are dropped.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    theirs, ours = published.model, load_model(str(published.folder), dropout=0.2).model
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
        if hasattr(module, "out_drop"):
            module.attention_dropout, module.out_drop = 0.2, torch.nn.Dropout(0.2)
    ids = torch.randint(5, VOCABULARY, (3, 90), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            torch.manual_seed(3)
            expected = theirs.train()(input_ids=ids).logits
            torch.manual_seed(3)
            assert torch.allclose(ours.train()(ids), expected, rtol=0, atol=1e-5)
            assert not torch.allclose(ours.eval()(ids), expected, rtol=0, atol=1e-2)
    finally:
        theirs.eval()


# config.json, in the spellings of both generations of transformers


def _written(folder: Path, **changes: Any) -> Path:
    """Our config.json with other values; None removes a key."""
    content = {**hub_config(_config()), **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


TYPES = ["full_attention", "sliding_attention"]


def _rotations(global_theta: float, local_theta: float, **changes: Any) -> dict[str, Any]:
    thetas = zip(TYPES, (global_theta, local_theta), strict=True)
    return {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} | changes for kind, theta in thetas
        }
    }


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({}, {}),
        ({"local_rope_theta": 160000}, {"local_rope_theta": 160000}),  # mmBERT, Ettin
        ({"position_embedding_type": "sans_pos"}, {}),  # theirs, too; no one reads it
        ({"global_attn_every_n_layers": 2}, {"global_every_n_layers": 2}),
        ({"local_attention": 256}, {"local_attention": 256}),
        ({"layer_types": TYPES * 2}, {"global_every_n_layers": 2}),
        ({"layer_types": [TYPES[0]] * 4}, {"global_every_n_layers": 1}),
        ({"layer_types": [TYPES[0]] + 3 * [TYPES[1]]}, {"global_every_n_layers": 4}),
        (_rotations(5e5, 7.0), {"global_rope_theta": 5e5, "local_rope_theta": 7.0}),
        ({"global_rope_theta": None, "local_rope_theta": None}, {}),
        ({"mlp_dropout": 0.0, "embedding_dropout": 0.0}, {"dropout": 0.0}),
    ],
)
def test_both_spellings_of_config_json_are_read(
    changes: dict[str, Any], read: dict[str, Any], tmp_path: Path
) -> None:
    config = read_hub_config(_written(tmp_path, **changes))
    assert config == dataclasses.replace(_config(), **read)
    (tmp_path / "config.json").write_text(json.dumps(hub_config(config)))
    assert read_hub_config(tmp_path) == config


def test_without_a_base_of_their_own_local_layers_rotate_as_global_ones(tmp_path: Path) -> None:
    content = {**hub_config(_config()), "local_rope_theta": None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert read_hub_config(tmp_path).local_rope_theta == 160_000.0


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": [TYPES[1]] * 4},
        {"layer_types": [TYPES[0], TYPES[0], TYPES[1], TYPES[0]]},
        {"layer_types": TYPES},  # of fewer layers than the model has
        {"layer_types": "full_attention"},
        {"layer_types": [["full_attention"]] * 4},
        _rotations(1e4, 1e4, rope_type="yarn"),
        {"rope_parameters": {"full_attention": 1}},
        {"rope_parameters": [1]},
        {"rope_scaling": {"factor": 2.0}},
        {"embedding_dropout": 0.3},
        {"norm_bias": True},
        {"decoder_bias": False},
        {"classifier_activation": "relu"},
    ],
)
def test_what_the_encoder_does_not_implement_is_refused_by_its_key(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with refusal(f"checkpoint {tmp_path}/config.json", Code.UNSUPPORTED, *changes):
        read_hub_config(_written(tmp_path, **changes))


def test_heads_that_cannot_be_rotated_by_pairs_are_refused(tmp_path: Path) -> None:
    with refusal(f"checkpoint {tmp_path}/config.json", Code.CORRUPT, "4 heads", "even width"):
        read_hub_config(_written(tmp_path, hidden_size=20))


def test_transformers_reads_our_config_with_every_value(tmp_path: Path) -> None:
    import transformers

    config = _config(global_every_n_layers=2, local_attention=16, local_rope_theta=160_000.0)
    (tmp_path / "config.json").write_text(json.dumps(hub_config(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.layer_types == TYPES * 2
    assert theirs.sliding_window == 8
    thetas = [theirs.rope_parameters[kind]["rope_theta"] for kind in TYPES]
    assert thetas == [160_000.0, 160_000.0]
    assert (theirs.embedding_dropout, theirs.mlp_dropout, theirs.attention_dropout) == (
        0.1,
        0.1,
        0.2,
    )
    theirs.save_pretrained(tmp_path)
    assert read_hub_config(tmp_path) == config


# Runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint as transformers writes it, and a text."""
    folder = tmp_path_factory.mktemp("place")
    write_checkpoint("modernbert", folder / "modernbert")
    rows = (json.dumps({"text": text}) for text in reviews("train", 60))
    (folder / "reviews.jsonl").write_text("\n".join(rows))
    return folder


SMALL = (
    "data.block_size=64", "train.batch_size=4", "train.max_steps=12", "train.save_every_steps=3",
    "train.keep_checkpoints=10", "train.log_every_steps=1", "eval.every_steps=6",
    "runtime.device=cpu", "runtime.precision=fp32", "runtime.threads=1", "model.dropout=0.1",
)  # fmt: skip
RUNS = {
    "fine-tuned": (
        "+experiment=finetune", "checkpoint=../modernbert", "data.path=../reviews.jsonl", *SMALL,
        "train.freeze=[embeddings,layers.0]", "train.layer_decay=0.9",
        "train.learning_rate=1e-3", "train.gradient_checkpointing=true",
    ),
    "from scratch, of isolated documents": (
        "model=modernbert_base", "model.hidden_size=32", "model.layers=4", "model.heads=2",
        "model.intermediate_size=48", "data.limit=400", "data.isolate_documents=true", *SMALL,
        "train.learning_rate=1e-2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_resumes_to_the_same_bits_and_opens_in_transformers(
    name: str, place: Path
) -> None:
    import transformers

    folder = place / name.partition(" ")[0]
    folder.mkdir()
    with contextlib.chdir(folder):
        config = mlmlab.compose(*RUNS[name], "run_dir=run")
        summary = mlmlab.run(config, quiet=True).summary
        assert summary.initial_eval_perplexity is not None
        assert summary.eval_perplexity < 0.95 * summary.initial_eval_perplexity
        as_killed(Path("run"), Path("killed"), checkpoints=[3, 6])
        mlmlab.run(mlmlab.compose("resume=killed"), quiet=True)
        assert results(Path("killed")) == results(Path("run"))

        theirs, report = transformers.AutoModelForMaskedLM.from_pretrained(
            "run/export", output_loading_info=True
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        ours, tokenizer = mlmlab.load_pretrained("run/export", quiet=True)
        ids = torch.arange(5, 55)[None]
        with torch.no_grad():
            assert torch.allclose(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)
        assert len(mlmlab.FillMask(ours, tokenizer)(f"the {tokenizer.mask_token}", top_k=3)) == 3

    begun = load_model(str(place / "modernbert")).model if config.checkpoint else None
    for part, parameter in ours.named_parameters():
        if begun is not None:
            is_frozen = part.startswith(("embeddings.", "layers.0."))
            assert torch.equal(parameter, begun.get_parameter(part)) == is_frozen, part
