"""The text that a config names: found, downloaded where it is elsewhere, and checked."""

import dataclasses
from collections.abc import Sequence

from mlmlab.data.config import Builtin, DataConfig, Files, Source, patterns
from mlmlab.data.python_docs import PythonDocsSource
from mlmlab.data.sources import (
    FileSource,
    PassedDocuments,
    SmallWorldSource,
    TextSource,
    matching_files,
)
from mlmlab.errors import Code, UserError
from mlmlab.fetch.cache import absolute, cache_folder
from mlmlab.fetch.hub import fetch_dataset
from mlmlab.fetch.url import fetch_url

_KEYS = {
    Source.BUILTIN: "data.source",
    Source.FILE: "data.path",
    Source.URL: "data.url",
    Source.HUB: "data.repository",
    Source.DOCUMENTS: "documents",
}


def open_text(
    config: DataConfig, documents: Sequence[str] | None = None
) -> tuple[TextSource, DataConfig]:
    """The documents to train on, or to split.

    Args:
        documents: the text of data.source=documents.

    Returns:
        The source; and the config with commits in place of branches, absolute paths and the
        fingerprint of the text.

    Raises:
        UserError: it cannot be had, or it is another text than when the run began.
    """
    if config.eval_path is not None:
        config = dataclasses.replace(config, eval_path=_absolute(config.eval_path))
    source, config = _opened(config, documents)
    fingerprint = _checked(source, config.fingerprint, _KEYS[config.source])
    return source, dataclasses.replace(config, fingerprint=fingerprint)


def open_test_text(config: DataConfig) -> tuple[TextSource | None, DataConfig]:
    """The test documents that the config names; None where they are a share of the text.

    Args:
        config: as `open_text` returns it.

    Returns:
        The source; and the config with their commit and fingerprint.

    Raises:
        UserError: as `open_text`.
    """
    whole = dataclasses.replace(config, limit=None)
    if config.eval_path is not None:
        key = "data.eval_path"
        files = matching_files(config.eval_path, key)
        source = FileSource.of(files, whole, ", ".join(patterns(config.eval_path)))
    elif config.source is Source.HUB and config.eval_files is not None:
        key = "data.eval_files"
        named = config.eval_repository or f"{config.repository}@{config.revision}"
        repository, _, revision = named.partition("@")
        source, commit = _from_hub(repository, revision or None, config.eval_files, whole, key)
        if config.eval_repository is not None:
            config = dataclasses.replace(config, eval_repository=f"{repository}@{commit}")
    else:
        return None, config
    fingerprint = _checked(source, config.eval_fingerprint, key)
    return source, dataclasses.replace(config, eval_fingerprint=fingerprint)


def _opened(config: DataConfig, documents: Sequence[str] | None) -> tuple[TextSource, DataConfig]:
    if config.source is Source.DOCUMENTS and documents is None:
        raise UserError.of(
            "documents",
            code=Code.MISSING,
            found="none, with data.source=documents",
            expected="the text, which only Python code can pass",
            remedy="mlmlab.run(config, documents=[...]), the same ones again for a resume; or "
            "data.source=file data.path=FILE",
        )
    if config.source is not Source.DOCUMENTS and documents is not None:
        raise UserError.of(
            "documents",
            code=Code.CONFLICT,
            found=f"{len(documents)} documents, with data.source={config.source.value}",
            expected="one text: either the documents, or what the config names",
            remedy='mlmlab.compose("data=text", "data.source=documents", ...)',
        )
    if documents is not None:
        return PassedDocuments(documents, config.limit), config
    if config.source is Source.BUILTIN:
        if config.builtin is Builtin.PYTHON_DOCS:
            return PythonDocsSource(config.limit), config
        return SmallWorldSource(config.limit), config
    if config.source is Source.URL:
        assert config.url is not None
        file = fetch_url(config.url, config.sha256, cache_folder() / "downloads")
        return FileSource.of((file,), config, config.url), config
    if config.source is Source.HUB:
        assert config.repository is not None
        source, commit = _from_hub(
            config.repository, config.revision, config.files, config, "data.files"
        )
        return source, dataclasses.replace(config, revision=commit)
    assert config.path is not None
    path = _absolute(config.path)
    files = matching_files(path, "data.path")
    name = ", ".join(patterns(config.path))
    return FileSource.of(files, config, name), dataclasses.replace(config, path=path)


def _from_hub(
    repository: str, revision: str | None, named: Files | None, config: DataConfig, key: str
) -> tuple[FileSource, str]:
    """Files of a data set, and the commit they are of."""
    files, commit = fetch_dataset(
        repository, revision, patterns(named), key=key.removesuffix("files")
    )
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    description = f"{repository}@{commit[:8]} ({count} {', '.join(patterns(named))})"
    return FileSource.of(files, config, description), commit


def _absolute(named: Files) -> Files:
    return absolute(named) if isinstance(named, str) else tuple(map(absolute, named))


def _checked(source: TextSource, recorded: str | None, key: str) -> str:
    """The fingerprint of a source's text.

    Args:
        recorded: what it was when the run began; None: the run begins now.
        key: the config key that names the source.

    Raises:
        UserError: the text has changed.
    """
    found = source.text_fingerprint()
    if recorded in (None, found):
        return found
    changed = source.description
    if isinstance(source, FileSource) and len(source.paths) > 1:
        last = max(source.paths, key=lambda path: path.stat().st_mtime)
        changed += f", of which {last} was changed last"
    raise UserError.of(
        key,
        code=Code.CHANGED,
        found=f"{changed}: other text than when the run began",
        expected=f"the same text (its fingerprint was {recorded[:12] if recorded else None})",
        remedy="put the text back; or train a new run on the new text; or, to evaluate, name the "
        "text yourself: data.path=FILE",
    )
