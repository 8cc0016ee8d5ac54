"""summary.json: the one page about a finished run."""

import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mlmlab.errors import Code, UserError
from mlmlab.system import peak_process_bytes


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to. Losses in nats a predicted token, memory in bytes."""

    eval_loss: float
    eval_perplexity: float
    eval_loss_standard_error: float
    eval_masked_tokens: int
    eval_top1_accuracy: float
    """Share of the predicted tokens that are the model's first choice."""
    eval_top5_accuracy: float
    """Share among its first five."""
    own_figures: Mapping[str, float]
    """Those of the user's own evaluators, by tag (eval/NAME/...)."""
    monitor: str
    """The tag of the figure that ranks the evaluations (eval.monitor)."""
    best_value: float
    """Of that figure, in the best evaluation."""
    best_eval_perplexity: float
    """Of the best evaluation."""
    initial_eval_perplexity: float
    """Before the first step."""
    initial_eval_loss_standard_error: float
    floor_perplexity: float | None
    """The exact lowest perplexity on these blocks and masks; null where it is not known."""
    steps: int
    """Steps applied."""
    exported_step: int
    """Steps applied to the weights in export/, which the evaluation above is of."""
    tokens: int
    """Tokens in the batches consumed."""
    seconds: float
    """Of training, evaluations included."""
    tokens_per_second: float
    """Of training, evaluations excluded."""
    peak_memory_bytes: int | None
    device: str
    """cpu or cuda."""
    precision: str
    threads: int
    """CPU threads of PyTorch in each process."""
    world_size: int
    """Processes."""
    processor: str
    """The CPU's name."""
    gpu: str | None
    """The name of the CUDA device that rank 0 used."""
    cuda_version: str | None
    """Of PyTorch's build; null for one without CUDA."""
    seed: int
    git_commit: str | None
    versions: dict[str, str]
    run_dir: str

    @property
    def figures(self) -> dict[str, float]:
        """All figures of the evaluation above, by tag; `figures[monitor]` is what a sweep's job
        comes to."""
        own = self.own_figures
        return {"eval/loss": self.eval_loss, "eval/perplexity": self.eval_perplexity, **own}

    @classmethod
    def read(cls, path: Path) -> "Summary":
        """What `write` wrote.

        Raises:
            UserError: another version wrote it, or it is damaged.
        """
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for field in dataclasses.fields(cls):
                if field.type is float and content[field.name] is None:
                    content[field.name] = math.nan
            own = content["own_figures"]
            content["own_figures"] = {tag: math.nan if x is None else x for tag, x in own.items()}
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError.of(
                str(path),
                code=Code.CORRUPT,
                found=str(error),
                expected="the summary that this version of mlmlab writes",
                remedy="remove the file: resume=RUN_DIR then writes it again",
            ) from error

    def write(self, path: Path) -> None:
        """As strict JSON: a figure that is not finite becomes null."""
        content = _finite(dataclasses.asdict(self))
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The value with None in place of what strict JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_bytes(device: torch.device) -> int | None:
    """The largest memory so far: of the CUDA device's tensors, or else of the process. None: not
    known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_process_bytes()


def versions() -> dict[str, str]:
    """The versions that a number may depend on."""
    packages = ("mlmlab", "torch", "tokenizers", "numpy", "numba")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout on the path, not installed
            found[package] = "unknown"
    return found


def processor_name() -> str:
    """The CPU's name, as the operating system has it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of mlmlab's own checkout, with `-dirty` where tracked files differ from it; None
    for an installed wheel."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        # --exclude=* ignores tags: the full commit is wanted, and whether the tree is as committed
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        command.append("--exclude=*")
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
