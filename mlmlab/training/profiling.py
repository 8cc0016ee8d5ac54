"""PyTorch's profiler over a few steps: debug.profile_steps=N."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

_WAIT, _WARMUP = 2, 3
"""Steps before those that are watched: compilation, allocation and caches settle."""
_FRAMES = ("ProfilerStep", "Optimizer.")
"""Records around other operations."""


class Profiler:
    """Watches some steps of a run and writes profile/trace.json, for chrome://tracing and
    https://ui.perfetto.dev."""

    def __init__(self, run_dir: Path, steps: int, device: torch.device) -> None:
        """Starts to count.

        Args:
            steps: steps to watch, the sixth of the run and those after it.
        """
        self._device = device.type
        self.path = run_dir / "profile" / "trace.json"
        self.summary: str | None = None
        """The operations that took longest, once all steps have been watched."""
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=steps, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,  # it warns otherwise, although there is one cycle only
        )
        self._profile.start()

    def step(self) -> str | None:
        """A step more.

        Returns:
            What to print, after the last watched one.
        """
        self._profile.step()
        summary, self.summary = self.summary, None
        return summary

    def close(self) -> None:
        """Writes what there is, if the run was shorter."""
        # A profiler of CUDA that is stopped before it records crashes the process (PyTorch 2.11).
        if self._profile.current_action is not ProfilerAction.WARMUP:
            self._profile.stop()

    def _write(self, watched: profile) -> None:
        self.path.parent.mkdir(exist_ok=True)
        watched.export_chrome_trace(str(self.path))
        # An operation's time on the device is that of its kernels, which have separate rows.
        operations = [
            event
            for event in watched.key_averages()
            if event.device_type.name == "CPU" and not event.key.startswith(_FRAMES)
        ]
        operations.sort(key=self._seconds, reverse=True)
        total = sum(map(self._seconds, operations)) or 1
        rows = [
            f"           {self._seconds(event) / total:>6.1%}  {event.key[:60]}"
            for event in operations[:8]
        ]
        self.summary = "\n".join([f"profile    {self.path}; the longest operations:", *rows, ""])

    def _seconds(self, event: Any) -> float:
        """An operation's own time."""
        name = "self_device_time_total" if self._device == "cuda" else "self_cpu_time_total"
        return float(getattr(event, name))
