"""runtime.parallel=fsdp: each process keeps a part of the model, and nothing else is different."""

import contextlib
import gc
import io
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from ranks import (
    PATIENCE_SECONDS,
    Ended,
    assert_same_curve,
    forked,
    forked_to_the_end,
    in_ranks,
)
from shares import CPU, Sharing, eval_masker, evaluation, loader_of, small_model
from stopping import GETTING_WORSE, as_killed, events, results
from torch.distributed.tensor import DTensor

import mlmlab
from mlmlab.data.loader import EvalLoader
from mlmlab.data.tokenizer import word_tokenizer
from mlmlab.runs.replay import not_finite
from mlmlab.runs.setup import set_up, set_up_run
from mlmlab.runs.train import build_replica
from mlmlab.runtime.config import Parallel
from mlmlab.runtime.distributed import ALONE, Ranks, process_group
from mlmlab.training.memory import expected_memory_bytes
from mlmlab.training.parallel import Replica
from mlmlab.training.state import ProgressRecord, load_state, save_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as in the processes


# What the processes hold, and what a step does to it


def _live_bytes() -> int:
    """Of all tensors that anything in this process refers to."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        is_tensor = issubclass(type(thing), torch.Tensor) and not isinstance(thing, DTensor)
        if is_tensor and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _hold_a_part(state: Path) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        before = _live_bytes()
        sharing = Sharing(ranks, model=small_model(hidden_size=64, layers=8, vocabulary_size=1001))
        whole = sum(p.numel() for p in sharing.model.parameters()) * 4

        def held() -> float:  # in shards of the weights
            return (_live_bytes() - before) / whole * ranks.size

        assert held() == pytest.approx(1.0, rel=0.1)  # weights; the last process may have fewer
        sharing.step(0)
        assert held() == pytest.approx(4.0, rel=0.1)  # gradients and two moments
        for p, moments in sharing.optimizers[0].state.items():
            for tensor in (p, p.grad, moments["exp_avg"], moments["exp_avg_sq"]):
                assert isinstance(tensor, DTensor)
                most_rows = -(-len(tensor) // ranks.size)
                assert len(tensor.to_local()) <= most_rows
        within: list[float] = []
        look = sharing.model.layers[4].register_forward_hook(lambda *_: within.append(held()))
        with sharing.replica.evaluating() as model:
            evaluation(model, ranks, draws=2)
        look.remove()
        # Embeddings, head and two layers besides, and some activations; not all of the others.
        assert within
        assert max(within) < 4.2 + 0.7 * ranks.size
        assert held() == pytest.approx(4.0, rel=0.1)
        sharing.replica.model.zero_grad()
        record = ProgressRecord()
        save_state(state, sharing.replica, word_tokenizer(["a"]), sharing.optimizers, record, "")
        ranks.gather(None)  # now it is there
        load_state(state, sharing.replica, sharing.optimizers)
        assert held() == pytest.approx(3.0, rel=0.1)


def test_a_process_holds_its_share_of_weights_gradients_and_moments(tmp_path: Path) -> None:
    in_ranks(2, _hold_a_part, tmp_path / "step_1")


@pytest.mark.slow
def test_one_of_three_processes_holds_a_third(tmp_path: Path) -> None:
    in_ranks(3, _hold_a_part, tmp_path / "step_1")


def _count_reductions() -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        sharing = Sharing(ranks, micro_batch_size=1)
        reduced: list[int] = []
        for p in sharing.model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: reduced.append(id(p)))
        sharing.step(0)
        assert len(sharing.loader.batch(0).micro_batches) == 4
        assert len(reduced) == len(set(reduced)) == len(list(sharing.model.parameters()))


def test_gradients_travel_once_a_step_whatever_the_number_of_micro_batches() -> None:
    in_ranks(2, _count_reductions)


def _see_a_gradient_that_is_not_finite_elsewhere() -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        sharing = Sharing(ranks)
        assert not sharing.step(0).is_non_finite()
        weights, moments = _weights_and_moments(sharing)
        if ranks.rank == 1:  # in a single number of its shard
            sharing.model.head.decoder_bias.register_post_accumulate_grad_hook(
                lambda p: p.grad.to_local()[-1:].fill_(torch.inf)
            )
        result = sharing.step(1)
        assert result.is_non_finite()
        assert result.grad_norm.item() == torch.inf
        assert not_finite(sharing.replica) == ["head.decoder_bias"]
        assert sharing.step(2).is_non_finite()  # from now on
        again = _weights_and_moments(sharing)
        assert torch.equal(again[0], weights)
        assert torch.equal(again[1], moments)


def _weights_and_moments(sharing: Sharing) -> tuple[torch.Tensor, torch.Tensor]:
    def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
        local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
        return torch.cat([t.detach().flatten().clone() for t in local])

    states = sharing.optimizers[0].state.values()
    return (
        flat(list(sharing.model.parameters())),
        flat([state[kind] for state in states for kind in ("step", "exp_avg", "exp_avg_sq")]),
    )


def test_a_shard_that_is_not_finite_is_suppressed_in_all_processes() -> None:
    in_ranks(2, _see_a_gradient_that_is_not_finite_elsewhere)


# Evaluations and checkpoints


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_every_process_has_a_chunk_in_every_round_and_each_example_counts_once(size: int) -> None:
    loader = loader_of()
    chunks = EvalLoader(loader.blocks, eval_masker(loader), draws=3)
    shares = [list(chunks.chunks(Ranks(rank, size))) for rank in range(size)]
    assert {len(share) for share in shares} == {-(-3 // size)}
    dealt = [chunk for share in shares for chunk in share]
    assert sum(len(c) for c in dealt if c.counts) == chunks.example_count
    assert all(c.batch.masked_count == len(c.document_ids) == 0 for c in dealt if not c.counts)


TOKENIZER = word_tokenizer([f"w{number}" for number in range(55)])


def _save_once_more(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        model = small_model(layers=2)
        model.initialize(1)  # to other weights than those that are loaded
        sharing = Sharing(ranks, model=model)
        record = load_state(folder / "alone", sharing.replica, sharing.optimizers)
        copy = folder / "sharded"
        save_state(copy, sharing.replica, TOKENIZER, sharing.optimizers, record, "this run's")


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_checkpoint_that_was_loaded_into_shards_is_saved_with_the_same_bytes(
    tmp_path: Path, size: int
) -> None:
    alone = Sharing(ALONE, model=small_model(layers=2))
    for number in range(4):
        alone.step(number)
    record = ProgressRecord(batches=4, steps=4, seconds=1.5)
    folder = tmp_path / "alone"
    save_state(folder, alone.replica, TOKENIZER, alone.optimizers, record, "this run's")
    in_ranks(size, _save_once_more, tmp_path)
    names = sorted(file.name for file in folder.iterdir())
    assert {"model.safetensors", "optimizer.safetensors", "digests.json"} <= set(names)
    assert sorted(file.name for file in (tmp_path / "sharded").iterdir()) == names
    for name in names:
        assert (tmp_path / "sharded" / name).read_bytes() == (folder / name).read_bytes(), name


# Whole runs

TINY = (
    "run_dir=run",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.precision=fp32",
    "model.layers=2",
    "model.hidden_size=32",
    "model.heads=2",
    "model.intermediate_size=64",
    "model.dropout=0.0",
    "data.limit=400",
    "train.batch_size=9",  # 5 and 4 rows for two processes
    "train.micro_batch_size=2",
    "train.max_steps=12",
    "train.log_every_steps=1",
    "train.save_every_steps=3",
    "train.keep_checkpoints=10",
    "eval.every_steps=6",
    "eval.mask_draws=2",
)
FSDP = "runtime.parallel=fsdp"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    with contextlib.chdir(folder):
        mlmlab.run(mlmlab.compose(*TINY), quiet=True)
    return folder / "run"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return forked_to_the_end(tmp_path_factory.mktemp("two"), *TINY, FSDP)


def test_two_processes_follow_the_curves_of_one(one: Path, two: Ended) -> None:
    expected = events(one)
    assert [event["step"] for event in expected if "train/grad_norm" in event] == [*range(1, 13)]
    assert len([event for event in expected if "eval/loss" in event]) == 3
    assert_same_curve(events(two.folder / "run"), expected)
    first, theirs = (
        next(event["eval/loss"] for event in run if "eval/loss" in event)
        for run in (events(two.folder / "run"), expected)
    )
    assert first.hex() == theirs.hex()


@pytest.mark.slow
def test_three_processes_with_unequal_shares_follow_the_curves_of_one(
    one: Path, tmp_path: Path
) -> None:
    forked_to_the_end(tmp_path, *TINY, FSDP, processes=3)
    assert_same_curve(events(tmp_path / "run"), events(one))


def test_the_plan_says_that_the_model_is_sharded(two: Ended) -> None:
    plan = " ".join(two.stdout.split())
    assert "2 processes, the model sharded over them (fsdp)" in plan
    assert two.stderr == ""


def _start(keys: tuple[str, ...], state: Path | None) -> None:
    torch.set_num_threads(1)
    with process_group(use_cuda=False) as ranks:
        before = _live_bytes()
        config, inputs = set_up_run(mlmlab.compose(*keys), ranks, state, None, quiet=True)
        parameters = list(inputs.model.parameters())
        whole = sum(p.numel() for p in parameters) * 4
        held = _live_bytes() - before
        assert held == (whole if ranks.is_rank_zero else 0)
        assert all(p.is_meta is not ranks.is_rank_zero for p in parameters)
        trained = [p.requires_grad for p in parameters]
        del parameters
        replica = build_replica(inputs.model, ranks, CPU, config.runtime.parallel)
        assert _live_bytes() - before == pytest.approx(whole / 2, rel=0.02)
        assert [p.requires_grad for p in replica.model.parameters()] == trained
        model = replica.unsharded_model()
        if model is not None and state is None:
            expected = set_up(config).model.state_dict()
            assert model.state_dict().keys() == expected.keys()
            for name, weight in model.state_dict().items():
                assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("source", ["scratch", "checkpoint", "state"])
def test_no_process_but_the_first_ever_has_more_of_the_weights_than_its_part(
    one: Path, source: str
) -> None:
    keys = (*TINY, FSDP, "train.freeze=[layers.0]")
    if source == "checkpoint":
        keys = (*(k for k in keys if not k.startswith("model.")), "model=from_checkpoint")
        keys = (*keys, f"checkpoint={one / 'export'}", "data.block_size=128")
    in_ranks(2, _start, keys, one / "checkpoints" / "step_12" if source == "state" else None)


def test_a_process_alone_says_that_there_is_nothing_to_shard(one: Path, tmp_path: Path) -> None:
    printed = io.StringIO()
    with contextlib.chdir(tmp_path), contextlib.redirect_stdout(printed):
        mlmlab.run(mlmlab.compose(*TINY, FSDP))
    plan = " ".join(printed.getvalue().split())
    assert "one process: runtime.parallel=fsdp has nothing to shard" in plan
    ours, theirs = results(tmp_path / "run"), results(one)
    for key in ("metrics", "exported weights"):
        assert ours[key] == theirs[key]


def test_export_and_checkpoints_open_with_transformers(two: Ended) -> None:
    from transformers import AutoModelForMaskedLM

    ids = torch.arange(5, 21)[None]
    run_dir = two.folder / "run"
    for folder in (run_dir / "export", run_dir / "checkpoints" / "step_12"):
        theirs, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
        ours, _ = mlmlab.load_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, ours(ids), atol=1e-5, rtol=0)


def test_the_run_folder_holds_what_a_single_process_writes(one: Path, two: Ended) -> None:
    def files(folder: Path) -> list[str]:
        paths = [path.relative_to(folder) for path in folder.rglob("*")]
        return sorted(
            str(path)
            for path in paths
            if "tfevents" not in path.name and path.name != "command.txt"
        )

    assert files(two.folder / "run") == files(one)
    last = [event for event in events(two.folder / "run") if "eval/loss" in event][-1]
    report = mlmlab.evaluate_checkpoint(
        mlmlab.compose_evaluation(
            f"checkpoint={two.folder / 'run'}", "eval.mask_draws=2", "runtime.precision=fp32"
        ),
        quiet=True,
    )
    assert report.evaluation.loss == last["eval/loss"]  # the export has the last step's weights


# Going on


def test_a_run_goes_on_with_copies_of_the_model_and_then_in_one_process(
    one: Path, two: Ended, tmp_path: Path
) -> None:
    as_killed(two.folder / "run", tmp_path / "run", checkpoints=[3, 6])
    ended = forked_to_the_end(tmp_path, "resume=run", "runtime.parallel=ddp")
    assert "changed    runtime.parallel=ddp" in ended.stdout
    assert_same_curve(events(tmp_path / "run"), events(one))
    last = as_killed(tmp_path / "run", tmp_path / "last", checkpoints=[6, 9])
    shutil.rmtree(tmp_path / "run")
    last.rename(tmp_path / "run")
    with contextlib.chdir(tmp_path):
        mlmlab.run(mlmlab.compose("resume=run", "runtime.parallel=ddp"), quiet=True)
    assert_same_curve(events(tmp_path / "run"), events(one))


def test_a_run_of_one_process_goes_on_in_shards(one: Path, tmp_path: Path) -> None:
    as_killed(one, tmp_path / "run", checkpoints=[3, 6])
    ended = forked_to_the_end(tmp_path, "resume=run", FSDP)
    assert "changed    runtime.parallel=fsdp" in ended.stdout
    assert_same_curve(events(tmp_path / "run"), events(one))
    (line,) = (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["overrides"] == ["runtime.parallel=fsdp"]


NOISY = (*TINY, FSDP, "model.dropout=0.1", "train.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forked_to_the_end(tmp_path_factory.mktemp("noisy"), *NOISY).folder / "run"


def test_a_run_that_goes_on_in_shards_has_the_bits_of_the_uninterrupted_one(
    noisy: Path, tmp_path: Path
) -> None:
    as_killed(noisy, tmp_path / "run", checkpoints=[3, 6])
    forked_to_the_end(tmp_path, "resume=run")
    assert results(tmp_path / "run") == results(noisy)
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (run / "checkpoints" / "step_12" / name for run in (tmp_path / "run", noisy))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_whose_process_is_stopped_goes_on_with_the_same_bits(
    noisy: Path, tmp_path: Path, number: signal.Signals, rank: int
) -> None:
    with forked(tmp_path, *NOISY) as run:
        run.wait_for_metrics(9)
        run.send(number, rank)
        ended = run.end(PATIENCE_SECONDS)
    if number == signal.SIGKILL:
        assert ended.message().startswith("another process of the run has ended")
    else:
        assert ended.statuses == [128 + number] * 2
    forked_to_the_end(tmp_path, "resume=run")
    assert results(tmp_path / "run") == results(noisy)


@pytest.mark.slow
def test_a_diverging_run_is_told_and_kept_once_and_can_be_replayed(tmp_path: Path) -> None:
    wild = ("train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_steps=0")
    with forked(tmp_path, *TINY, FSDP, *wild) as run:
        ended = run.end()
    assert ended.statuses == [1, 1]
    (folder,) = (tmp_path / "run" / "failures").iterdir()
    kept = json.loads((folder / "batch.json").read_text())
    mlmlab.load_pretrained(folder)  # the weights before it, all of them
    replay = ("resume=run", "debug=replay", f"debug.step={kept['step']}")
    for parallel in ("fsdp", "ddp"):
        with forked(tmp_path, *replay, f"runtime.parallel={parallel}") as run:
            again = run.end()
        assert again.statuses == [1, 1]
        assert again.message() == ended.message().partition(" Its examples")[0]
        told = " ".join(again.stdout.split())
        assert "parameters, embeddings.token.weight the first of them" in told


@pytest.mark.slow
def test_a_sound_step_is_replayed_with_the_loss_it_had(two: Ended) -> None:
    ended = forked_to_the_end(two.folder, "resume=run", "debug=replay", "debug.step=8")
    (then,) = [event["train/loss"] for event in events(two.folder / "run") if event["step"] == 8]
    assert f"{then:.6g}" in ended.stdout
    assert "every parameter's gradient is finite" in " ".join(ended.stdout.split())


# What the plan expects


def test_the_expected_memory_shrinks_with_the_number_of_shards() -> None:
    model = small_model(hidden_size=64, layers=24)
    one, eight = (
        expected_memory_bytes(model, CPU, examples=1, length=1, masked_tokens=1, shards=shards)
        for shards in (1, 8)
    )
    states = 16 * model.parameter_count()
    assert one == states  # gradients take more than what one token keeps
    assert states / 8 < eight < 0.4 * states


def test_without_torchrun_there_is_a_plain_replica() -> None:
    assert type(build_replica(small_model(), ALONE, CPU, Parallel.FSDP)) is Replica


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_several_processes_export_the_best_weights(tmp_path: Path, parallel: str) -> None:
    forked_to_the_end(tmp_path, *GETTING_WORSE, f"runtime.parallel={parallel}", "run_dir=run")
    run_dir = tmp_path / "run"
    summary = json.loads((run_dir / "summary.json").read_text())
    best = summary["exported_step"]
    assert best < summary["steps"] < 60
    exported = (run_dir / "export" / "model.safetensors").read_bytes()
    assert exported == (run_dir / "checkpoints" / f"step_{best}" / "model.safetensors").read_bytes()
    losses = {e["step"]: e["eval/loss"] for e in events(run_dir) if "eval/loss" in e}
    assert summary["eval_loss"] == losses[best] == min(losses.values())


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.slow)])
def test_several_processes_save_together_when_the_clock_of_the_first_says_so(
    two: Ended, tmp_path: Path, parallel: str
) -> None:
    keys = (*TINY, f"runtime.parallel={parallel}")
    rare = two.folder / "run"
    if parallel == "ddp":
        rare = forked_to_the_end(tmp_path, *keys, "run_dir=rare").folder / "rare"
    often = ("train.save_every_steps=100", "train.save_every_minutes=1e-9")
    forked_to_the_end(tmp_path, *keys, *often, "train.keep_checkpoints=20")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 12
    assert results(tmp_path / "run") == results(rare)
