"""PyTorch's profiler over a few steps: debug.profile_steps=N."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WAIT, _WARMUP = 2, 3
"""Steps before those that are watched: compilation, allocation and caches settle."""


class Profiler:
    """Watches some steps of a run and writes profile/trace.json, for chrome://tracing and
    https://ui.perfetto.dev."""

    def __init__(self, run_dir: Path, steps: int) -> None:
        """Starts to count.

        Args:
            steps: steps to watch, the sixth of the run and those after it.
        """
        self.path = run_dir / "profile" / "trace.json"
        self.summary: str | None = None
        """The operations that took longest, once all steps have been watched."""
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_WAIT, warmup=_WARMUP, active=steps, repeat=1),
            on_trace_ready=self._write,
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
        self._profile.stop()

    def _write(self, watched: profile) -> None:
        self.path.parent.mkdir(exist_ok=True)
        watched.export_chrome_trace(str(self.path))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        operations = [e for e in watched.key_averages() if not e.key.startswith("ProfilerStep")]
        averages = sorted(operations, key=lambda event: -_self_time(event, by))
        total = sum(_self_time(event, by) for event in averages) or 1
        rows = [
            f"           {_self_time(event, by) / total:>6.1%}  {event.key[:60]}"
            for event in averages[:8]
        ]
        self.summary = "\n".join([f"profile    {self.path}; the longest operations:", *rows, ""])


def _self_time(event: object, by: str) -> float:
    return float(getattr(event, by.replace("cuda", "device"), 0.0) or 0.0)
