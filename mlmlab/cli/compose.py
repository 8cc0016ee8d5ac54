"""Hydra composes the YAML under conf/; `config.build` makes a run's config of it."""

import copy
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mlmlab import schema
from mlmlab.cli.commands import EVALUATE, TRAIN, Command, config_folder
from mlmlab.cli.hydra_errors import (
    OF_THE_RUN,
    composition_errors,
    no_config_folder,
    without_package,
)
from mlmlab.config import EvaluateConfig, RunConfig, build, build_evaluation
from mlmlab.errors import Code, UserError
from mlmlab.runs.folder import (
    allowed_changes,
    check_version,
    keep_pins,
    read_snapshot,
    run_to_resume,
)


def compose(*overrides: str, config_dir: str | Path | None = None) -> RunConfig:
    """The config that `python -m mlmlab.train OVERRIDES` would run.

    Args:
        overrides: as on the command line: "+experiment=eli5", "train.max_steps=10".
        config_dir: a folder with options of your own, such as experiment/mine.yaml for
            "+experiment=mine"; --config-dir on the command line.

    Raises:
        UserError: whatever is wrong with them.
    """
    given = with_own_options(_texts_of("compose", overrides))
    return build(run_mapping(composed(TRAIN, given, config_dir), given))


def _texts_of(function: str, overrides: Sequence[object]) -> list[str]:
    """The overrides, which must be texts.

    Raises:
        UserError: they are not: a list, for instance.
    """
    for override in overrides:
        if not isinstance(override, str):
            raise UserError.of(
                f"mlmlab.{function}",
                code=Code.WRONG_TYPE,
                found=repr(override),
                expected="texts, as on the command line, one argument each",
                remedy=f'mlmlab.{function}("train.max_steps=10", "seed=1"); a list with *',
            )
    return [str(override) for override in overrides]


def with_own_options(overrides: Sequence[str]) -> list[str]:
    """The overrides, with ++ where one adds a key to a free mapping (train.schedule_options.decay):
    Hydra takes any other key that is not in the YAML for a mistake."""
    own = re.compile(r"(\w+\.)+(\w+_)?options\.")
    return [f"++{override}" if own.match(override) else override for override in overrides]


def run_mapping(composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What `config.build` makes a run's config of.

    With `resume=RUN_DIR` that is the run's own config.yaml and the overrides, nothing else.
    `resume=auto` is the same if there is a run in `run_dir`, else a new run there; and it takes
    groups, too (+experiment=NAME), so that the command that began a run also resumes it.

    Args:
        composed: what Hydra made of the defaults and the overrides.

    Raises:
        UserError: there is no run to resume, an override that is no single key, or one that
            would make it another run.
    """
    _refuse_unplaced(composed, overrides, TRAIN)
    mapping = {key: value for key, value in composed.items() if key != "sweep_dir"}
    is_auto = mapping["resume"] == "auto"
    mapping["resume"] = run_dir = run_to_resume(mapping)
    if run_dir is None:
        return mapping
    snapshot = read_snapshot(Path(run_dir))
    check_version(run_dir, snapshot, mapping)
    resumed = copy.deepcopy(snapshot) | {"resume": run_dir}
    says_which = {"resume", "sweep_dir"} | ({"run_dir"} if is_auto else set())
    given = [
        key
        for key in parsed_overrides(overrides)
        if key not in says_which and not key.startswith("hydra.")
    ]
    has_groups = any(_is_group(key, mapping) for key in given)
    if is_auto and has_groups:  # the command that began the run, again
        resumed, given = copy.deepcopy(mapping) | {"run_dir": snapshot.get("run_dir")}, []
    for key in given:
        if key == "debug":
            resumed["debug"] = mapping["debug"]
        else:
            _put(resumed, mapping, key)
    keep_pins(snapshot, resumed)
    allowed_changes(snapshot, resumed)  # before they are read: they may contradict its other keys
    return resumed


def _is_group(key: str, mapping: Mapping[str, Any]) -> bool:
    """Whether an overridden key is a group of options, such as masking or masking@eval.masking, or
    one of the user's own, which is no key."""
    keys = {*mapping, *(field.name for field in dataclasses.fields(RunConfig))}
    name = key.partition("@")[0]
    return (config_folder() / name).is_dir() or name.partition(".")[0] not in keys


def _put(resumed: dict[str, Any], mapping: Mapping[str, Any], key: str) -> None:
    """Sets a dotted key to what was composed for it."""
    if _is_group(key, mapping):
        raise UserError.of(
            key,
            code=Code.CONFLICT,
            found=f"the complete group {key}, with resume",
            expected="single keys: a resumed run has the config that it began with",
            remedy=f"without {key}; or python -m mlmlab.train without resume, for a new run",
        )
    *groups, name = key.split(".")
    source: Any = mapping
    target: Any = resumed
    for group in groups:
        source, target = source[group], target.setdefault(group, {})
    if name not in source:
        raise UserError.of(
            key,
            code=Code.CONFLICT,
            found=f"~{key}, with resume",
            expected="KEY=VALUE: a run has all its keys",
            remedy=f"without ~{key}",
        )
    target[name] = source[name]


def compose_evaluation(*overrides: str, config_dir: str | Path | None = None) -> EvaluateConfig:
    """The config that `python -m mlmlab.evaluate OVERRIDES` would score.

    Where `checkpoint` is a run's folder, or one of its checkpoints, the run's own data, runtime and
    eval.* take the place of the defaults.

    Args:
        overrides: as on the command line: "checkpoint=RUN_DIR", "eval.mask_draws=4".
        config_dir: a folder with options of your own, such as data/mine.yaml for "data=mine".

    Raises:
        UserError: whatever is wrong with them.
    """
    given = parsed_overrides(_texts_of("compose_evaluation", overrides))
    folder = Path(str(given.get("checkpoint")))
    run_dir = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    chosen = with_own_options(overrides)
    is_run = (run_dir / "config.yaml").is_file()
    names_data = any(key == "data" or key in _ADDRESSES for key in given)
    if is_run:
        chosen = [*_as_in_the_run(run_dir / "config.yaml", given), *chosen]
        if names_data:
            chosen += [key for key in _OF_THE_RUNS_TEXT if key.partition("=")[0] not in given]
    mapping = composed(EVALUATE, chosen, config_dir)
    _refuse_unplaced(mapping, chosen, EVALUATE)
    if mapping["eval"]["split"] is None:
        mapping["eval"]["split"] = "test" if is_run and not names_data else "all"
    try:
        return build_evaluation(mapping)
    except UserError as error:
        if is_run or names_data or "checkpoint" not in given:
            raise
        no_run = f"; or checkpoint=RUN_DIR, a run with its own text: {folder} holds none"
        raise UserError(
            dataclasses.replace(problem, remedy=problem.remedy + no_run)
            if problem.where == "data.path"
            else problem
            for problem in error.problems
        ) from error


_ADDRESSES = {
    f"data.{name}" for name in ("source", "builtin", "path", "url", "repository", "files")
}
"""Keys with which a user names other text."""
_OF_THE_RUNS_TEXT = (
    "data.fingerprint=null",
    "data.eval_fingerprint=null",
    "data.test_examples=null",
    "eval.max_examples=null",
)
"""What says nothing about other text than the run's."""


def parsed_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The overridden keys and their values."""
    with composition_errors(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {
        f"{o.key_or_group}@{o.package}" if o.package else str(o.key_or_group): o.value()
        for o in parsed
    }


def _as_in_the_run(snapshot: Path, given: Mapping[str, Any]) -> list[str]:
    """Makes the run's own groups options of Hydra's, and chooses them unless the user did."""
    content = OmegaConf.to_container(OmegaConf.load(snapshot))
    evaluation = ("seed", "mask_draws", "max_examples")
    try:
        assert isinstance(content, dict)
        groups = {
            "data": content["data"],
            "runtime": content["runtime"],
            "masking@eval.masking": content["eval"]["masking"],
        }
        for name, values in groups.items():
            ConfigStore.instance().store(OF_THE_RUN, values, group=name.partition("@")[0])
        chosen = [f"{name}={OF_THE_RUN}" for name in groups if name not in given]
        chosen += [f"eval.{key}={schema.shown(content['eval'][key])}" for key in evaluation]
        return chosen
    except (AssertionError, KeyError, TypeError) as error:
        raise UserError.of(
            "checkpoint",
            code=Code.CORRUPT,
            found=f"{snapshot}: no run's config, it lacks {error}",
            expected="a run's folder, with the config.yaml that the run wrote",
            remedy=f"checkpoint={snapshot.parent / 'export'}, and data.path=FILE for the text",
        ) from error


def composed(
    command: Command, overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> dict[str, Any]:
    """What Hydra makes of a command's defaults and the overrides.

    Args:
        config_dir: where else than in conf/ options are.
    """
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise UserError([no_config_folder("config_dir", str(folder))])
        quoted = str(folder).replace("'", r"\'")
        overrides = [*overrides, f"hydra.searchpath=['file://{quoted}']"]
    outer = GlobalHydra.instance().hydra  # that of a notebook, or of a job that composes another
    GlobalHydra.instance().clear()
    try:
        with (
            composition_errors(overrides, command),
            initialize_config_dir(version_base="1.3", config_dir=str(config_folder())),
        ):
            return plain(hydra_compose(command.name, list(overrides)))
    finally:
        GlobalHydra.instance().hydra = outer


def _refuse_unplaced(
    mapping: Mapping[str, Any], overrides: Sequence[str], command: Command
) -> None:
    """Refuses what an option of the user's has put below the name of its group."""
    known = {field.name for field in dataclasses.fields(command.kind)}
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        if group not in known and isinstance(mapping.get(group), Mapping):
            raise UserError([without_package(group, option)])


def plain(composed: DictConfig) -> dict[str, Any]:
    """The composed config as dicts, lists and scalars, Hydra's own part left out."""
    mapping = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(mapping, dict)
    return {str(key): value for key, value in mapping.items()}
