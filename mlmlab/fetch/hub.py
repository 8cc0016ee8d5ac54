"""A repository on the Hub becomes a local folder, through the real huggingface_hub client.

Endpoint, token, cache and offline mode come from that client's usual environment variables
(HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

import fnmatch
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its HTTP library's
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    disable_progress_bars,
    logging,
    validate_repo_id,
)

from mlmlab.errors import Code, UserError
from mlmlab.fetch.cache import local_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_OWNERS = {
    "distil*bert*": "distilbert",
    "bert-*": "google-bert",
    "roberta-*": "FacebookAI",
    "xlm-roberta-*": "FacebookAI",
    "camembert-*": "almanach",
}
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
    """The files of a repository that are enough, if there is one of each essential pattern."""

    essential: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def patterns(self) -> list[str]:
        return [*self.essential, *self.others]

    def missing(self, names: Sequence[str]) -> list[str]:
        """The essential patterns that none of the files match."""
        return [pattern for pattern in self.essential if not fnmatch.filter(names, pattern)]


_CONFIGS = ("config.json", *_TOKENIZER_FILES)
_MODEL = (
    _Wanted(("model*.safetensors",), ("*.safetensors.index.json", *_CONFIGS)),
    _Wanted(("pytorch_model.bin",), _CONFIGS),
)
"""Of the weights one format only, the safer one where there is a choice."""
_TOKENIZER = (_Wanted(("tokenizer*",), _TOKENIZER_FILES), _Wanted(("vocab*",), _TOKENIZER_FILES))


@dataclass(frozen=True)
class _Request:
    """What is wanted of which repository."""

    key: str
    """The config key that a message names."""
    repository: str
    revision: str | None
    """A branch, a tag or a commit; None for main."""
    choices: tuple[_Wanted, ...]
    """The first that the repository has is downloaded."""
    remedy: str
    """What works without the Hub."""
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def fetch_model(source: str) -> tuple[Path, str]:
    """A checkpoint's folder, and its pinned name.

    Args:
        source: a checkpoint's folder, a run's folder (then its export), or owner/name[@revision]
            on the Hub.

    Returns:
        The folder; and `source` itself where it is a folder, else owner/name@commit.

    Raises:
        UserError: neither a folder nor reachable on the Hub.
    """
    folder = local_path(source)
    if folder is not None:
        if (folder / "export" / "config.json").is_file():
            return folder / "export", source
        is_model = (folder / "config.json").is_file()
        if (folder / "config.yaml").is_file() and not is_model:
            saved = sorted(folder.glob("checkpoints/step_*"), key=lambda f: int(f.name[5:]))
            newest = f"checkpoint={saved[-1]}, its newest" if saved else "wait for it"
            raise UserError.of(
                "checkpoint",
                code=Code.NOT_FOUND,
                found=f"{source}: a run without an export, so it has not finished",
                expected="a finished run, or a checkpoint's folder",
                remedy=newest,
            )
        if not is_model and (runs := sorted(f.parent for f in folder.glob("*/config.yaml"))):
            raise UserError.of(
                "checkpoint",
                code=Code.NOT_FOUND,
                found=f"{source}: a folder of runs",
                expected="one of them",
                remedy=f"checkpoint={runs[0]}",
            )
        return folder, source
    return _fetch_named(source, "checkpoint", _MODEL)


def fetch_tokenizer(source: str) -> tuple[Path, str]:
    """A tokenizer's folder or file, and its pinned name.

    Args:
        source: a folder, a file, a run's folder (then its export), or owner/name[@revision].

    Returns:
        The folder or file; and `source` itself where it is local, else owner/name@commit.
    """
    folder = local_path(source)
    if folder is not None:
        export = folder / "export"
        return export if (export / "tokenizer.json").is_file() else folder, source
    return _fetch_named(source, "tokenizer.path", _TOKENIZER)


def fetch_dataset(
    repository: str, revision: str | None, files: Sequence[str], *, key: str = "data."
) -> tuple[tuple[Path, ...], str]:
    """Files of a data set.

    Args:
        repository: owner/name.
        revision: a branch, a tag or a commit; None for main.
        files: globs over the names in the repository, folders included.
        key: how the config keys that name them begin: data. or data.eval_.

    Returns:
        The files that match: those of the first glob sorted by name, then further ones of the
        next. And the commit they are of.

    Raises:
        UserError: out of reach, or no file matches a glob; the message lists those there are.
    """
    request = _Request(
        f"{key}repository",
        repository,
        revision,
        (_Wanted(tuple(files) or ("",)),),
        "data.source=file data.path=FILE, with a copy of your own",
        "dataset",
    )
    if not _is_hub_id(str(request), repository):
        raise UserError.of(
            request.key,
            code=Code.INVALID,
            found=repository,
            expected="OWNER/NAME of a data set on the Hub",
            remedy="data.repository=stanfordnlp/imdb data.files='plain_text/train-*.parquet'",
        )
    folder = _fetch(request)
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    matches = (name for pattern in files for name in fnmatch.filter(names, pattern))
    return tuple(folder / name for name in dict.fromkeys(matches)), folder.name


def _fetch_named(source: str, key: str, choices: tuple[_Wanted, ...]) -> tuple[Path, str]:
    """The folder and the pinned name of owner/name[@revision]."""
    repository, _, revision = source.partition("@")
    if not _is_hub_id(source, repository):
        raise UserError.of(
            key,
            code=Code.NOT_FOUND,
            found=f"{source}: no such folder",
            expected="a folder, or owner/name[@revision] on the Hub",
            remedy=f"{key}={owner}/{source}"
            if (owner := _owner_of(repository))
            else f"check the path, or write {key}=owner/name",
        )
    remedy = f"{key}=DIR, a folder with the files of {repository}"
    folder = _fetch(_Request(key, repository, revision or None, choices, remedy))
    return folder, f"{repository}@{folder.name}"  # the client names folders by the commit


def _owner_of(name: str) -> str | None:
    """Who publishes a model that once had no owner on the Hub: bert-base-uncased."""
    owners = (owner for pattern, owner in _OWNERS.items() if fnmatch.fnmatch(name, pattern))
    return next(owners, None)


def _fetch(request: _Request) -> Path:
    """The repository's folder in the client's cache, its wanted files complete."""
    if request.revision is not None and _COMMIT.fullmatch(request.revision):
        cached = _from_cache(request)  # a commit never changes: no need to ask
        if cached is not None:
            return cached
    here = "no such folder here, and " if request.kind == "model" else ""
    try:
        return _download(request)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        problem = {
            GatedRepoError: "a gated repository, and no token that may read it",
            RevisionNotFoundError: f"no revision {request.revision} in {request.repository}",
        }.get(type(error), f"no {request.kind} {request.repository} on the Hub")
        raise UserError.of(
            request.key,
            code=Code.NOT_FOUND,
            found=f"{request}: {here}{problem}",
            expected="owner/name of a repository that you may read"
            if request.kind == "dataset"
            else "a folder, or owner/name[@revision] of a repository that you may read",
            remedy="check the spelling; log in with `hf auth login` if it is private",
        ) from error
    except (HTTPError, OSError) as error:
        cached = _from_cache(request)
        is_refused = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
        problem = "the Hub cannot be reached"
        if is_refused:
            problem = "the Hub does not accept the token"
        elif type(error) is OSError:  # how the client says that a file has another size
            problem = "the download is not complete"
        if cached is None:
            raise UserError.of(
                request.key,
                code=Code.INVALID if is_refused else Code.UNREACHABLE,
                found=f"{request}: {here}{problem} ({reason(error)})",
                expected="a connection, or a copy in the Hub client's cache"
                if not is_refused
                else "a token that is valid, or none for a public repository",
                remedy=f"`hf auth login`, or another HF_TOKEN; or {request.remedy}"
                if is_refused
                else request.remedy,
            ) from error
        print(f"{request}: {problem}; using the cached copy {cached.name}", file=sys.stderr)
        return cached


def _is_hub_id(source: str, repository: str) -> bool:
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return _HUB_ID.fullmatch(source) is not None


def client() -> huggingface_hub.HfApi:
    """The Hub's client: no progress bars where nobody watches, and no advice to log in."""
    if not sys.stderr.isatty():
        disable_progress_bars()
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return huggingface_hub.HfApi()


def reason(error: Exception) -> str:
    """The first line of what the client or its HTTP library says, without the token: they quote a
    header that cannot be sent."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"Bearer .*", "Bearer ...", first)


def _download(request: _Request) -> Path:
    api = client()
    ask = api.dataset_info if request.kind == "dataset" else api.model_info
    info = ask(request.repository, revision=request.revision)
    files = sorted(sibling.rfilename for sibling in info.siblings or ())
    wanted = next((w for w in request.choices if not w.missing(files)), None)
    if wanted is None and request.kind == "dataset":
        pattern = request.choices[0].missing(files)[0]
        key = request.key.replace("repository", "files")
        shown = ", ".join(files[:12]) + (f" and {len(files) - 12} more" if len(files) > 12 else "")
        raise UserError.of(
            key,
            code=Code.NOT_FOUND,
            found=f"{pattern or 'null'}, and {request.repository} holds: {shown or 'nothing'}",
            expected="a pattern that matches some of its files",
            remedy=f"{key}='FOLDER/*.parquet', quoted so that the shell leaves it alone",
        )
    # By the revision's name, not its commit: only so can the cache later be asked for it offline.
    return Path(
        huggingface_hub.snapshot_download(
            request.repository,
            revision=request.revision,
            repo_type=request.kind,
            allow_patterns=(wanted or request.choices[0]).patterns,
        )
    )


def _from_cache(request: _Request) -> Path | None:
    """The complete copy that an earlier run left in the client's cache, if there is one."""
    for wanted in request.choices:
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    request.repository,
                    revision=request.revision,
                    repo_type=request.kind,
                    allow_patterns=wanted.patterns,
                    local_files_only=True,
                )
            )
        except OSError:
            continue
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        if not wanted.missing(names):
            return folder
    return None
