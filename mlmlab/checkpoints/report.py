"""What became of every tensor of a checkpoint, said aloud."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """The account of one checkpoint: nothing is dropped or made up silently."""

    source: str
    """The folder, or owner/name@commit."""
    loaded: tuple[str, ...]
    """Our parameters that were read from the file."""
    tied: tuple[str, ...]
    """Names in the file that repeat a tensor already loaded."""
    ignored: tuple[str, ...]
    """Names in the file that a masked language model has no use for."""
    fresh: tuple[str, ...]
    """Our parameters that the file lacks and that were newly initialized, as was asked for."""

    def __str__(self) -> str:
        lines = [f"checkpoint {self.source}: {len(self.loaded)} parameters loaded"]
        for label, names in (("tied", self.tied), ("ignored", self.ignored), ("fresh", self.fresh)):
            if names:
                lines.append(f"  {label:<8} {_grouped(names)}")
        return "\n".join(lines)


def _grouped(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
