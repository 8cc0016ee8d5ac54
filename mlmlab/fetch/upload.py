"""Local files become one commit on the Hub, through the real huggingface_hub client.

Endpoint and token come from that client's usual environment variables (HF_ENDPOINT, HF_TOKEN) and
from `hf auth login`. The token is never part of what is returned, printed or raised.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its HTTP library's
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mlmlab.errors import Code, Problem, UserError
from mlmlab.fetch.hub import client, reason

LOG_IN = "`hf auth login` with a token that may write, or one in the environment variable HF_TOKEN"


@dataclass(frozen=True)
class Destination:
    """Where on the Hub files go."""

    repository: str
    """owner/name."""
    private: bool = False
    """Whether a repository that is not there yet is created as a private one."""
    revision: str | None = None
    """A branch, created where it is not there yet. None: main."""

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def name_problem(key: str, repository: str) -> Problem | None:
    """What is wrong with the name of a repository to be written.

    Args:
        key: the config key or argument that it was given as.
    """
    try:
        validate_repo_id(repository)
        is_complete = re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII) is not None
    except HFValidationError:
        is_complete = False
    if is_complete:
        return None
    name = re.sub(r"[^\w.-]+", "-", repository.rpartition("/")[2], flags=re.ASCII).strip("-.")
    return Problem(
        key,
        repository or "an empty text",
        "owner/name on the Hub: letters, digits, . _ and -",
        f"YOUR_NAME/{name or 'my-model'}",
        code=Code.INVALID,
    )


def check_access(key: str) -> None:
    """Refuses what cannot work, as far as this machine knows, without a request.

    Args:
        key: the config key or argument that asks for the upload.

    Raises:
        UserError: the client is offline, or there is no token, or one that cannot be sent.
    """
    if constants.HF_HUB_OFFLINE:
        raise UserError.of(
            key,
            code=Code.UNREACHABLE,
            found="HF_HUB_OFFLINE=1 in the environment: the Hub's client makes no request",
            expected="a connection",
            remedy="HF_HUB_OFFLINE=0; or push later, on a machine with a connection: "
            "python -m mlmlab.push RUN_DIR OWNER/NAME",
        )
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError.of(
            key,
            code=Code.MISSING,
            found="no token for the Hub",
            expected="a login: nobody may write there without one",
            remedy=LOG_IN,
        )
    if re.fullmatch("[!-~]+", token) is None:  # the HTTP library would quote it in its message
        raise UserError.of(
            key,
            code=Code.INVALID,
            found="a token with characters that no token has",
            expected="one as the Hub shows it: hf_ and letters",
            remedy=LOG_IN,
        )


def upload(files: Mapping[str, Path | bytes], to: Destination, *, key: str, message: str) -> str:
    """Writes files in one commit, which other people see completely or not at all.

    Files that the repository has besides them stay. A file that is there with the same content is
    not sent again.

    Args:
        files: their content by their names in the repository.
        key: the config key or argument that a refusal names.
        message: the commit's.

    Returns:
        The URL of the repository, or of its revision.

    Raises:
        UserError: no token, no right to write there, no such owner, no connection, or a card whose
            metadata the Hub refuses.
    """
    check_access(key)
    api = client()
    additions = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    try:
        url = api.create_repo(to.repository, private=to.private or None, exist_ok=True)
        if to.revision is not None:
            api.create_branch(to.repository, branch=to.revision, exist_ok=True)
        # Not upload_folder, which may need several commits.
        api.create_commit(to.repository, additions, commit_message=message, revision=to.revision)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _refusal(error, to, key) from error
    return str(url) if to.revision is None else f"{url}/tree/{to.revision}"


def _refusal(error: Exception, to: Destination, key: str) -> UserError:
    """The refusal of an upload that failed."""
    cause = error.__cause__ if type(error) is RuntimeError else None  # of one file of several
    error = cause if isinstance(cause, Exception) else error
    owner = to.repository.partition("/")[0]
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return UserError.of(
            key,
            code=Code.INVALID,
            found=f"{to}: the Hub does not accept the token (401)",
            expected="one that is valid and may write",
            remedy=f"{LOG_IN}; where both are there, HF_TOKEN counts",
        )
    if status == 403:
        return UserError.of(
            key,
            code=Code.NOT_WRITABLE,
            found=f"{to}: the token may not write there (403)",
            expected=f"a token with the right to write, of {owner} or of one of its members",
            remedy=LOG_IN,
        )
    if status == 404:
        return UserError.of(
            key,
            code=Code.NOT_FOUND,
            found=f"{to}: nothing of that name, or nothing that this token may see (404)",
            expected="an owner that exists, you or an organization of yours",
            remedy=f"check the spelling of {owner}; or {LOG_IN}",
        )
    if status == 400 or isinstance(error, ValueError):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return UserError.of(
            key,
            code=Code.INVALID,
            found=f"{to}: the Hub refuses the upload ({' '.join(lines)})",
            expected="files that it takes, and a README.md with valid metadata",
            remedy="correct what it names",
        )
    return UserError.of(
        key,
        code=Code.UNREACHABLE,
        found=f"{to}: the upload failed ({reason(error)})",
        expected="a connection to the Hub",
        remedy="try again later; what has been uploaded is not sent twice",
    )
