"""A repository on the Hub becomes a local folder, through the real huggingface_hub client.

Endpoint, token, cache and offline mode come from that client's usual environment variables
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

import fnmatch
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its HTTP library's
    GatedRepoError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mlmlab.errors import UserError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class _Wanted:
    """The files of a repository that are enough, if there is a file of the first pattern."""

    essential: str
    others: tuple[str, ...]

    @property
    def patterns(self) -> list[str]:
        return [self.essential, *self.others]


_MODEL = (
    _Wanted("model*.safetensors", ("*.safetensors.index.json", "config.json", *_TOKENIZER_FILES)),
    _Wanted("pytorch_model.bin", ("config.json", *_TOKENIZER_FILES)),
)
"""Of the weights one format only, the safer one where there is a choice."""
_TOKENIZER = (_Wanted("tokenizer*", _TOKENIZER_FILES), _Wanted("vocab*", _TOKENIZER_FILES))


def fetch_model(source: str) -> tuple[Path, str]:
    """A checkpoint's folder, and the name that means the same checkpoint for ever.

    Args:
        source: a checkpoint's folder, a run's folder (then its export), or owner/name[@revision]
            on the Hub.

    Returns:
        The folder; and the folder's own path, or owner/name@commit.

    Raises:
        UserError: neither a folder nor reachable on the Hub.
    """
    folder = Path(source)
    if folder.exists():
        is_run = (folder / "export" / "config.json").is_file()
        return (folder / "export" if is_run else folder), source
    return _fetch(source, "checkpoint", _MODEL)


def fetch_tokenizer(source: str) -> Path:
    """A tokenizer's folder or file: a local path as it is, else owner/name[@revision]."""
    if Path(source).exists():
        return Path(source)
    return _fetch(source, "tokenizer.path", _TOKENIZER)[0]


def _fetch(source: str, key: str, choices: tuple[_Wanted, ...]) -> tuple[Path, str]:
    repository, _, revision = source.partition("@")
    if not _is_hub_id(source, repository):
        raise UserError.of(
            key,
            found=f"{source}: no such folder",
            expected="a folder, or owner/name[@revision] on the Hub",
            remedy=f"check the path, or write {key}=owner/name",
        )
    if _COMMIT.fullmatch(revision):  # it means the same for ever: no need to ask
        cached = _from_cache(repository, revision, choices)
        if cached is not None:
            return cached, source
    try:
        folder = _download(repository, revision or None, choices)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        problem = {
            GatedRepoError: "a gated repository, and no token that may read it",
            RevisionNotFoundError: f"no revision {revision} in {repository}",
        }.get(type(error), f"no folder {source} here, and no repository {repository} on the Hub")
        raise UserError.of(
            key,
            found=f"{source}: {problem}",
            expected="a folder, or owner/name[@revision] of a repository that you may read",
            remedy="check the spelling; log in with `hf auth login` if it is private",
        ) from error
    except (HTTPError, OSError) as error:
        cached = _from_cache(repository, revision or None, choices)
        if cached is None:
            raise UserError.of(
                key,
                found=f"{source}: no such folder here, and the Hub cannot be reached "
                f"({str(error).splitlines()[0]})",
                expected="a connection, a copy in the Hub client's cache, or a folder",
                remedy=f"{key}=DIR, a folder with the files of {repository}",
            ) from error
        folder = cached
        print(
            f"{source}: the Hub cannot be reached; using the cached copy {folder.name}",
            file=sys.stderr,
        )
    return folder, f"{repository}@{folder.name}"  # the client names its folders by the commit


def _is_hub_id(source: str, repository: str) -> bool:
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return _HUB_ID.fullmatch(source) is not None


def _download(repository: str, revision: str | None, choices: tuple[_Wanted, ...]) -> Path:
    info = huggingface_hub.HfApi().model_info(repository, revision=revision)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    wanted = next((w for w in choices if fnmatch.filter(files, w.essential)), choices[0])
    # By the revision's name, not its commit: only so can the cache later be asked for it offline.
    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=wanted.patterns
        )
    )


def _from_cache(repository: str, revision: str | None, choices: tuple[_Wanted, ...]) -> Path | None:
    """The complete copy that an earlier run left in the client's cache, if there is one."""
    for wanted in choices:
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    repository,
                    revision=revision,
                    allow_patterns=wanted.patterns,
                    local_files_only=True,
                )
            )
        except OSError:
            continue
        if any(folder.glob(wanted.essential)):
            return folder
    return None
