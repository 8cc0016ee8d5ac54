"""What the processes of a run share out: rows, micro-batches, sums, and an evaluation's chunks."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from shares import BLOCK, CPU, SEEDS, UNEQUAL, loader_of, small_model

import mlmlab
from mlmlab.data.loader import EvalLoader, StepBatch
from mlmlab.evaluation.masked_perplexity import evaluate
from mlmlab.runtime.distributed import ALONE, Ranks, process_group
from mlmlab.tracking.progress_bar import ProgressBar
from mlmlab.training.optimizer import build_optimizer
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


@dataclass(frozen=True)
class Stepped:
    """What a step left in one of the processes."""

    gradient: torch.Tensor
    weights: torch.Tensor
    loss_sum: float
    grad_norm: float
    masked_count: int
    token_count: int
    own_masked_counts: list[int]


def _steps(ranks: Ranks, micro_batch_size: int) -> list[Stepped | None]:
    model = small_model()
    optimizer = build_optimizer(model, mlmlab.compose().train)
    loader = loader_of(ranks, micro_batch_size, UNEQUAL)
    replica = Replica(model, ranks, CPU)
    found: list[Stepped | None] = []
    for number in range(7):
        batch = loader.batch(number)
        if not batch.masked_count:
            found.append(None)
            continue
        result = train_step(
            replica, optimizer, batch, learning_rate=1e-3, max_grad_norm=0.0, seeds=SEEDS,
            suppressed=torch.zeros(()),
        )  # fmt: skip
        loss_sum = math.fsum(ranks.gather(result.loss_sum.item()))
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        found.append(
            Stepped(gradient, weights, loss_sum, result.grad_norm.item(), batch.masked_count,
                    batch.token_count, [micro.masked_count for micro in batch.micro_batches])
        )  # fmt: skip
    return found


def _save_steps(folder: Path, micro_batch_size: int) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        found = _steps(ranks, micro_batch_size)
        torch.save(found, folder / f"{ranks.rank}.pt")


@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, 8), (2, 1), (3, 2)])
def test_unequal_and_empty_shares_add_up_to_the_step_of_one_process(
    tmp_path: Path, size: int, micro_batch_size: int
) -> None:
    in_ranks(size, _save_steps, tmp_path, micro_batch_size)
    alone = _steps(ALONE, 8)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    assert [step is None for step in alone] == [False] * 4 + [True] + [False] * 2
    assert any(sum(u.own_masked_counts) == 0 for steps in ranks for u in steps if u is not None)
    for number, expected in enumerate(alone):
        for steps in ranks:
            found = steps[number]
            if expected is None or found is None:
                assert found is expected
                continue
            assert (found.masked_count, found.token_count) == (
                expected.masked_count, expected.token_count,
            )  # fmt: skip
            distance = (found.gradient - expected.gradient).norm()
            assert distance <= 1e-5 * expected.gradient.norm()
            assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
            assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-6)
            assert torch.equal(found.weights, ranks[0][number].weights)


def test_no_two_micro_batches_of_a_step_share_their_dropout_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr("torch.manual_seed", seeds.append)
    for rank in range(3):
        replica = Replica(
            small_model(), Ranks(rank, 3), CPU
        )  # in a world of its own, but for the noise
        optimizer = build_optimizer(replica.model, mlmlab.compose().train)
        train_step(
            replica, optimizer, loader_of(replica.ranks, 1).batch(0), learning_rate=1e-3,
            max_grad_norm=0.0, seeds=SEEDS, suppressed=torch.zeros(()),
        )  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 3 * 3


def _evaluation(ranks: Ranks) -> dict[str, object]:
    loader = loader_of()
    chunks = EvalLoader(loader.blocks, loader.masker, seeds=SEEDS, draws=5)
    result = evaluate(small_model(), chunks, CPU, ProgressBar(0, quiet=True), ranks=ranks)
    assert chunks.chunk_count == 5
    return {**dataclasses.asdict(result), "hex": result.loss.hex()}


def _save_evaluation(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        torch.save(_evaluation(ranks), folder / f"{ranks.rank}.pt")


@pytest.fixture
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("size", [2, 3])
def test_an_evaluation_has_the_same_bits_in_every_process_for_any_number_of_them(
    tmp_path: Path, size: int
) -> None:
    in_ranks(size, _save_evaluation, tmp_path)
    alone = _evaluation(ALONE)
    for rank in range(size):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=False) == alone
