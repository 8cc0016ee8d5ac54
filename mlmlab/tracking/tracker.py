"""Every event goes to every sink; and the log files, which a resumed run cuts."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlmlab.errors import RunFailed
from mlmlab.system import flush
from mlmlab.tracking.sinks import BUILT_IN, METRICS, Sink
from mlmlab.tracking.tensorboard import EVENTS


class Tracker:
    """The sinks of a run.

    A failure of a built-in one ends the run, which can be resumed once there is room on the disk.
    One of the user's own that fails is reported in a line and left out from then on: a night of
    training is worth more than a server that does not answer.
    """

    def __init__(
        self,
        config: Any,
        run_dir: Path,
        sinks: Mapping[str, partial[Sink]],
        *,
        sizes: Mapping[str, int],
        tell: Callable[[str], None],
    ) -> None:
        """Cuts the log files of the run to those sizes, then builds the sinks.

        Args:
            config: the run's.
            sinks: from `find_sinks`.
            sizes: what `flush` returned for the checkpoint that the run resumes from. A log file
                that had none is removed.
            tell: prints a line.
        """
        self.run_dir = run_dir
        self.tell = tell
        for name, file in self._files().items():
            if name not in sizes:
                file.unlink()
            elif file.stat().st_size > sizes[name]:
                os.truncate(file, sizes[name])
        self.sinks: dict[str, Sink] = {}
        try:
            for name, build in sinks.items():
                self.sinks[name] = build(config, run_dir)
        except BaseException:
            self.close()  # those that are open
            raise

    def _files(self) -> dict[str, Path]:
        """The log files in the run's folder, by name, whatever sinks the run has now."""
        patterns = (METRICS, f"{EVENTS}/events.out.tfevents.*")
        files = (file for pattern in patterns for file in self.run_dir.glob(pattern))
        return {file.relative_to(self.run_dir).as_posix(): file for file in files}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One event; see `Sink.log`.

        Raises:
            RunFailed: the disk is full.
        """
        self._each(step, lambda sink: sink.log(step, figures))

    def text(self, step: int, name: str, value: str) -> None:
        """A text; see `Sink.text`.

        Raises:
            RunFailed: the disk is full.
        """
        self._each(step, lambda sink: sink.text(step, name, value))

    def _each(self, step: int, act: Callable[[Sink], None]) -> None:
        for name, sink in list(self.sinks.items()):
            try:
                act(sink)
            except Exception as error:
                if name not in BUILT_IN:
                    del self.sinks[name]
                    self.tell(
                        f"{name} FAILED at step {step:,} and gets no more figures; the run "
                        f"continues. {type(error).__name__}: {error}"
                    )
                elif isinstance(error, OSError):
                    raise RunFailed(
                        f"step {step}: a figure could not be written to {self.run_dir} ({name}): "
                        f"{error.strerror}.\nWith room on the disk, resume=RUN_DIR resumes from "
                        "the newest checkpoint."
                    ) from error
                else:
                    raise

    def flush(self) -> dict[str, int]:
        """Waits until everything logged so far is on the disk.

        Returns:
            The size of each log file in bytes, by its name in the run's folder.
        """
        files = self._files()
        for file in files.values():
            flush(file)
        return {name: file.stat().st_size for name, file in files.items()}

    def close(self) -> None:
        """Closes the sinks. A full disk was reported when a figure was logged."""
        for name, sink in self.sinks.items():
            try:
                sink.close()
            except Exception as error:
                if name not in BUILT_IN:
                    self.tell(f"{name} FAILED when it was closed. {type(error).__name__}: {error}")
                elif not isinstance(error, OSError):
                    raise
