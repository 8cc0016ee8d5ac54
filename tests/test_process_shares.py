"""What the processes of a run share out: rows, micro-batches, sums, and an evaluation's chunks."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import in_ranks
from shares import BLOCK, CPU, SEEDS, Sharing, evaluation, loader_of, small_model

import mlmlab
from mlmlab.data.loader import StepBatch
from mlmlab.model import Family
from mlmlab.runtime.config import Parallel
from mlmlab.runtime.distributed import ALONE, Ranks, process_group
from mlmlab.training.optimizer import build_optimizers
from mlmlab.training.parallel import Replica
from mlmlab.training.step import train_step


def _rows(batch: StepBatch) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, predicted places and their labels of each row that the process owns."""
    rows = []
    for micro in batch.micro_batches:
        if micro.token_count == 0:  # a stand-in
            assert micro.masked_count == 0
            continue
        offsets = micro.masked.row_offsets.tolist()
        for row, (start, end) in enumerate(pairwise(offsets)):
            places = (micro.masked.positions[start:end] - row * BLOCK).tolist()
            rows.append(
                (
                    micro.masked.input_ids[row].tolist(),
                    places,
                    micro.masked.labels[start:end].tolist(),
                )
            )
    return rows


@pytest.mark.parametrize("size", [2, 3, 5, 8, 11])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_the_processes_rows_together_are_the_batch_of_one(size: int, micro_batch_size: int) -> None:
    for number in (0, 5, 6, 7, 13):  # 6 and 13 are the short ones
        whole = loader_of().batch(number)
        parts = [
            loader_of(Ranks(rank, size), micro_batch_size).batch(number) for rank in range(size)
        ]
        rows = [_rows(part) for part in parts]
        for n, row in enumerate(_rows(whole)):
            assert rows[n % size].pop(0) == row
        assert not any(rows)
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert sum(part.masked_count for part in parts) == whole.masked_count
        assert sum(part.token_count for part in parts) == whole.token_count


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes
    yield
    torch.set_num_threads(before)


VARIANTS: dict[str, tuple[int, dict[str, object], dict[str, object]]] = {
    "in one": (8, {"max_grad_norm": 0.0}, {}),
    "accumulated": (2, {"max_grad_norm": 0.0}, {}),
    "one by one": (1, {"max_grad_norm": 0.0}, {}),
    "clipped, computed again, a rate for each part": (
        2,
        {"max_grad_norm": 0.05, "gradient_checkpointing": True, "layer_decay": 0.5},
        {"layers": 3},
    ),
    "frozen below": (8, {"freeze": ("embeddings", "layers.0")}, {"layers": 2}),
    "frozen above": (8, {"freeze": ("layers.1", "head")}, {"layers": 2}),
    "the modern block": (
        2,
        {"max_grad_norm": 0.0},
        {"family": Family.MODERNBERT, "layers": 4, "local_attention": 6},
    ),
}
"""Rows of a micro-batch (but all in a process alone); and what is special in training and model."""

DRAWS = (1, 2, 3, 5)
"""Chunks of an evaluation: fewer than processes, and numbers that they do not divide."""


@dataclass(frozen=True)
class Stepped:
    """What a step left in one of the processes."""

    gradient: torch.Tensor | None
    """All of it, on rank 0."""
    weights: torch.Tensor | None
    """Where the process has all of them."""
    loss_sum: float
    """Of all processes."""
    grad_norm: float
    masked_count: int
    token_count: int
    own_masked_counts: list[int]
    """Of its micro-batches."""


def _steps(ranks: Ranks, parallel: Parallel, variant: str) -> list[Stepped | None]:
    """Of each step; None where nothing is predicted."""
    micro_batch_size, train, architecture = VARIANTS[variant]
    # A scale as that of fp16 is a power of two, and changes nothing.
    rows, scale = (8, None) if ranks is ALONE else (micro_batch_size, 1024.0)
    config = dataclasses.replace(mlmlab.compose().train, **train)  # type: ignore[arg-type]
    sharing = Sharing(ranks, parallel, config, small_model(**architecture), rows, scale)
    found: list[Stepped | None] = []
    for number in range(7):
        batch = sharing.loader.batch(number)
        if not batch.masked_count:
            found.append(None)
            continue
        result = sharing.step(number)
        weights = None
        if parallel is Parallel.DDP:
            weights = torch.cat([p.detach().flatten() for p in sharing.model.parameters()])
        found.append(
            Stepped(
                gradient=sharing.unsharded(lambda p: p.grad),
                weights=weights,
                loss_sum=math.fsum(ranks.gather(result.loss_sum.item())),
                grad_norm=result.grad_norm.item(),
                masked_count=batch.masked_count,
                token_count=batch.token_count,
                own_masked_counts=[micro.masked_count for micro in batch.micro_batches],
            )
        )
    return found


def _evaluations(ranks: Ranks, parallel: Parallel) -> list[dict[str, object]]:
    found = []
    for draws in DRAWS:
        sharing = Sharing(ranks, parallel, model=small_model(layers=2))
        with sharing.replica.evaluating() as model:
            found.append(evaluation(model, ranks, draws))
    return found


def _save(folder: Path, parallel: Parallel) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        steps = {variant: _steps(ranks, parallel, variant) for variant in VARIANTS}
        torch.save((steps, _evaluations(ranks, parallel)), folder / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Stepped | None]]:
    """The steps of one process."""
    torch.set_num_threads(1)
    return {variant: _steps(ALONE, Parallel.DDP, variant) for variant in VARIANTS}


@pytest.fixture(
    scope="module",
    params=[
        (Parallel.DDP, 2),
        (Parallel.FSDP, 2),
        (Parallel.DDP, 3),
        pytest.param((Parallel.FSDP, 3), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"{param[0].value}-{param[1]}",
)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of each process: its steps and its evaluations."""
    parallel, size = request.param
    folder = tmp_path_factory.mktemp("shared")
    in_ranks(size, _save, folder, parallel)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_unequal_and_empty_shares_add_up_to_the_step_of_one_process(
    alone: dict[str, list[Stepped | None]], shared: list[Any], variant: str
) -> None:
    ranks: list[list[Stepped | None]] = [steps[variant] for steps, _ in shared]
    assert [step is None for step in alone[variant]] == [False] * 4 + [True] + [False] * 2
    for number, expected in enumerate(alone[variant]):
        first = ranks[0][number]
        for steps in ranks:
            found = steps[number]
            if expected is None or found is None or first is None:
                assert found is first is expected
                continue
            assert found.masked_count == expected.masked_count
            assert found.token_count == expected.token_count
            assert found.grad_norm == first.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
            assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
            if found.weights is not None:
                assert first.weights is not None
                assert torch.equal(found.weights, first.weights)
        if expected is not None:
            assert first is not None
            assert first.gradient is not None
            assert expected.gradient is not None
            assert first.gradient.shape == expected.gradient.shape
            distance = (first.gradient - expected.gradient).norm()
            assert distance <= 1e-5 * expected.gradient.norm()


def test_some_of_the_shares_have_nothing_to_predict(shared: list[Any]) -> None:
    own = {
        variant: [step.own_masked_counts for steps, _ in shared for step in steps[variant] if step]
        for variant in ("in one", "accumulated")
    }
    assert any(not any(counts) for counts in own["in one"])
    ends = {(c[0] > 0, c[-1] > 0) for c in own["accumulated"] if len(c) > 1}
    assert ends >= {(False, False), (True, False), (True, True)}


def test_an_evaluation_has_the_bits_of_one_process_whatever_the_number_of_chunks(
    shared: list[Any],
) -> None:
    expected = _evaluations(ALONE, Parallel.DDP)
    for _, evaluations in shared:
        assert evaluations == expected


def test_no_two_micro_batches_of_a_step_share_their_dropout_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    for rank in range(3):
        replica = Replica(
            small_model(), Ranks(rank, 3), CPU
        )  # in a separate world, but for the noise
        optimizers = build_optimizers(replica.model, mlmlab.compose().train)
        train_step(
            replica, optimizers, loader_of(replica.ranks, 1).batch(0), schedule_factor=0.5,
            max_grad_norm=0.0, seeds=SEEDS, suppressed=torch.zeros(()),
        )  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 3 * 3
