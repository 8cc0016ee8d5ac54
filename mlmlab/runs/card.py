"""The model card of a run: what of its config and its summary is published.

A card is for anybody to read. Of local paths it has the last name only, of a URL neither user nor
query, and nothing of `tracking.*`, where keys to other services may be.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from mlmlab.checkpoints.card import CardText, model_card
from mlmlab.config import RunConfig
from mlmlab.data.config import DataConfig, Files, Source, patterns
from mlmlab.runs import terminal
from mlmlab.runs.setup import Inputs
from mlmlab.tracking.summary import Summary

COMMAND = "command.txt"
"""In a run's folder, the command line that began it; not there for a run that Python began."""
_UNPUBLISHED = re.compile(r"(run_dir|resume|sweep_dir|varies|tracking\b.*|train\.push_to_hub)")
"""Keys that say nothing about the model."""
_LOCAL_PATH = re.compile(r"(?<![\w:/.@-])~?/[^\s,\]'\"][^,\]'\"]*")


def card(config: RunConfig, inputs: Inputs, summary: Summary, run_dir: Path) -> str:
    """The card of a finished run's export."""
    start = config.checkpoint or "fresh weights"
    is_local = Path(start).is_absolute()
    train_text = test_text = _text(config.data, inputs.text.source.description)
    if inputs.test_text is not inputs.text:
        test_text = _eval_text(config.data, inputs.test_text.source.description)
    return model_card(
        config.name,
        start=Path(start).name if is_local else start,
        base_model=start.partition("@")[0] if "@" in start and not is_local else None,
        train_text=train_text,
        test_text=test_text,
        perplexity=summary.eval_perplexity,
        result=_result(summary, test_text),
        training=_training(config, summary, train_text, run_dir),
        environment=_environment(summary),
        command=_command(config, summary, run_dir),
        mask_token=inputs.tokenizer.mask_token,
    )


def _result(summary: Summary, text: CardText) -> dict[str, str]:
    before = _with_error(summary.initial_eval_perplexity, summary.initial_eval_loss_standard_error)
    after = _with_error(summary.eval_perplexity, summary.eval_loss_standard_error)
    table = {
        "masked perplexity on the test split": after,
        "before training": before,
        "predicted test tokens": f"{summary.eval_masked_tokens:,}",
        "test text": _origin(text),
    }
    if summary.floor_perplexity is not None:
        table["exact floor of that perplexity"] = f"{summary.floor_perplexity:.3f}"
    return table


def _with_error(perplexity: float, loss_error: float) -> str:
    error = perplexity * loss_error
    return f"{perplexity:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f} (standard error)")


def _training(config: RunConfig, summary: Summary, text: CardText, run_dir: Path) -> dict[str, str]:
    data, masking, train = config.data, config.masking, config.train
    table = {"recipe": name} if (name := _recipe(run_dir)) else {}
    table |= {
        "text": _origin(text),
        "masking": f"{terminal.masking_policy(masking)}; {100 * masking.mask_fraction:g}% masked, "
        f"{100 * masking.random_fraction:g}% random",
        "steps": f"{summary.exported_step:,} of {train.batch_size} examples of "
        f"{data.block_size} tokens",
        "optimizer": train.optimizer,
        "learning rate": f"{train.learning_rate:g}, {train.schedule}",
        "weight decay": f"{train.weight_decay:g}",
        "seed": f"{config.seed}",
    }
    if changes := _changes(run_dir):
        table["resumed with"] = ", ".join(changes)
    return table


def _environment(summary: Summary) -> dict[str, str]:
    processes = f"{summary.world_size} process" + ("es" if summary.world_size > 1 else "")
    hardware = summary.gpu or f"{summary.processor}, {summary.threads} threads"
    return {
        "hardware": f"{hardware}; {processes}, {summary.precision}",
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()),
        "commit of mlmlab": summary.git_commit or "an installed package",
    }


def _origin(text: CardText) -> str:
    return text.name if text.revision is None else f"{text.name} at {text.revision}"


def _text(data: DataConfig, description: str) -> CardText:
    """What a published card calls the text."""
    match data.source:
        case Source.FILE:
            return CardText(name=_file_names(data.path), kind="text")
        case Source.URL:
            return CardText(name=_public_url(data.url or ""), kind="text")
        case Source.HUB:
            assert data.repository is not None
            return CardText(name=data.repository, kind=data.repository, revision=data.revision)
        case _:
            is_builtin = data.source is Source.BUILTIN
            return CardText(name=description, kind=data.builtin.value if is_builtin else "text")


def _eval_text(data: DataConfig, description: str) -> CardText:
    """The same, for a separate text that the model is scored on."""
    if data.eval_path is not None:
        return CardText(name=_file_names(data.eval_path), kind="text")
    repository, _, revision = (data.eval_repository or "").partition("@")
    if repository:
        return CardText(name=repository, kind=repository, revision=revision or None)
    return _text(data, description)


def _file_names(path: Files | None) -> str:
    return ", ".join(Path(pattern).name for pattern in patterns(path))


def _public_url(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _overrides(run_dir: Path) -> list[str] | None:
    """What stood on the command line; None: there was none."""
    file = run_dir / COMMAND
    if not file.is_file():
        return None
    return shlex.split(file.read_text(encoding="utf-8"))[3:]  # after python -m mlmlab.train


def _recipe(run_dir: Path) -> str | None:
    names = [o.partition("=")[2] for o in _overrides(run_dir) or () if o.startswith("+experiment=")]
    return names[0] if names else None


def _command(config: RunConfig, summary: Summary, run_dir: Path) -> str | None:
    """The command line that trains the model again, with the checkpoint's commit."""
    overrides = _overrides(run_dir)
    if overrides is None:
        return None
    start = ["python", "-m"]
    if summary.world_size > 1 and config.runtime.processes is None:
        start = ["torchrun", f"--nproc-per-node={summary.world_size}", "-m"]
    return shlex.join([*start, "mlmlab.train", *_published(overrides, config)])


def _published(overrides: Iterable[str], config: RunConfig) -> list[str]:
    pinned = {"checkpoint": config.checkpoint, "tokenizer.path": config.tokenizer.path}
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        name = key.lstrip("+~")
        if _UNPUBLISHED.fullmatch(name):
            continue
        commit = pinned.get(name) or ""
        if commit.startswith(f"{value}@"):
            value = commit
        elif name == "data.url":
            value = _public_url(value.strip("'\""))
        else:
            value = _LOCAL_PATH.sub(lambda path: Path(path[0]).name, value)
        found.append(f"{key}{equals}{value}")
    return found


def _changes(run_dir: Path) -> list[str]:
    """What resumes changed, as they printed it."""
    file = run_dir / "resumes.jsonl"
    if not file.is_file():
        return []
    events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    changes = dict.fromkeys(change for event in events for change in event["overrides"])
    return [c for c in changes if not _UNPUBLISHED.fullmatch(c.partition("=")[0])]
