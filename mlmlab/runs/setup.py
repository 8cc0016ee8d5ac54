"""What a run starts from, found and checked first: text, tokenizer, model."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from mlmlab import schema, seams
from mlmlab.checkpoints import LoadedModel, check_vocabularies, load_model
from mlmlab.checkpoints.hub_config import read_hub_config
from mlmlab.config import CheckpointHead, EvaluateConfig, RunConfig
from mlmlab.data.blocks import Blocks, DocumentBlocks, PackedBlocks, SampledBlocks
from mlmlab.data.config import DataConfig, Layout, TokenizerConfig
from mlmlab.data.corpus import Corpus, Shard, ShowCounts, TrainingDocuments, open_corpus
from mlmlab.data.small_world.chain import small_world
from mlmlab.data.sources import SmallWorldSource, TextSource
from mlmlab.data.text import open_test_text, open_text
from mlmlab.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer, word_tokenizer
from mlmlab.data.word_starts import with_word_starts
from mlmlab.errors import Code, Problem, UserError
from mlmlab.evaluation.config import Split
from mlmlab.fetch.cache import absolute, built_once, cache_folder, local_path
from mlmlab.fetch.hub import fetch_tokenizer
from mlmlab.masking import MaskingPolicy
from mlmlab.masking.policy import build_policy, needs_words
from mlmlab.model import MaskedLanguageModel, ModelConfig
from mlmlab.random import Domain, Seeds, derive_seed
from mlmlab.runs.folder import is_fixed
from mlmlab.runtime.config import Parallel
from mlmlab.runtime.distributed import Ranks
from mlmlab.tracking.config import TrackingConfig
from mlmlab.tracking.progress_bar import tokenization_bar
from mlmlab.training.objective import find_objective, needs_first_weights
from mlmlab.training.optimizer import freeze, optimizer_builder
from mlmlab.training.schedule import build_schedule


@dataclass(frozen=True, eq=False)
class Text:
    """Where text comes from, and what it became."""

    source: TextSource
    corpus: Corpus


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """Everything that an evaluation works on."""

    text: Text
    test: Blocks
    tokenizer: Tokenizer
    tokenizer_path: str | None
    """As configured, with the commit in place of a branch."""
    model: MaskedLanguageModel
    loaded: LoadedModel | None
    """The checkpoint that the model came from; None from scratch, and for a resumed run."""
    data: DataConfig
    """As configured, with the commit in place of a data set's branch."""
    masking: MaskingPolicy
    """Of the evaluations."""
    seeds: Seeds

    @property
    def has_known_floor(self) -> bool:
        """Whether the text and its tokens are the small world's own, in blocks of its stream, and
        each token is masked by itself."""
        return (
            isinstance(self.text.source, SmallWorldSource)
            and self.data.eval_path is None
            and self.data.layout is Layout.PACKED
            and not self.data.isolate_documents
            and self.masking.is_independent
            and self.tokenizer.fingerprint() == word_tokenizer(small_world().words).fingerprint()
        )


@dataclass(frozen=True, eq=False)
class Inputs(EvaluationInputs):
    """Everything that a run works on."""

    train: Blocks
    test_text: Text
    """The same as `text`, unless data.eval_path or data.eval_files names another."""


def set_up(
    config: RunConfig,
    show_counts: ShowCounts | None = None,
    state: Path | None = None,
    documents: Sequence[str] | None = None,
    *,
    on_meta: bool = False,
) -> Inputs:
    """Finds, reads and tokenizes what the config names, and freezes what is not to be trained.

    Args:
        state: a checkpoint of the run itself. Architecture and tokenizer are then its own: what the
            run began with need not be there any more, unless the objective has `setup`. Its
            weights come into the model later, with the moments (`load_state`).
        documents: the text of data.source=documents.
        on_meta: the model is built on the meta device, without weights, for a process that gets
            its shards from rank 0 (`ShardedReplica`).

    Raises:
        UserError: whatever is missing or does not fit. A checkpoint and a data set that cannot be
            had are reported together.
    """
    policies = [build_policy(config.masking), build_policy(config.eval.masking)]
    seeds = Seeds.of(config.seed, config.eval.seed, config.data.seed)
    fresh = config.checkpoint_head is CheckpointHead.FRESH
    begins_anew = state is None or needs_first_weights(config.objective)
    loaded, source, data = _found(
        config.checkpoint if begins_anew else None,
        config.data,
        documents,
        fresh_head_seed=seeds.weights if fresh else None,
        dropout=config.model.dropout,
        on_meta=on_meta,
    )
    model = loaded.model if loaded is not None else None
    device = torch.device("meta" if on_meta else "cpu")
    if state is not None and not begins_anew:
        with device:
            model = MaskedLanguageModel(read_hub_config(state))
    if model is not None:
        freeze(model, config.train)  # refuses now, not after an hour of tokenizing
    else:  # so does a model of the same parameter names, whatever the vocabulary will be
        sizes = ModelConfig.from_settings(config.model, vocabulary_size=1, pad_id=0)
        with torch.device("meta"):
            freeze(MaskedLanguageModel(sizes), config.train)
    test_source, data = open_test_text(data)
    if test_source is not None:  # every other document is trained on
        data = dataclasses.replace(data, test_fraction=0.0)
    tokenizer_path = config.tokenizer.path
    if state is not None:
        tokenizer = load_tokenizer(state)
    else:
        tokenizer, tokenizer_path = _tokenizer(config.tokenizer, data, loaded, source, seeds)
    _check_fit(data, loaded, tokenizer, is_its_own=config.tokenizer.path is None)
    with_words = any(map(needs_words, policies))
    text = _text(source, tokenizer, seeds, data.test_fraction, with_words, show_counts)
    test_text = text
    if test_source is not None:
        test_text = _text(test_source, tokenizer, seeds, 1.0, with_words, show_counts)
    train = _blocks(text.corpus.train, data, tokenizer, keep_rest=False)
    test = _blocks(test_text.corpus.test, data, tokenizer, keep_rest=True)
    _check_blocks([(train, "training", text), (test, "test", test_text)])
    train = _sampled(train, data.train_examples, seeds.split, "data.train_examples")
    test = _sampled(test, data.test_examples, seeds.split, _TEST_EXAMPLES)
    model = model or _from_scratch(config, tokenizer, seeds, device)
    model.gradient_checkpointing = config.train.gradient_checkpointing
    return Inputs(
        text=text,
        test=test,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        model=model,
        loaded=loaded,
        data=dataclasses.replace(data, test_fraction=config.data.test_fraction),
        masking=config.eval.masking,
        seeds=seeds,
        train=train,
        test_text=test_text,
    )


def set_up_evaluation(
    config: EvaluateConfig,
    show_counts: ShowCounts | None = None,
    documents: Sequence[str] | None = None,
) -> EvaluationInputs:
    """As `set_up`, for an evaluation alone.

    Raises:
        UserError: whatever is missing or does not fit.
    """
    with_words = needs_words(build_policy(config.eval.masking))
    seeds = Seeds.of(0, config.eval.seed, config.data.seed)  # nothing is trained
    loaded, source, data = _found(config.checkpoint, config.data, documents)
    assert loaded is not None
    fraction = 1.0
    if config.eval.split is Split.TEST:
        fraction = data.test_fraction
        test_source, data = open_test_text(data)
        if test_source is not None:
            source, fraction = test_source, 1.0
    tokenizer_path = config.tokenizer.path
    if tokenizer_path is None:
        tokenizer = load_tokenizer(loaded.folder)
    else:
        folder, tokenizer_path = fetch_tokenizer(tokenizer_path)
        tokenizer = load_tokenizer(folder)
    _check_fit(data, loaded, tokenizer, is_its_own=config.tokenizer.path is None)
    text = _text(source, tokenizer, seeds, fraction, with_words, show_counts)
    test = _blocks(text.corpus.test, data, tokenizer, keep_rest=True)
    _check_blocks([(test, "test" if config.eval.split is Split.TEST else "own", text)])
    test = _sampled(test, data.test_examples, seeds.split, _TEST_EXAMPLES)
    return EvaluationInputs(
        text=text,
        test=test,
        tokenizer=tokenizer,
        tokenizer_path=tokenizer_path,
        model=loaded.model,
        loaded=loaded,
        data=data,
        masking=config.eval.masking,
        seeds=seeds,
    )


def _found(
    checkpoint: str | None,
    data: DataConfig,
    documents: Sequence[str] | None,
    *,
    fresh_head_seed: int | None = None,
    dropout: float | None = None,
    on_meta: bool = False,
) -> tuple[LoadedModel | None, TextSource, DataConfig]:
    """The checkpoint and the text; whatever is wrong with either is reported together."""
    problems: list[Problem] = []
    loaded = None
    try:
        if checkpoint is not None:
            loaded = load_model(
                checkpoint, fresh_head_seed=fresh_head_seed, dropout=dropout, on_meta=on_meta
            )
    except UserError as error:
        problems += error.problems
    try:
        source, data = open_text(data, documents)
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)
    return loaded, source, data


def _text(
    source: TextSource,
    tokenizer: Tokenizer,
    seeds: Seeds,
    test_fraction: float,
    with_words: bool,
    show_counts: ShowCounts | None,
) -> Text:
    corpus = open_corpus(
        source, tokenizer, test_fraction=test_fraction, seed=seeds.split, show_counts=show_counts
    )
    if with_words:
        corpus = with_word_starts(corpus, source, tokenizer, show_counts=show_counts)
    return Text(source, corpus)


def _blocks(shard: Shard, data: DataConfig, tokenizer: Tokenizer, *, keep_rest: bool) -> Blocks:
    if data.layout is Layout.PACKED:
        return PackedBlocks(
            shard, data.block_size, isolate=data.isolate_documents, keep_rest=keep_rest
        )
    return DocumentBlocks(
        shard,
        data.block_size,
        frame=tokenizer.frame,
        pad_id=tokenizer.pad_id,
        cut_off=data.layout is Layout.LINES,
    )


def _sampled(blocks: Blocks, count: int | None, seed: int, key: str) -> Blocks:
    """`count` of the examples, drawn by the seed; None: all of them."""
    if count is None:
        return blocks
    if count > blocks.full_examples:
        raise UserError.of(
            key,
            code=Code.NO_TEXT,
            found=f"{count:,}, of a text with {blocks.full_examples:,} such examples of "
            f"{blocks.block_size} tokens",
            expected="at most as many as there are",
            remedy=f"{key}=null for all of them; or more text",
        )
    return SampledBlocks(blocks, count, derive_seed(seed, Domain.SAMPLE, key == _TEST_EXAMPLES))


_TEST_EXAMPLES = "data.test_examples"


def _from_scratch(
    config: RunConfig, tokenizer: Tokenizer, seeds: Seeds, device: torch.device
) -> MaskedLanguageModel:
    sizes = ModelConfig.from_settings(
        config.model, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id
    )
    with device:
        model = MaskedLanguageModel(sizes)
    if device.type != "meta":
        model.initialize(seeds.weights)
    freeze(model, config.train)
    return model


def _tokenizer(
    settings: TokenizerConfig,
    data: DataConfig,
    loaded: LoadedModel | None,
    source: TextSource,
    seeds: Seeds,
) -> tuple[Tokenizer, str | None]:
    """The tokenizer, and the pinned name of the one that `tokenizer.path` names."""
    if settings.path is not None:
        folder, pinned = fetch_tokenizer(settings.path)
        return load_tokenizer(folder), pinned
    if loaded is not None:
        return load_tokenizer(loaded.folder), None
    if isinstance(source, SmallWorldSource):
        return word_tokenizer(small_world().words), None
    return _trained_tokenizer(settings, data, source, seeds), None


def _trained_tokenizer(
    settings: TokenizerConfig, data: DataConfig, source: TextSource, seeds: Seeds
) -> Tokenizer:
    """A tokenizer learned from the training documents, once for the same text and settings."""
    split = f"{data.test_fraction} {seeds.split}"
    kind = f"{settings.kind.value} {settings.vocabulary_size} tokenizers {version('tokenizers')}"
    key = f"{source.fingerprint()} {split} {kind}"
    folder = cache_folder() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def build(building: Path) -> None:
        documents = TrainingDocuments(source, data.test_fraction, seeds.split)
        train_tokenizer(documents, settings.kind, settings.vocabulary_size).save(building)

    built_once(folder, build)
    return load_tokenizer(folder)


def _check_fit(
    data: DataConfig, loaded: LoadedModel | None, tokenizer: Tokenizer, *, is_its_own: bool
) -> None:
    """Whether model, tokenizer and block size belong together."""
    if loaded is not None:
        check_vocabularies(loaded.model.config, tokenizer, loaded.resolved, is_its_own=is_its_own)
        longest = loaded.model.config.max_positions
        if data.block_size > longest:
            raise UserError.of(
                "data.block_size",
                code=Code.MISMATCH,
                found=f"{data.block_size}, and {loaded.resolved} has {longest} positions",
                expected=f"at most {longest}",
                remedy=f"data.block_size={longest}",
            )
    frame_size = sum(map(len, tokenizer.frame))
    if data.layout is not Layout.PACKED and data.block_size <= frame_size:
        raise UserError.of(
            "data.block_size",
            code=Code.MISMATCH,
            found=f"{data.block_size}, with {frame_size} special tokens around each example",
            expected=f"at least {frame_size + 1}, for data.layout={data.layout.value}",
            remedy="data.block_size=128",
        )


def _check_blocks(sides: list[tuple[Blocks, str, Text]]) -> None:
    problems = []
    for blocks, name, text in sides:
        if len(blocks) == 0:
            corpus, tokens = text.corpus, blocks.shard.token_count
            bad = f"; bad rows left out: {corpus.bad_rows}, first {corpus.first_bad_row}"
            problems.append(
                Problem(
                    "data",
                    f"{text.source.description}: {tokens} tokens in its {name} documents"
                    + bad * (corpus.bad_rows > 0),
                    f"at least one block of data.block_size={blocks.block_size} tokens",
                    "more text, a smaller data.block_size, or another data.test_fraction or "
                    "data.seed (the split is by document: with few of them, one side may be empty)",
                    code=Code.NO_TEXT,
                )
            )
    if problems:
        raise UserError(problems)


def set_up_run(
    config: RunConfig,
    ranks: Ranks,
    state: Path | None,
    documents: Sequence[str] | None,
    *,
    quiet: bool,
) -> tuple[RunConfig, Inputs]:
    """As `set_up`, on all ranks; see `on_rank_zero_first`. The user's own code is checked first.

    With runtime.parallel=fsdp only rank 0 has the weights, until `ShardedReplica` deals them out.
    """
    build_schedule(config.train)
    optimizer_builder(config.train)
    find_objective(config.objective)
    config = dataclasses.replace(config, sources=_checked_sources(config))
    on_meta = config.runtime.parallel is Parallel.FSDP and not ranks.is_rank_zero
    try:
        return on_rank_zero_first(
            lambda config, show: set_up(config, show, state, documents, on_meta=on_meta),
            config,
            ranks,
            quiet=quiet,
        )
    except UserError as error:
        if config.resume is None:
            raise
        remedy = "put back what the run began with; or train a new run, without resume"
        problems = (
            dataclasses.replace(problem, remedy=remedy) if is_fixed(problem.where) else problem
            for problem in error.problems
        )
        raise UserError(problems) from error


def _checked_sources(config: RunConfig) -> dict[str, str]:
    """The digest of the source file of each of the user's own objects that the figures depend on:
    of all but the sinks.

    Raises:
        UserError: it is not there, or not what it was when the run began.
    """
    own = schema.own_names(dataclasses.replace(config, tracking=TrackingConfig()))
    digests = {name: seams.source_digest(key, name) for name, key in own.items()}
    problems = [
        Problem(
            key,
            f"{name}, whose source has changed since the run began",
            "the code that the run began with",
            "put it back; or train a new run, without resume",
            code=Code.CHANGED,
        )
        for name, key in own.items()
        if config.sources.get(name, digests[name]) != digests[name]
    ]
    if problems:
        raise UserError(problems)
    return digests


Config = TypeVar("Config", RunConfig, EvaluateConfig)
Found = TypeVar("Found", bound=EvaluationInputs)


def on_rank_zero_first(
    set_up_one: Callable[[Config, ShowCounts | None], Found],
    config: Config,
    ranks: Ranks,
    *,
    quiet: bool,
) -> tuple[Config, Found]:
    """Sets up rank 0, which downloads and tokenizes, and then the other ranks, from its cache.

    Args:
        set_up_one: `set_up` or `set_up_evaluation`.
        quiet: show no progress.

    Returns:
        The pinned config (commits in place of branches, absolute paths, the texts' fingerprints)
        and what it names.
    """
    found: Found | None = None

    def pin() -> Config:
        nonlocal found
        with tokenization_bar(quiet=quiet) as show:
            found = set_up_one(config, show)
        checkpoint = config.checkpoint if found.loaded is None else found.loaded.resolved
        tokenizer = dataclasses.replace(config.tokenizer, path=_absolute(found.tokenizer_path))
        return dataclasses.replace(
            config, checkpoint=_absolute(checkpoint), tokenizer=tokenizer, data=found.data
        )

    pinned = ranks.on_rank_zero(pin)
    return pinned, found or set_up_one(pinned, None)


def _absolute(name: str | None) -> str | None:
    """A local path from any folder; a name on the Hub as it is."""
    return absolute(name) if name is not None and local_path(name) is not None else name
