"""The commands whose config Hydra composes, and where its YAML is."""

from dataclasses import dataclass
from pathlib import Path

from mlmlab.config import EvaluateConfig, RunConfig


@dataclass(frozen=True)
class Command:
    """A command whose config Hydra composes."""

    name: str
    """What `python -m` runs."""
    primary: str
    """Its YAML under conf/, without the ending."""
    kind: type
    """The dataclass that the result is read as."""


TRAIN = Command("mlmlab.train", "train", RunConfig)
EVALUATE = Command("mlmlab.evaluate", "evaluate", EvaluateConfig)


def config_folder() -> Path:
    """conf/: inside the package where it was installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"
