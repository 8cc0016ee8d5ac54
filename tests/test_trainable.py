"""What trains and what is frozen, and what is said about it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from refusals import refusal
from shares import SEEDS
from torch.utils.flop_counter import FlopCounterMode

import mlmlab
from mlmlab.checkpoints import load_model
from mlmlab.data.batch import MicroBatch
from mlmlab.data.loader import StepBatch
from mlmlab.errors import Code
from mlmlab.masking import MaskedBatch
from mlmlab.model import Family, MaskedLanguageModel, ModelConfig, token_losses
from mlmlab.model.families import ARCHITECTURES
from mlmlab.runs import terminal
from mlmlab.runs.setup import Inputs, set_up
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE
from mlmlab.training.config import TrainConfig
from mlmlab.training.memory import expected_memory_bytes
from mlmlab.training.optimizer import account, build_optimizers, freeze, parts, rate_factors
from mlmlab.training.parallel import Replica
from mlmlab.training.schedule import Horizon
from mlmlab.training.step import train_step

CPU = Compute(torch.device("cpu"), Precision.FP32)
LAYERS = 4
FAMILIES = pytest.mark.parametrize("family", [Family.BERT, Family.MODERNBERT])


def _model(dropout: float = 0.0, family: Family = Family.BERT) -> MaskedLanguageModel:
    config = ModelConfig(
        family=family,
        vocabulary_size=60,
        hidden_size=32,
        layers=LAYERS,
        heads=4,
        intermediate_size=64,
        max_positions=16,
        **ARCHITECTURES[family].checkpoint_defaults(),
        pad_id=0,
        initializer_range=0.02,
        dropout=dropout,
        attention_dropout=dropout,
    )
    model = MaskedLanguageModel(config)
    model.initialize(0)
    return model


def _config(*overrides: str) -> TrainConfig:
    return mlmlab.compose(*overrides).train


def _frozen(
    *policies: str, dropout: float = 0.0, family: Family = Family.BERT
) -> tuple[MaskedLanguageModel, TrainConfig]:
    config = dataclasses.replace(_config("train.weight_decay=0.5"), freeze=policies)
    model = _model(dropout, family)
    freeze(model, config)
    return model, config


def _batch(number: int = 0) -> StepBatch:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, 60, (8, 16), generator=generator)
    positions = torch.arange(3, 128, 9)
    labels = torch.randint(5, 60, positions.shape, generator=generator)
    offsets = torch.searchsorted(positions, torch.arange(0, 129, 16))
    micro = MicroBatch(MaskedBatch(ids, positions, labels, offsets))
    return StepBatch(number, 0, (micro,), len(labels), len(labels), ids.numel(), 0.1)


def _train(model: MaskedLanguageModel, config: TrainConfig, steps: int = 3) -> None:
    optimizers = build_optimizers(model, config)
    for number in range(steps):
        train_step(
            Replica(model, ALONE, CPU),
            optimizers,
            _batch(number),
            schedule_factor=1e-2 / config.learning_rate,
            max_grad_norm=1.0,
            seeds=SEEDS,
            suppressed=torch.zeros(()),
        )


def _loss(model: MaskedLanguageModel, batch: StepBatch) -> torch.Tensor:
    (micro,) = batch.micro_batches
    return token_losses(model(**micro.model_inputs()), micro.masked.labels).sum()


# Freezing

POLICIES = {
    (): (),
    ("embeddings",): ("embeddings.",),
    ("layers",): ("layers.",),
    ("layers.3",): ("layers.3.",),
    ("layers.1-2",): ("layers.1.", "layers.2."),
    ("layers.0-3",): ("layers.",),
    ("encoder",): ("embeddings.", "layers."),
    ("head",): ("head.",),
    ("embeddings", "layers.0-1", "layers.1"): ("embeddings.", "layers.0.", "layers.1."),
    ("layers.*.attention.*",): tuple(f"layers.{number}.attention." for number in range(LAYERS)),
    ("layers.[01].attention",): ("layers.0.attention.", "layers.1.attention."),
    ("embeddings.token", "head.dense.weight"): ("embeddings.token.", "head.dense.weight"),
    ("layers.0.*.weight", "embeddings.norm"): (
        "layers.0.attention.qkv.weight", "layers.0.attention.output.weight",
        "layers.0.attention_norm.weight", "layers.0.feed_forward.up.weight",
        "layers.0.feed_forward.down.weight", "layers.0.feed_forward_norm.weight",
        "embeddings.norm.",
    ),
}  # fmt: skip
"""What is frozen, and how the names of its parameters begin."""


@FAMILIES
@pytest.mark.parametrize(("policies", "frozen"), POLICIES.items(), ids=map("+".join, POLICIES))
def test_frozen_weights_keep_their_bits_and_all_others_move(
    policies: tuple[str, ...], frozen: tuple[str, ...], family: Family
) -> None:
    model, config = _frozen(*policies, dropout=0.1, family=family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _train(model, config)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(frozen), name
        assert (parameter.grad is None) == name.startswith(frozen), name


def test_all_biases_can_be_frozen_by_one_pattern() -> None:
    model, _ = _frozen("*.bias")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.endswith(".bias"), name


def test_the_optimizer_holds_what_trains_and_nothing_else() -> None:
    model, config = _frozen("embeddings", "layers.0-1")
    (optimizer,) = build_optimizers(model, config)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = [
        id(p) for n, p in model.named_parameters() if n.startswith(("layers.2", "layers.3", "head"))
    ]
    assert sorted(held) == sorted(trained)


def test_freezing_again_frees_what_was_frozen_before() -> None:
    model, config = _frozen("encoder")
    freeze(model, dataclasses.replace(config, freeze=("head",)))
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("head")
    }


@FAMILIES
def test_the_lowest_frozen_layers_cost_no_backward(family: Family) -> None:
    def flops(model: MaskedLanguageModel) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:
            loss = _loss(model, _batch())
        with FlopCounterMode(display=False) as backward:
            loss.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    forward, whole = flops(_model(family=family))
    head_alone = flops(_frozen("encoder", family=family)[0])
    (micro,) = _batch().micro_batches
    dense, decoder = 2 * micro.masked_count * 32 * 32, 2 * micro.masked_count * 32 * 60
    assert whole == 2 * forward
    # The dense layer's own gradient, and the decoder's towards it: nothing else.
    assert head_alone == (forward, dense + decoder)


@pytest.mark.parametrize(
    ("policies", "found"),
    [
        (("layers.4",), "layers.4: "),
        (("layers.2-5",), "layers.4, layers.5: "),
        (("layers.3", "layers.2-999999999"), "layers.2-999999999: "),
        (("embeddings", "layers.*.atention.*"), "layers.*.atention.*: "),
        (("", "layer"), ", layer: "),
        (("*",), "*: "),
        (("encoder", "head"), "encoder, head: "),
        (("embeddings", "layers.0-1", "layers.2-3", "head"), "layers.0-1, layers.2-3, head: "),
    ],
)
def test_entries_that_match_nothing_and_nothing_to_train_are_refused(
    policies: tuple[str, ...], found: str
) -> None:
    with refusal("train.freeze", Code.INVALID, found, "train.freeze="):
        _frozen(*policies)


# Gradient checkpointing


def _gradients(
    model: MaskedLanguageModel, precision: Precision = Precision.FP32
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train().zero_grad()
    torch.manual_seed(5)
    with Compute(torch.device("cpu"), precision).autocast():
        loss = _loss(model, _batch())
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@FAMILIES
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("policies", [(), ("embeddings", "layers.0")])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_layers_computed_again_give_the_bits_of_layers_that_were_kept(
    dropout: float, policies: tuple[str, ...], family: Family, precision: Precision
) -> None:
    model, _ = _frozen(*policies, dropout=dropout, family=family)
    loss, kept = _gradients(model, precision)
    model.gradient_checkpointing = True
    again, recomputed = _gradients(model, precision)
    assert torch.equal(again, loss)
    assert recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        assert torch.equal(recomputed[name], gradient), name


def test_layers_are_computed_again_once_in_backward_and_frozen_lowest_layers_are_not() -> None:
    calls: list[int] = []

    def count(model: MaskedLanguageModel) -> list[int]:
        model.gradient_checkpointing = True
        for number, layer in enumerate(model.layers):
            layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
        calls.clear()
        _gradients(model)
        return calls

    assert count(_model()) == [0, 1, 2, 3, 3, 2, 1, 0]
    assert count(_frozen("embeddings", "layers.0-1")[0]) == [0, 1, 2, 3, 3, 2]


def test_a_scoring_pass_does_not_prepare_for_a_backward() -> None:
    model = _model().eval()
    model.gradient_checkpointing = True
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlmlab.model.encoder.checkpoint", None)  # a call would fail
        assert torch.isfinite(_loss(model, _batch()))


SHORT = (
    "data.limit=60", "data.block_size=32", "model.hidden_size=32", "model.intermediate_size=64",
    "model.layers=3", "train.batch_size=8", "train.max_steps=4", "runtime.threads=1",
)  # fmt: skip


def test_a_run_exports_the_frozen_weights_that_it_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = mlmlab.compose(*SHORT, "train.freeze=[embeddings,layers.0]", "run_dir=run")
    mlmlab.run(config, quiet=True)
    begun = set_up(config).model
    ended = load_model("run/export").model
    for (name, old), new in zip(begun.named_parameters(), ended.parameters(), strict=True):
        assert torch.equal(old, new) == name.startswith(("embeddings", "layers.0")), name


# Layer-wise rates


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_one_rate_for_all_means_the_two_groups_of_adamw(weight_decay: float) -> None:
    model = _model()
    config = _config(f"train.weight_decay={weight_decay}")
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    (optimizer,) = build_optimizers(model, config)
    held = {group["role"]: [id(p) for p in group["params"]] for group in optimizer.param_groups}
    assert sorted(held["embedding"] + held["matrix"]) == sorted(map(id, matrices))
    assert held["vector"] == [id(p) for p in vectors]
    decays = {group["role"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"matrix": weight_decay, "embedding": weight_decay, "vector": 0.0}
    assert {group["rate_factor"] for group in optimizer.param_groups} == {1.0}


def test_rates_fall_from_the_head_to_the_embeddings_as_in_beit() -> None:
    assert rate_factors(_model(), 0.5) == {
        "head": 1.0,
        "layers.3": 0.5,
        "layers.2": 0.25,
        "layers.1": 0.125,
        "layers.0": 0.0625,
        "embeddings": 0.03125,
    }
    assert set(rate_factors(_model(), 1.0).values()) == {1.0}


@FAMILIES
def test_every_part_moves_at_its_own_rate(family: Family) -> None:
    # AdamW's first step moves each weight by the rate, whatever its gradient's size.
    model = _model(family=family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = dataclasses.replace(_config(), layer_decay=0.5, weight_decay=0.0)
    _train(model, config, steps=1)
    for part, factor in rate_factors(model, 0.5).items():
        for name, parameter in parts(model)[part].named_parameters(prefix=part):
            moved = (parameter.detach() - before[name]).abs().max().item()
            assert moved == pytest.approx(1e-2 * factor, rel=0.02), name


@FAMILIES
def test_biases_and_norms_are_not_decayed_at_any_rate(family: Family) -> None:
    model = _model(family=family)
    config = dataclasses.replace(_config(), layer_decay=0.5, weight_decay=0.1)
    (optimizer,) = build_optimizers(model, config)
    for group in optimizer.param_groups:
        is_matrix = {p.ndim >= 2 for p in group["params"]}
        assert is_matrix == {group["weight_decay"] == 0.1}
    assert len(optimizer.param_groups) == 2 * len(parts(model))


def test_the_logged_rate_is_the_one_before_layer_decay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rates = []
    for decay in (1.0, 0.5):
        overrides = (
            f"train.layer_decay={decay}",
            f"run_dir=decay{decay}",
            "train.log_every_steps=1",
        )
        mlmlab.run(mlmlab.compose(*SHORT, *overrides), quiet=True)
        events = map(json.loads, Path(f"decay{decay}/metrics.jsonl").read_text().splitlines())
        rates.append([e["train/learning_rate"] for e in events if "train/learning_rate" in e])
    assert rates[0] == rates[1]
    assert rates[0] == [pytest.approx(2e-3 * step / 100) for step in (1, 2, 3, 4)]


# What is said about it


def _plan(tmp_path: Path, *overrides: str) -> tuple[str, Inputs]:
    config = mlmlab.compose(*SHORT, *overrides)
    inputs = set_up(config)
    return terminal.plan(config, inputs, CPU, ALONE, Horizon(4, None), Path("runs/x")), inputs


def test_the_table_has_every_parameter_once() -> None:
    for policies in POLICIES:
        model, _ = _frozen(*policies)
        rows = account(model, 1.0)
        assert sum(row.parameters for row in rows) == model.parameter_count()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(row.trained for row in rows) == trained


def test_neighbouring_layers_that_are_alike_share_a_row() -> None:
    assert [row.name for row in account(_frozen("layers.1-2")[0], 1.0)] == [
        "embeddings", "layers.0", "layers.1-2", "layers.3", "head",
    ]  # fmt: skip
    assert [row.name for row in account(_frozen()[0], 1.0)] == ["embeddings", "layers.0-3", "head"]
    assert [row.name for row in account(_frozen("layers.1-2")[0], 0.9)] == [
        "embeddings", "layers.0", "layers.1-2", "layers.3", "head",
    ]  # fmt: skip
    assert [row.name for row in account(_model(), 0.9)] == list(parts(_model()))


def test_the_plan_of_a_run_in_which_all_trains_alike_has_no_table(tmp_path: Path) -> None:
    assert "trained" not in _plan(tmp_path)[0]


def test_the_plan_shows_the_rate_of_every_layer(tmp_path: Path) -> None:
    text, inputs = _plan(tmp_path, "train.layer_decay=0.9")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 79
    rates = {"embeddings": "0.656", "layers.0": "0.729", "layers.1": "0.81", "layers.2": "0.9"}
    for name, rate in {**rates, "head": "1"}.items():
        count = f"{sum(p.numel() for p in parts(inputs.model)[name].parameters()):,}"
        row = [name, count, "learning", "rate", "x", rate]
        assert any(line.split()[-6:] == row for line in lines), name
    assert "the token table, which trains" in " ".join(text.split())


@pytest.mark.parametrize(
    ("frozen", "said"),
    [
        ("embeddings", "which is frozen: of the decoder, only decoder_bias trains"),
        ("embeddings,head", "which is frozen: of the decoder, nothing trains"),
        ("head", "the token table, which trains"),
    ],
)
def test_the_plan_says_what_freezing_means_for_the_tied_decoder(
    tmp_path: Path, frozen: str, said: str
) -> None:
    text, inputs = _plan(tmp_path, f"train.freeze=[{frozen},layers.1]")
    assert max(map(len, text.splitlines())) <= 79
    lines = text.splitlines()
    for name, part in parts(inputs.model).items():
        is_frozen = name in (*frozen.split(","), "layers.1")
        state = "frozen" if is_frozen else "learning rate x 1"
        row = f"{name:<14} {sum(p.numel() for p in part.parameters()):>13,}  {state}"
        assert any(line.endswith(row) for line in lines), name
    trained = sum(p.numel() for p in inputs.model.parameters() if p.requires_grad)
    words = " ".join(text.split())
    assert f"{trained:,} of {inputs.model.parameter_count():,} parameters train" in words
    assert said in words


def test_the_plan_counts_what_trains_of_a_part_that_is_partly_frozen(tmp_path: Path) -> None:
    text, inputs = _plan(tmp_path, "train.freeze=['layers.[12].attention',embeddings.token]")
    parameters = dict(inputs.model.named_parameters())
    assert max(map(len, text.splitlines())) <= 79
    for name, pattern in {
        "embeddings": r"embeddings\.(?!token\.)",
        "layers.1-2": r"layers\.[12]\.(?!attention\.)",
    }.items():
        trained = sum(p.numel() for n, p in parameters.items() if re.match(pattern, n))
        assert re.search(rf"{name} +[\d,]+  learning rate x 1 for {trained:,}\n", text), name
    assert re.search(r"layers.0 +[\d,]+  learning rate x 1\n", text)
    assert "which is frozen: of the decoder, only decoder_bias trains" in " ".join(text.split())


# Memory


def _kept_bytes(model: MaskedLanguageModel, batch: StepBatch) -> int:
    """What the forward pass keeps for backward, beside the weights."""
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(model.train(), batch)
    return sum(kept.values())


def _expected_bytes(model: MaskedLanguageModel, batch: StepBatch) -> int:
    (micro,) = batch.micro_batches
    rows, length = micro.masked.input_ids.shape
    return expected_memory_bytes(
        model, CPU, examples=rows, length=length, masked_tokens=micro.masked_count,
        accumulates=True,
    )  # fmt: skip


def test_frozen_parts_are_counted_with_their_weights_alone() -> None:
    whole = _model()
    lower, _ = _frozen("embeddings", "layers.0-1")
    frozen = sum(p.numel() for p in lower.parameters() if not p.requires_grad)
    saved = _expected_bytes(whole, _batch()) - _expected_bytes(lower, _batch()) - 12 * frozen
    measured = _kept_bytes(whole, _batch()) - _kept_bytes(lower, _batch())
    assert 0.6 < saved / measured < 1.4
    upper, _ = _frozen("layers.2-3")  # backward passes through them
    frozen = sum(p.numel() for p in upper.parameters() if not p.requires_grad)
    assert _expected_bytes(whole, _batch()) - _expected_bytes(upper, _batch()) == 12 * frozen


def test_a_run_computes_layers_again_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    losses = []
    for value in ("false", "true"):
        config = mlmlab.compose(*SHORT, f"train.gradient_checkpointing={value}")
        assert set_up(config).model.gradient_checkpointing == (value == "true")
        losses.append(mlmlab.run(config, quiet=True).summary.eval_loss)
    assert losses[0] == losses[1]
