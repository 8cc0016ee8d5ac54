"""The encoder, its loss, its gradients and its training are those of transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.hub_models import FAMILIES, VOCABULARY, Reference, padded_batch, write_reference
from shares import SEEDS

from mlmlab.checkpoints import load_model
from mlmlab.checkpoints.key_maps import hub_names
from mlmlab.checkpoints.save import hub_tensors
from mlmlab.data.batch import MicroBatch
from mlmlab.data.loader import StepBatch
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.masking import MaskedBatch, MaskingConfig, VocabularyInfo, mask_batch
from mlmlab.model import MaskedLanguageModel, token_losses
from mlmlab.runtime.config import Precision
from mlmlab.runtime.devices import Compute
from mlmlab.runtime.distributed import ALONE
from mlmlab.training.config import TrainConfig
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.schedule import learning_rate_factor, linear
from mlmlab.training.step import train_step

VOCABULARY_INFO = VocabularyInfo(VOCABULARY, 4, (0, 1, 2, 3, 4))


@pytest.fixture(scope="module", params=FAMILIES)
def reference(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    return write_reference(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def ours(reference: Reference) -> MaskedLanguageModel:
    return load_model(str(reference.folder)).model


def _masked(seed: int = 0) -> MicroBatch:
    ids = torch.randint(5, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(seed))
    batch = mask_batch(
        ids,
        example_ids=torch.arange(6),
        epoch=seed,
        seed=0,
        config=MaskingConfig(rate=0.3),
        vocabulary=VOCABULARY_INFO,
    )
    return MicroBatch(batch)


def _dense_labels(micro: MicroBatch) -> torch.Tensor:
    """The labels as transformers takes them: -100 wherever nothing is predicted."""
    dense = torch.full((micro.masked.input_ids.numel(),), -100)
    dense[micro.masked.positions] = micro.masked.labels
    return dense.view_as(micro.masked.input_ids)


def test_logits_are_those_of_transformers(reference: Reference, ours: MaskedLanguageModel) -> None:
    ids = _masked().masked.input_ids
    with torch.no_grad():
        expected = reference.model(input_ids=ids).logits
        assert torch.allclose(ours(ids), expected, rtol=0, atol=1e-5)


def test_logits_are_those_of_transformers_with_padding(
    reference: Reference, ours: MaskedLanguageModel
) -> None:
    ids, mask = padded_batch(ours.config.pad_id)
    with torch.no_grad():
        expected = reference.model(input_ids=ids, attention_mask=mask.long()).logits
        assert torch.allclose(ours(ids, mask)[mask], expected[mask], rtol=0, atol=1e-5)


def test_a_real_token_that_looks_like_padding_does_not_shift_the_row(
    ours: MaskedLanguageModel,
) -> None:
    # transformers' RoBERTa reads padding off the ids; here a random replacement may be the pad id.
    ids = torch.full((1, 10), 50)
    ids[0, 3] = ours.config.pad_id
    mask = torch.ones(1, 10, dtype=torch.bool)
    with torch.no_grad():
        assert torch.allclose(ours(ids, mask), ours(ids), rtol=0, atol=1e-6)


def test_padding_does_not_change_the_other_tokens(ours: MaskedLanguageModel) -> None:
    ids, mask = padded_batch(ours.config.pad_id)
    with torch.no_grad():
        padded = ours(ids, mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = ours(ids[row : row + 1, :length])[0]
            assert torch.allclose(padded[row, :length], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [False, True])
def test_gathered_positions_give_the_rows_of_the_dense_logits(
    ours: MaskedLanguageModel, padding: bool
) -> None:
    ids, mask = padded_batch(ours.config.pad_id)
    attention_mask = mask if padding else None
    positions = torch.tensor([0, 3, 4, 25, 50, 73])
    with torch.no_grad():
        dense = ours(ids, attention_mask).flatten(0, 1)
        gathered = ours(ids, attention_mask, positions=positions)
    assert torch.allclose(gathered, dense[positions], rtol=0, atol=1e-5)


def _loss_and_gradients(
    model: MaskedLanguageModel, micro: MicroBatch
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss, and the gradients under the Hub's names."""
    model.zero_grad()
    logits = model(micro.masked.input_ids, positions=micro.masked.positions)
    loss = token_losses(logits, micro.masked.labels).sum() / micro.masked_count
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    named = {}
    for name, theirs in hub_names(model).items():
        gradient = gradients[name]
        assert gradient is not None
        named |= dict(zip(theirs, gradient.chunk(len(theirs)), strict=True))
    return loss.item(), named


def test_loss_and_gradients_are_those_of_transformers(
    reference: Reference, ours: MaskedLanguageModel
) -> None:
    micro = _masked()
    loss, gradients = _loss_and_gradients(ours, micro)
    reference.model.zero_grad()
    output = reference.model(input_ids=micro.masked.input_ids, labels=_dense_labels(micro))
    output.loss.backward()
    expected = _gradients(reference.model, set(gradients))
    assert loss == pytest.approx(output.loss.item(), rel=1e-6)
    _assert_gradients_match(gradients, expected)


def _gradients(model: Any, names: set[str]) -> dict[str, torch.Tensor]:
    """The gradients under these names, which must cover every parameter (tied ones under one)."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert {id(parameters[name]) for name in names} == {id(p) for p in model.parameters()}
    return {name: parameters[name].grad for name in names}


def _assert_gradients_match(
    ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    assert set(ours) == set(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).double().norm()
    differences = {n: (ours[n].double() - expected[n].double()).norm() for n in expected}
    whole = torch.stack(list(differences.values())).norm()
    assert whole <= 1e-6 * norm
    for name, difference in differences.items():
        # A key's bias has a zero true gradient: what is computed there is rounding noise.
        assert difference <= 1e-5 * expected[name].double().norm() + 1e-7 * norm, name


def test_no_masked_token_gives_a_zero_loss_that_reaches_every_parameter(
    ours: MaskedLanguageModel,
) -> None:
    ids, empty = torch.full((2, 8), 9), torch.empty(0, dtype=torch.int64)
    token_losses(ours(ids, positions=empty), empty).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


TRAIN = TrainConfig(
    epochs=1, max_steps=20, batch_size=6, learning_rate=1e-3, save_every_minutes=None,
    keep_checkpoints=0, log_every_steps=1,
)  # fmt: skip


def _trainer_losses(model: Any, batches: list[MicroBatch]) -> Iterator[float]:
    """What transformers' Trainer does in 20 steps, without its machinery."""
    from transformers import get_linear_schedule_with_warmup

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    for micro in batches:
        loss = model(input_ids=micro.masked.input_ids, labels=_dense_labels(micro)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield loss.item()


def test_twenty_adamw_steps_follow_transformers(
    reference: Reference,
) -> None:
    import transformers

    batches = [_masked(seed) for seed in range(20)]
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(reference.folder).eval()
    expected = list(_trainer_losses(theirs, batches))

    # No dropout in the trajectory: transformers' is off in evaluation mode.
    ours = load_model(str(reference.folder), dropout=0.0).model
    optimizers = build_optimizers(ours, TRAIN)
    compute = Compute(torch.device("cpu"), Precision.FP32)
    for number, (micro, loss) in enumerate(zip(batches, expected, strict=True)):
        step = StepBatch(
            number,
            0,
            (micro,),
            micro.masked_count,
            micro.masked_count,
            micro.masked.input_ids.numel(),
            0.15,
        )
        result = train_step(
            Replica(ours, ALONE, compute),
            optimizers,
            step,
            schedule_factor=learning_rate_factor(number, 20, 0, linear),
            max_grad_norm=1.0,
            seeds=SEEDS,
            suppressed=torch.zeros(()),
        )
        assert result.loss_sum.item() / micro.masked_count == pytest.approx(loss, abs=1e-4)
    untrained = _loss_and_gradients(load_model(str(reference.folder)).model, batches[-1])[0]
    assert abs(untrained - expected[-1]) > 1e-3  # the trajectory went somewhere


def test_the_export_opens_in_transformers_with_nothing_missing(
    reference: Reference, ours: MaskedLanguageModel, tmp_path: Path
) -> None:
    import transformers

    from mlmlab.checkpoints import save_pretrained

    tokenizer = word_tokenizer([f"w{n}" for n in range(VOCABULARY - 5)])
    save_pretrained(ours, tokenizer, tmp_path)
    opened, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = _masked().masked.input_ids
    with torch.no_grad():
        expected = reference.model(input_ids=ids).logits
        assert torch.equal(opened.eval()(input_ids=ids).logits, expected)
    for name, tensor in hub_tensors(ours).items():
        assert torch.equal(tensor, reference.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("family", "length"),
    [("distilroberta", 64), pytest.param("modernbert-base", 200, marks=pytest.mark.slow)],
)
def test_a_full_size_model_matches_transformers(family: str, length: int, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    if family == "distilroberta":
        config = transformers.RobertaConfig(
            vocab_size=50265,
            num_hidden_layers=6,
            max_position_embeddings=514,
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        )
    else:
        config = transformers.ModernBertConfig()  # 149 M parameters, as published
    theirs = transformers.AutoModelForMaskedLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(tmp_path)).model
    assert ours.parameter_count() == sum(p.numel() for p in theirs.parameters()) > 82e6
    ids = torch.randint(5, 50264, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 40:] = False
    ids[1, 40:] = config.pad_token_id
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).logits
        assert torch.allclose(ours(ids, mask)[mask], expected[mask], rtol=0, atol=1e-5)

    positions = torch.arange(3, length, 7)
    labels = torch.full((length,), -100)
    labels[positions] = ids[0, positions]
    micro = MicroBatch(
        MaskedBatch(ids[:1], positions, ids[0, positions], torch.tensor([0, len(positions)]))
    )
    loss, gradients = _loss_and_gradients(ours, micro)
    output = theirs(input_ids=ids[:1], labels=labels[None])
    output.loss.backward()
    assert loss == pytest.approx(output.loss.item(), rel=1e-6)
    _assert_gradients_match(gradients, _gradients(theirs, set(gradients)))
