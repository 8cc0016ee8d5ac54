"""A URL becomes a verified local file: progress, checksum, resumed and atomic, fetched once."""

import hashlib
import http.client
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from mlmlab.errors import Code, UserError
from mlmlab.fetch.cache import file_digest, locked, unwritable, write_at_once

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 4


def fetch_url(url: str, sha256: str | None, cache: Path) -> Path:
    """Downloads a file, or finds the copy of an earlier run.

    Args:
        url: http or https.
        sha256: expected checksum in hexadecimal; None: not checked.
        cache: the folder for downloads, one subfolder a URL.

    Returns:
        The file, under the name it has in the URL.

    Raises:
        UserError: out of reach, refused by the server, or with another checksum.
    """
    name = _file_name(url)
    if name is None:
        raise UserError.of(
            "data.url",
            code=Code.INVALID,
            found=url or "an empty text",
            expected="an address of a file: https://host/path/file.json.gz",
            remedy="data.source=file data.path=FILE reads a file on this machine",
        )
    folder = cache / hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()[:16]
    target = folder / name
    digest = folder / f"{name}.sha256"
    try:
        if not _is_intact(target, digest, sha256):
            with locked(folder, f"downloading {url}"):
                if not _is_intact(target, digest, sha256):  # nor fetched by another process by now
                    _fetch(url, sha256, target, digest)
    except OSError as error:
        raise unwritable(cache, error) from error
    return target


def _is_intact(target: Path, digest: Path, sha256: str | None) -> bool:
    """Whether the file is there and as it was downloaded."""
    if not target.is_file():
        return False
    if sha256 is None:
        sha256 = digest.read_text() if digest.is_file() else ""
    return file_digest(target) == sha256.lower()


def _fetch(url: str, sha256: str | None, target: Path, digest: Path) -> None:
    """Downloads the file; no other process does so at the same time."""
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        print(f"{target} is not what was downloaded: downloading it again", file=sys.stderr)
    partial = target.with_name(f"{target.name}.partial")
    if sha256 is None:  # nothing would show that the file is a mixture of two versions
        partial.unlink(missing_ok=True)
    _download(url, partial)
    found = file_digest(partial)
    if sha256 is not None and found != sha256.lower():
        partial.unlink()
        raise UserError.of(
            "data.sha256",
            code=Code.CORRUPT,
            found=f"{found} for {url}",
            expected=sha256,
            remedy="the file has changed or the download is not genuine: get a copy you trust "
            "and set data.source=file data.path=FILE",
        )
    write_at_once(digest, found)
    partial.replace(target)


def _file_name(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (Path(parts.path).name or None) if parts.scheme in ("http", "https") else None


def _download(url: str, partial: Path) -> None:
    """Appends to `partial` until the file is complete; a broken connection is taken up again."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue_download(url, partial)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # nothing is missing, or the server's file has changed
                partial.unlink(missing_ok=True)
                continue
            _refuse(url, f"the server answers {error.code} {error.reason}", error)
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS or not partial.exists():
                reason = getattr(error, "reason", None) or error
                if isinstance(reason, TimeoutError):
                    reason = f"no answer for {_TIMEOUT_SECONDS} seconds"
                _refuse(url, f"it cannot be reached ({reason})", error)
    _refuse(url, "the download did not complete", None)


def _refuse(url: str, why: str, error: BaseException | None) -> None:
    raise UserError.of(
        "data.url",
        code=Code.UNREACHABLE,
        found=f"{url}: {why}",
        expected="a file that can be downloaded",
        remedy="try again later, or get the file by other means and set data.source=file "
        "data.path=FILE",
    ) from error


def _continue_download(url: str, partial: Path) -> None:
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "mlmlab"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        continued = response.status == 206
        done = done if continued else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with (
            partial.open("ab" if continued else "wb") as file,
            tqdm(
                total=total, initial=done, desc="download", unit="B", unit_scale=True,
                ncols=79, leave=False, disable=None,
            ) as bar,
        ):  # fmt: skip
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size != total:
            raise http.client.IncompleteRead(b"", total - partial.stat().st_size)
