"""A run's export goes to the Hub: its card names the repository and gets a picture, and the run's
TensorBoard files come along where that is asked for."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlmlab.checkpoints.card import PLACE, with_curve
from mlmlab.errors import Code, UserError
from mlmlab.fetch.hub import reason
from mlmlab.fetch.upload import Destination, name_problem, upload
from mlmlab.tracking.curve import perplexity_by_step
from mlmlab.tracking.style import Style, styled

_CARD = "README.md"
_PICTURE = "perplexity.png"
_CARD_LINES = 40
"""Of the card, in the preview."""


@dataclass(frozen=True)
class Push:
    """What is sent, and where to."""

    to: Destination
    files: Mapping[str, Path | bytes]
    """Their content by their names in the repository."""

    @classmethod
    def of(cls, folder: Path, to: Destination, *, with_tensorboard: bool = False) -> "Push":
        """Collects the files.

        Raises:
            UserError: no export there, a name that is none on the Hub, or no TensorBoard files.
        """
        if problem := name_problem("OWNER/NAME", to.repository):
            raise UserError([problem])
        export = _export(folder)
        files: dict[str, Path | bytes] = {
            name: file
            for file in sorted(export.rglob("*"))
            if file.is_file()
            for name in [file.relative_to(export).as_posix()]
            if not any(part.startswith(".") for part in Path(name).parts)
        }
        run_dir = export.parent
        if _CARD in files:
            card = (export / _CARD).read_text(encoding="utf-8").replace(PLACE, to.repository)
            if _PICTURE not in files and (picture := perplexity_by_step(run_dir)):
                files[_PICTURE] = picture
                card = with_curve(card, _PICTURE)
            files[_CARD] = card.encode()
        if with_tensorboard:
            from mlmlab.tracking.tensorboard import EVENTS  # imports PyTorch

            events = sorted((run_dir / EVENTS).glob("events.out.tfevents.*"))
            if not events:
                raise UserError.of(
                    "--tensorboard",
                    code=Code.NOT_FOUND,
                    found=f"no event files in {run_dir / EVENTS}",
                    expected="a run that has logged to TensorBoard",
                    remedy="without --tensorboard",
                )
            files |= {f"{EVENTS}/{file.name}": file for file in events}
        return cls(to, files)

    def send(self, key: str = "OWNER/NAME") -> str:
        """Uploads the files in one commit.

        Args:
            key: what a refusal names.

        Returns:
            The repository's URL.

        Raises:
            UserError: why it failed.
        """
        return upload(self.files, self.to, key=key, message="Upload with mlmlab")

    def preview(self) -> str:
        """What `send` would do: the repository, the files with their sizes in bytes, and the
        beginning of the card."""
        sizes = {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }
        kind = ", created as a private repository if there is none" * self.to.private
        lines = [f"{self.to}{kind}", ""]
        lines += [f"{size:>15,}  {name}" for name, size in sizes.items()]
        lines += [f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files", ""]
        card = self.files.get(_CARD)
        if isinstance(card, bytes):
            shown = card.decode().splitlines()
            lines += shown[:_CARD_LINES]
            lines += ["..."] * (len(shown) > _CARD_LINES)
        else:
            lines.append("no card: there is no README.md in the folder")
        return "\n".join([*lines, "", "nothing was sent (--dry-run)"])


def push_finished(run_dir: Path, repository: str, *, quiet: bool) -> None:
    """Sends the export of a run that has finished. If that fails, a message says why and what to
    type, and the run's result stays what it is."""
    try:
        url = Push.of(run_dir, Destination(repository)).send("train.push_to_hub")
    except Exception as error:  # whatever it is, it does not undo a night of training
        sys.stdout.flush()
        head = styled("mlmlab:", Style.ERROR, sys.stderr)
        why = error if isinstance(error, UserError) else f"{type(error).__name__}: {reason(error)}"
        command = shlex.join(["python", "-m", "mlmlab.push", str(run_dir), repository])
        print(
            f"{head} the run is complete, but its export was not pushed to the Hub.\n{why}\n"
            f"This pushes it:\n  {command}",
            file=sys.stderr,
            flush=True,
        )
        return
    if not quiet:
        print(f"pushed     {url}", flush=True)


def _export(folder: Path) -> Path:
    """The export that a folder is or has.

    Raises:
        UserError: neither.
    """
    if (folder / "export" / "config.json").is_file():
        return folder / "export"
    is_model = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    if is_model and not (folder / "progress.json").is_file():
        return folder.resolve()
    found, remedy = f"{folder}: no such folder", "check the path"
    if is_model:
        found = f"{folder}: a checkpoint to resume from, with its optimizer's state"
        remedy = "the folder of the run, once it has finished"
    elif (folder / "config.yaml").is_file():
        found = f"{folder}: a run without an export, so it has not finished"
        remedy = f"wait for it; or python -m mlmlab.train resume={folder}"
    elif runs := sorted(file.parents[1] for file in folder.glob("*/export/config.json")):
        found, remedy = f"{folder}: a folder of runs", f"one of them: {runs[0]}"
    elif folder.exists():
        found, remedy = f"{folder}: no config.json with weights beside it", "RUN_DIR/export"
    raise UserError.of(
        "RUN_OR_EXPORT_DIR",
        code=Code.NOT_FOUND,
        found=found,
        expected="the folder of a finished run, or an export in the Hub's layout",
        remedy=remedy,
    )
