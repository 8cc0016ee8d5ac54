"""What makes a step on the CPU faster changes nothing but its noise and its rounding."""

import math

import pytest
import torch
import torch.nn.functional as F

from mlmlab.model import MaskedLanguageModel, token_losses
from mlmlab.model.attention import Group, SelfAttention
from mlmlab.model.dropout import Dropout
from mlmlab.model.families import Family
from mlmlab.runtime.config import Precision, RuntimeConfig
from mlmlab.runtime.devices import Compute, torch_settings
from mlmlab.runtime.distributed import ALONE
from mlmlab.training.parallel import Replica
from tests.test_training import _model

RATES = (0.1, 0.25, 0.9)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", RATES)
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 1_000_003  # no multiple of four
    found = Dropout(rate)(torch.ones(count, dtype=kind))
    kept = found != 0
    error = math.sqrt(rate * (1.0 - rate) / count)
    assert found.dtype is kind
    assert abs(kept.double().mean() - (1.0 - rate)) < 4 * error + 2**-17
    assert found[kept].double().mean() == pytest.approx(1 / (1.0 - rate), rel=4e-3)
    # Neither neighbours nor numbers a word of random bits apart know of each other.
    for distance in (1, 2, 3, 4, 1000):
        both = (kept[distance:] & kept[:-distance]).double().mean()
        assert abs(both - (1.0 - rate) ** 2) < 6 * error


def test_dropout_lets_the_gradient_through_where_it_let_the_number() -> None:
    x = torch.ones(5000, requires_grad=True)
    found = Dropout(0.3)(x)
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())


def test_dropout_is_a_function_of_the_seed_and_takes_no_part_in_an_evaluation() -> None:
    x, layer = torch.randn(3, 7, 5), Dropout(0.5)
    torch.manual_seed(1)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def _gradients(model: MaskedLanguageModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    positions = torch.arange(0, ids.numel(), 3)
    logits = model.train()(ids, positions=positions)
    token_losses(logits, ids.flatten()[positions]).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", [Family.ROBERTA, Family.MODERNBERT])
def test_the_tied_tables_gradient_is_that_of_both_its_ends(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = _model(family=family), torch.randint(5, 60, (3, 9))
    found = _gradients(model, ids)
    plain = lambda token, ids: (F.embedding(ids, token.weight), token.weight)  # noqa: E731
    monkeypatch.setattr("mlmlab.model.embeddings.rows_and_table", plain)
    expected = _gradients(model, ids)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_the_table_alone_has_the_gradient_of_its_rows() -> None:
    model, ids = _model(), torch.tensor([[7, 8, 7]])
    model.train().encode(ids).square().sum().backward()
    gradient = model.embeddings.token.weight.grad
    assert gradient is not None
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [7, 8]


def test_attention_with_dropout_is_that_without_it_but_for_the_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noise that drops nothing: the CPU's other path, with and without hidden tokens."""
    model, without = _model(dropout=0.1, seed=3), _model(seed=3)
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2]]).expand(3, 9)
    for given in ({}, {"attention_mask": mask}, {"documents": documents}):
        found, expected = model.train()(ids, **given), without.train()(ids, **given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_attention_has_the_fused_kernels_gradient_to_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(_model().config, 0).train()
    hidden = torch.randn(3 * 40, 32)
    mask = (torch.arange(40) < torch.tensor([[40], [7], [25]]))[:, None, None]  # [B, 1, 1, T]

    def gradients(visible: torch.Tensor | None, products: bool, kind: torch.dtype) -> torch.Tensor:
        monkeypatch.setattr("mlmlab.model.attention.keeps_weights", lambda *_, **__: products)
        x = hidden.to(kind, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            attention(x, [Group(3, 40, visible)], None).square().sum().backward()
        assert x.grad is not None
        return x.grad.float()

    for visible in (None, mask):
        true = gradients(visible, False, torch.float32)
        errors = [
            ((gradients(visible, products, torch.bfloat16) - true).norm() / true.norm()).item()
            for products in (True, False)
        ]
        assert errors[0] < 0.02
        assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlmlab.model.mlm_head._AT_A_TIME", 32 * 300)
    draw = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(70, 300, generator=draw)).to(kind)
    labels = torch.randint(0, 300, (70,), generator=draw)
    logits[range(10), labels[:10]] = 24.0  # almost certain: 1 - p is small
    labels[::7] = -100
    weights = torch.randn(70, generator=draw)
    results = []
    for function in (token_losses, lambda x, y: F.cross_entropy(x.float(), y, reduction="none")):
        leaf = logits.clone().requires_grad_()
        losses = function(leaf, labels)
        (losses * weights).sum().backward()
        assert leaf.grad is not None
        results.append((losses.detach(), leaf.grad))
    (losses, gradient), (expected, plain) = results
    assert losses.dtype is torch.float32
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        gradient, plain, rtol=1e-5 if kind is torch.float32 else 1e-2, atol=1e-7
    )


def test_the_loss_leaves_the_logits_to_others_and_to_a_second_backward_pass() -> None:
    logits = torch.randn(70, 9, requires_grad=True)
    labels = torch.arange(70) % 9
    loss = token_losses(logits, labels).sum() + logits.square().sum()
    loss.backward(retain_graph=True)
    assert logits.grad is not None
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once, rtol=0, atol=0)


def test_no_predictions_are_a_loss_of_zero_that_reaches_every_parameter() -> None:
    model = _model()
    ids, none = torch.randint(5, 60, (2, 9)), torch.zeros(0, dtype=torch.int64)
    token_losses(model.train()(ids, positions=none), none).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_norm_of_the_gradient_is_pytorchs() -> None:
    model = _model()
    replica = Replica(model, ALONE, Compute(torch.device("cpu"), Precision.FP32))
    _gradients(model, torch.randint(5, 60, (3, 9)))
    expected = torch.nn.utils.get_total_norm(list(replica.gradients().values()))
    torch.testing.assert_close(replica.norm(replica.gradients()), expected)


def test_freed_memory_is_kept_for_a_while_where_the_c_library_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Library:
        def __init__(self) -> None:
            self.calls: list[tuple[int, ...]] = []

        def mallopt(self, *given: int) -> None:
            self.calls.append(given)

        def malloc_trim(self, pad: int) -> None:
            self.calls.append((pad,))

    library = Library()
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    with torch_settings(RuntimeConfig()):
        assert library.calls == [(-4, 0), (-1, -1)]  # M_MMAP_MAX, M_TRIM_THRESHOLD
    assert library.calls[2:] == [(-4, 65536), (-1, 128 * 1024), (0,)]
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())  # musl, macOS
    with torch_settings(RuntimeConfig()):
        pass
