"""A run's config, and the one function that builds it from plain mappings."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NoReturn, get_type_hints

from mlmlab import schema
from mlmlab.data.config import DataConfig, TokenizerChoice, TokenizerConfig
from mlmlab.errors import Code, Problem, UserError
from mlmlab.evaluation.config import ScoringConfig, TrainEvalConfig
from mlmlab.masking.config import EvalMaskingConfig, MaskingConfig, MaskingMode
from mlmlab.model.config import ModelSettings
from mlmlab.runtime.config import Parallel, RuntimeConfig
from mlmlab.schema import setting
from mlmlab.tracking.config import TrackingConfig
from mlmlab.training.config import Export, ObjectiveConfig, TrainConfig

__all__ = [
    "DataConfig",
    "DebugConfig",
    "EvalMaskingConfig",
    "EvaluateConfig",
    "MaskingConfig",
    "ModelSettings",
    "RunConfig",
    "RuntimeConfig",
    "ScoringConfig",
    "TokenizerChoice",
    "TokenizerConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainEvalConfig",
    "build",
    "build_evaluation",
]


class CheckpointHead(Enum):
    """What to do about a checkpoint without a masked-LM head."""

    REQUIRE = "require"
    FRESH = "fresh"


class DebugMode(Enum):
    """Short runs that answer one question."""

    NONE = "none"
    ONE_STEP = "one_step"
    OVERFIT = "overfit"
    REPLAY = "replay"


@dataclass(frozen=True, kw_only=True)
class DebugConfig:
    """Applied after everything else, so that it does what it says whatever the experiment."""

    mode: DebugMode = DebugMode.NONE
    """one_step: does every stage run? overfit: can the model learn one batch by heart? replay: what
    happened in step `step` of the run that `resume` names?"""
    step: int | None = setting(None, at_least=1)
    """For replay: the step, counted from 1."""
    profile_steps: int = setting(0, at_least=0)
    """Steps that PyTorch's profiler watches, after a few to warm up; its trace is in profile/ of
    the run's folder. 0: none."""

    def problems(self) -> Iterator[Problem]:
        """A step without a replay, or a replay without a step."""
        if (self.mode is DebugMode.REPLAY) != (self.step is not None):
            yield Problem(
                "debug.step",
                f"{'null' if self.step is None else self.step}, with debug.mode={self.mode.value}",
                "the step to replay, for debug=replay alone",
                "python -m mlmlab.train resume=RUN_DIR debug=replay debug.step=1",
                code=Code.MISSING if self.step is None else Code.CONFLICT,
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run."""

    seed: int = 0
    """Decides order, masks, dropout and fresh weights."""
    name: str
    """Names the run's folder."""
    run_dir: str | None = None
    """The run's folder. null: runs/<name>/<time>."""
    resume: str | None = None
    """The folder of a run to resume, from its newest complete checkpoint. null: a new run."""
    checkpoint: str | None = None
    """A folder, or owner/name[@revision] on the Hub. null: from scratch with `model`."""
    checkpoint_head: CheckpointHead = CheckpointHead.REQUIRE
    """fresh: a checkpoint without a masked-LM head gets a new one."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: TrainEvalConfig = field(default_factory=TrainEvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    sources: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the source file of each custom object (package.module:name), noted when the
    run begins."""
    varies: tuple[str, ...] = ()
    """The keys that differ between the jobs of the sweep that the run belongs to, noted by the
    sweep. A group counts as one key (masking; eval.masking for masking@eval.masking)."""

    def problems(self) -> Iterator[Problem]:
        """Contradictions between the groups."""
        shape = self.model.shape()
        given = [f"model.{key}={schema.to_mapping(v)}" for key, v in shape.items() if v]
        missing = [f"model.{key}" for key, value in shape.items() if value is None]
        if self.checkpoint is not None and given:
            yield Problem(
                "model",
                ", ".join(given),
                f"nothing but model.dropout: checkpoint={self.checkpoint} brings its architecture",
                "model=from_checkpoint, or checkpoint=null to train from scratch",
                code=Code.CONFLICT,
            )
        if self.checkpoint is None and missing:
            yield Problem(
                "model",
                f"checkpoint=null, and no {', '.join(missing)}",
                "an architecture to train from scratch",
                "checkpoint=DIR_OR_HUB_ID, or model=tiny|bert_base|roberta_base|distilroberta|"
                "distilbert|modernbert_base (with tokenizer.path=... to use a published tokenizer)",
                code=Code.MISSING,
            )
        if self.runtime.parallel is Parallel.FSDP and self.train.optimizer != "adamw":
            yield Problem(
                "train.optimizer",
                f"{self.train.optimizer}, with runtime.parallel=fsdp",
                "adamw: whether another one works on shards of its parameters is not known",
                "runtime.parallel=ddp, or train.optimizer=adamw",
                code=Code.CONFLICT,
            )
        if self.checkpoint is None and self.model.dropout is None:
            yield Problem(
                "model.dropout", "null", "a number", "model.dropout=0.1", code=Code.MISSING
            )
        longest = self.model.max_positions
        if longest is not None and 0 < longest < self.data.block_size:
            yield Problem(
                "data.block_size",
                str(self.data.block_size),
                f"at most model.max_positions={longest}",
                f"data.block_size={longest}, or model.max_positions={self.data.block_size}",
                code=Code.CONFLICT,
            )
        if self.masking.rate == 0.0:
            yield Problem(
                "masking.rate",
                "0.0",
                "above 0: a model learns from masked tokens only",
                "masking.rate=0.15",
                code=Code.INVALID,
            )
        if not re.fullmatch(r"[\w-][\w.-]*", self.name, re.ASCII):
            yield Problem(
                "name",
                self.name or "an empty text",
                "letters, digits, . _ and -: it becomes a folder's name",
                "name=my-run",
                code=Code.INVALID,
            )
        if self.debug.mode is DebugMode.REPLAY and self.resume is None:
            yield Problem(
                "resume",
                "null, with debug=replay",
                "the folder of the run whose step is replayed",
                "resume=RUN_DIR",
                code=Code.MISSING,
            )
        if self.run_dir is not None and not self.run_dir.strip():
            yield Problem(
                "run_dir",
                "an empty text",
                "a folder, or null",
                "run_dir=runs/my-run",
                code=Code.INVALID,
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """All that decides what `python -m mlmlab.evaluate` scores."""

    checkpoint: str | None = None
    """A checkpoint's or a run's folder, or owner/name[@revision] on the Hub."""
    tokenizer: TokenizerChoice = field(default_factory=TokenizerChoice)
    data: DataConfig
    eval: ScoringConfig = field(default_factory=ScoringConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    out: str | None = None
    """A folder that keeps the result, with the losses of each document, for mlmlab.report. null:
    it is printed, and kept with -m alone."""
    json: bool | None = None
    """Whether the command prints the figures as JSON in its last line. null: where its output is no
    terminal."""

    def problems(self) -> Iterator[Problem]:
        """No checkpoint."""
        if self.checkpoint is None:
            yield Problem(
                "checkpoint",
                "null",
                "the model to evaluate",
                "checkpoint=RUN_DIR, or checkpoint=DIR_OR_HUB_ID data.source=file data.path=FILE",
                code=Code.MISSING,
            )


def build_evaluation(mapping: Mapping[str, Any]) -> EvaluateConfig:
    """As `build`, for `python -m mlmlab.evaluate`.

    Raises:
        UserError: all that is wrong, reported together.
    """
    problems: list[Problem] = []
    config = schema.read(EvaluateConfig, mapping, "", problems)
    if problems or config is None:
        raise UserError(problems)
    return config


def build(mapping: Mapping[str, Any]) -> RunConfig:
    """The one way from plain mappings (YAML, JSON, Hydra) to a run's config.

    Raises:
        UserError: every unknown key, missing key, wrong type, value out of range and
            contradiction, reported together.
    """
    problems: list[Problem] = []
    config = schema.read(RunConfig, mapping, "", problems)
    if problems or config is None:
        raise UserError(problems)
    return _with_debug(config)


_OVERFIT_STEPS = 200


def _with_debug(config: RunConfig) -> RunConfig:
    match config.debug.mode:
        case DebugMode.NONE | DebugMode.REPLAY:
            return config
        case DebugMode.ONE_STEP:
            train = dataclasses.replace(
                config.train, max_steps=1, log_every_steps=1, keep_checkpoints=1
            )
            limit = 200 if config.data.limit is None else min(200, config.data.limit)
            data = dataclasses.replace(
                config.data, limit=limit, train_examples=None, test_examples=None
            )
            return dataclasses.replace(config, train=train, data=data)
        case DebugMode.OVERFIT:
            # One batch, the same masks each time, nothing that regularizes: the loss must vanish.
            return dataclasses.replace(
                config,
                eval=dataclasses.replace(config.eval, every_steps=_OVERFIT_STEPS),
                train=dataclasses.replace(
                    config.train,
                    max_steps=_OVERFIT_STEPS,
                    weight_decay=0.0,
                    keep_checkpoints=0,
                    export=Export.LAST,
                ),
                masking=dataclasses.replace(config.masking, mode=MaskingMode.STATIC),
                model=dataclasses.replace(config.model, dropout=0.0),
            )


def _refuse_assignment(config: Any, field_name: str, _: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(
        f"{type(config).__name__}.{field_name} cannot be assigned to, because a config never "
        f"changes: dataclasses.replace(config, {field_name}=...) returns a changed copy, and "
        "mlmlab.compose(...) composes another config"
    )


def _explain_assignment(kind: type) -> None:
    """Has a config's class, and those of its groups, say what to do in place of an assignment."""
    type.__setattr__(kind, "__setattr__", _refuse_assignment)
    for hint in get_type_hints(kind).values():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            _explain_assignment(hint)


_explain_assignment(RunConfig)
_explain_assignment(EvaluateConfig)
