"""What a run starts from, gathered and checked first: text, tokenizer, model."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mlmlab.checkpoints import LoadedModel, check_vocabularies, load_model
from mlmlab.config import CheckpointHead, RunConfig
from mlmlab.data.blocks import PackedBlocks
from mlmlab.data.config import DataConfig, Source
from mlmlab.data.corpus import Corpus, Progress, TrainingDocuments, open_corpus
from mlmlab.data.sources import FileSource, TextSource, WorldSource
from mlmlab.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer, word_tokenizer
from mlmlab.data.world import small_world
from mlmlab.errors import Problem, UserError
from mlmlab.fetch.cache import built_once, cache_folder
from mlmlab.fetch.hub import fetch_tokenizer
from mlmlab.fetch.url import fetch_url
from mlmlab.model import MaskedLanguageModel, ModelConfig
from mlmlab.random import Domain, derive_seed


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that the loop works on."""

    source: TextSource
    tokenizer: Tokenizer
    corpus: Corpus
    train: PackedBlocks
    test: PackedBlocks
    model: MaskedLanguageModel
    loaded: LoadedModel | None
    """The checkpoint that the model came from; None from scratch."""

    @property
    def is_world(self) -> bool:
        """Whether the text and its tokens are the small world's own, whose optimum is known."""
        words = small_world().words
        return (
            isinstance(self.source, WorldSource)
            and self.tokenizer.fingerprint() == word_tokenizer(words).fingerprint()
        )


def gather(config: RunConfig, progress: Progress | None = None) -> Inputs:
    """Finds, reads and tokenizes what the config names.

    Raises:
        UserError: whatever is missing or does not fit. A checkpoint and a data set that cannot be
            had are reported together.
    """
    problems: list[Problem] = []
    loaded = None
    try:
        loaded = _checkpoint(config)
    except UserError as error:
        problems += error.problems
    try:
        source = open_source(config.data)
        source_key = source.fingerprint()
    except UserError as error:
        problems += error.problems
    if problems:
        raise UserError(problems)

    tokenizer = _tokenizer(config, loaded, source, source_key)
    if loaded is not None:
        check_vocabularies(
            loaded.model.config,
            tokenizer,
            loaded.resolved,
            is_its_own=config.tokenizer.path is None,
        )
        _check_length(config.data.block_size, loaded)
    corpus = open_corpus(
        source,
        tokenizer,
        test_fraction=config.data.test_fraction,
        seed=config.data.seed,
        progress=progress,
    )
    train = PackedBlocks(corpus.train, config.data.block_size)
    test = PackedBlocks(corpus.test, config.data.block_size)
    _check_blocks(train, test, source)
    model = loaded.model if loaded else _from_scratch(config, tokenizer)
    return Inputs(source, tokenizer, corpus, train, test, model, loaded)


def open_source(config: DataConfig) -> TextSource:
    """The stream of documents that the config names, downloaded first if it is a URL."""
    if config.source is Source.BUILTIN:
        return WorldSource(config.limit)
    if config.source is Source.URL:
        assert config.url is not None
        path = fetch_url(config.url, config.sha256, cache_folder() / "downloads")
    else:
        assert config.path is not None
        path = Path(config.path)
    return FileSource(path, config.text_field, config.encoding, config.limit)


def _checkpoint(config: RunConfig) -> LoadedModel | None:
    if config.checkpoint is None:
        return None
    fresh = config.checkpoint_head is CheckpointHead.FRESH
    return load_model(
        config.checkpoint,
        fresh_head_seed=derive_seed(config.seed, Domain.INITIALIZE) if fresh else None,
        dropout=config.model.dropout,
    )


def _from_scratch(config: RunConfig, tokenizer: Tokenizer) -> MaskedLanguageModel:
    model = MaskedLanguageModel(
        ModelConfig.from_settings(
            config.model, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id
        )
    )
    model.initialize(derive_seed(config.seed, Domain.INITIALIZE))
    return model


def _tokenizer(
    config: RunConfig, loaded: LoadedModel | None, source: TextSource, source_key: str
) -> Tokenizer:
    if config.tokenizer.path is not None:
        return load_tokenizer(fetch_tokenizer(config.tokenizer.path))
    if loaded is not None:
        return load_tokenizer(loaded.folder)
    if isinstance(source, WorldSource):
        return word_tokenizer(small_world().words)
    return _trained_tokenizer(config, source, source_key)


def _trained_tokenizer(config: RunConfig, source: TextSource, source_key: str) -> Tokenizer:
    """A tokenizer learned from the training documents, once for the same text and settings."""
    settings = config.tokenizer
    split = f"{config.data.test_fraction} {config.data.seed}"
    key = f"{source_key} {split} {settings.kind.value} {settings.vocabulary_size}"
    folder = cache_folder() / "tokenizers" / hashlib.sha256(key.encode()).hexdigest()[:32]

    def build(building: Path) -> None:
        documents = TrainingDocuments(source, config.data.test_fraction, config.data.seed)
        train_tokenizer(documents, settings.kind, settings.vocabulary_size).save(building)

    built_once(folder, build)
    return load_tokenizer(folder)


def _check_length(block_size: int, loaded: LoadedModel) -> None:
    longest = loaded.model.config.max_positions
    if block_size > longest:
        raise UserError.of(
            "data.block_size",
            found=f"{block_size}, and {loaded.resolved} has {longest} positions",
            expected=f"at most {longest}",
            remedy=f"data.block_size={longest}",
        )


def _check_blocks(train: PackedBlocks, test: PackedBlocks, source: TextSource) -> None:
    problems = []
    for blocks, name in ((train, "training"), (test, "test")):
        if len(blocks) == 0:
            found = f"{source.description}: {blocks.dropped_tokens} tokens in its {name} documents"
            problems.append(
                Problem(
                    "data",
                    found,
                    f"at least one block of data.block_size={blocks.block_size} tokens",
                    "more text, a smaller data.block_size, or another data.test_fraction or "
                    "data.seed (the split is by document: with few of them, one side may be empty)",
                )
            )
    if problems:
        raise UserError(problems)
