"""One strict function builds a run's config; whatever is wrong is said at once and completely."""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from refusals import check, refusal, refusals, summary

import mlmlab
from mlmlab import schema
from mlmlab.cli.compose import config_folder, plain
from mlmlab.config import DebugMode, EvaluateConfig, RunConfig, build
from mlmlab.data.config import DataConfig
from mlmlab.errors import Code, Problem, UserError
from mlmlab.masking import MaskingMode
from mlmlab.model.config import ModelSettings
from mlmlab.runtime.config import Device
from mlmlab.training.config import TrainConfig


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """The default run as plain mappings."""
    mapping: dict[str, Any] = schema.to_mapping(mlmlab.compose())
    return mapping


def changed(mapping: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with other values; group__key names a nested one."""
    result = copy.deepcopy(mapping)
    for name, value in changes.items():
        *groups, key = name.split("__")
        place = result
        for group in groups:
            place = place[group]
        place[key] = value
    return result


def build_problems(mapping: dict[str, Any]) -> list[Problem]:
    with pytest.raises(UserError) as error:
        build(mapping)
    return list(error.value.problems)


def problem_of(mapping: dict[str, Any]) -> Problem:
    (problem,) = build_problems(mapping)
    return problem


def compose_problem(*overrides: str) -> Problem:
    with pytest.raises(UserError) as error:
        mlmlab.compose(*overrides)
    (problem,) = error.value.problems
    return problem


# Keys


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.epoch=3", "train.epochs=3"),
        ("+train.epoch=3", "train.epochs=3"),
        ("trian.epochs=3", "train.epochs=3"),
        ("model.rate=0.3", "masking.rate=0.3 or eval.masking.rate=0.3"),
        ("+model.rate=0.3", None),
        ("batch_size=8", "train.batch_size=8"),
        ("+batch_size=8", "train.batch_size=8"),
        ("+sede=3", "seed=3"),
        ("seed.x=3", "seed=3"),
        ("+train.foo=1", None),
        ("foo=1", None),
    ],
)
def test_an_unknown_key_is_named_with_the_one_that_was_meant(
    override: str, meant: str | None
) -> None:
    problem = compose_problem(override)
    key = override.removeprefix("+").partition("=")[0]
    check(problem, key, Code.UNKNOWN_KEY, override.removeprefix("+"))
    assert problem.remedy.endswith(f" {meant or key}")


def test_an_unknown_key_is_shown_beside_those_of_its_group() -> None:
    assert "train.epochs, train.max_steps," in compose_problem("train.epoch=3").expected
    assert "train.epochs, train.max_steps," in compose_problem("+train.epoch=3").expected
    assert "seed, name, run_dir," in compose_problem("epoch=3").expected


def test_a_missing_key_without_a_default_is_named(default: dict[str, Any]) -> None:
    mapping = changed(default)
    del mapping["name"], mapping["data"]
    with refusals(("name", Code.MISSING), ("data", Code.MISSING)):
        build(mapping)


def test_other_missing_keys_take_their_defaults(default: dict[str, Any]) -> None:
    mapping = changed(default)
    del mapping["train"]["epochs"], mapping["eval"]["masking"]["unit"], mapping["runtime"]
    assert build(mapping) == mlmlab.compose()
    config = build({"name": "mine", "checkpoint": "somewhere", "data": {"path": "my.txt"}})
    assert config == RunConfig(
        name="mine", checkpoint="somewhere", data=DataConfig(path="my.txt"), train=TrainConfig()
    )


@pytest.mark.parametrize("value", [3, None, "text", [1]])
def test_a_group_must_hold_keys(default: dict[str, Any], value: Any) -> None:
    problem = problem_of(changed(default, train=value))
    check(problem, "train", Code.WRONG_TYPE, schema.shown(value))


# Types


class Color(Enum):
    RED = "dark red"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One field of each type that a config may have."""

    count: int = 1
    share: float = 0.5
    switch: bool = False
    text: str = ""
    color: Color = Color.RED
    texts: tuple[str, ...] = ()
    maybe: int | None = None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1.0),
        ("count", True),
        ("count", "1"),
        ("count", None),
        ("share", "0.5"),
        ("share", True),
        ("share", float("nan")),
        ("share", float("inf")),
        ("share", None),
        ("switch", 1),
        ("switch", "true"),
        ("text", 1),
        ("text", True),
        ("text", None),
        ("color", "RED"),
        ("color", "blue"),
        ("color", None),
        ("texts", "a"),
        ("texts", ["a", 1]),
        ("texts", None),
        ("maybe", "x"),
        ("maybe", False),
    ],
)
def test_a_value_of_another_type_is_refused(field: str, value: Any) -> None:
    problems: list[Problem] = []
    assert schema.read(Sample, {field: value}, "group", problems) is None
    (problem,) = problems
    check(problem, f"group.{field}", Code.WRONG_TYPE, schema.shown(value), f"group.{field}=")


def test_values_of_the_right_type_are_kept_and_whole_numbers_may_be_shares() -> None:
    problems: list[Problem] = []
    given = {
        "count": 3,
        "share": 1,
        "switch": True,
        "text": "x",
        "color": "dark red",
        "texts": ["a", "b"],
        "maybe": None,
    }
    config = schema.read(Sample, given, "", problems)
    assert problems == []
    assert config == Sample(count=3, share=1.0, switch=True, text="x", texts=("a", "b"), maybe=None)
    assert isinstance(config.share, float)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("train.epochs=three", "train.epochs=3"),
        ("train.epochs=true", "train.epochs=3"),
        ("train.schedule=LINEAR", "train.schedule=linear"),
        ("name=12", "name=\"'12'\""),
        ("eval.fill_mask=text", "eval.fill_mask=[text]"),
    ],
)
def test_a_wrong_type_on_the_command_line_shows_what_to_type(override: str, remedy: str) -> None:
    key, _, value = override.partition("=")
    problem = compose_problem(override)
    check(problem, key, Code.WRONG_TYPE, value)
    assert problem.remedy.endswith(f" {remedy}")


def test_enums_go_by_their_written_value() -> None:
    config = mlmlab.compose("train.schedule=cosine", "runtime.device=cpu")
    assert config.train.schedule == "cosine"
    assert config.runtime.device is Device.CPU


# Values


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"train__epochs": 0}, "train.epochs"),
        ({"train__batch_size": -1}, "train.batch_size"),
        ({"train__micro_batch_size": 0}, "train.micro_batch_size"),
        ({"train__max_steps": 0}, "train.max_steps"),
        ({"train__learning_rate": 0.0}, "train.learning_rate"),
        ({"train__weight_decay": -0.1}, "train.weight_decay"),
        ({"train__adam_beta1": 1.0}, "train.adam_beta1"),
        ({"train__adam_beta2": -0.1}, "train.adam_beta2"),
        ({"train__adam_eps": 0.0}, "train.adam_eps"),
        ({"train__max_grad_norm": -1.0}, "train.max_grad_norm"),
        ({"train__warmup_steps": -1}, "train.warmup_steps"),
        ({"train__layer_decay": 0.0}, "train.layer_decay"),
        ({"train__layer_decay": 1.1}, "train.layer_decay"),
        ({"train__save_every_steps": 0}, "train.save_every_steps"),
        ({"train__save_every_minutes": 0.0}, "train.save_every_minutes"),
        ({"train__keep_checkpoints": -1}, "train.keep_checkpoints"),
        ({"train__log_every_steps": 0}, "train.log_every_steps"),
        ({"eval__every_steps": 0}, "eval.every_steps"),
        ({"eval__max_examples": 0}, "eval.max_examples"),
        ({"eval__masking__rate": 0.0}, "eval.masking.rate"),
        ({"eval__masking__mask_fraction": -0.5}, "eval.masking.mask_fraction"),
        ({"train__warmup_fraction": 1.0, "train__warmup_steps": 0}, "train.warmup_fraction"),
        ({"runtime__threads": 0}, "runtime.threads"),
        ({"data__block_size": 1}, "data.block_size"),
        ({"data__test_fraction": 0.0}, "data.test_fraction"),
        ({"data__test_fraction": 1.0}, "data.test_fraction"),
        ({"data__limit": 0}, "data.limit"),
        ({"tokenizer__vocabulary_size": 100}, "tokenizer.vocabulary_size"),
        ({"masking__rate": -0.1}, "masking.rate"),
        ({"masking__rate": 1.1}, "masking.rate"),
        ({"masking__rate": 0.0}, "masking.rate"),
        ({"masking__start_rate": 0.0, "masking__schedule": "linear"}, "masking.start_rate"),
        ({"model__dropout": 1.0}, "model.dropout"),
        ({"model__layers": 0}, "model.layers"),
        ({"model__heads": 3}, "model.heads"),
        ({"name": ""}, "name"),
        ({"name": "../elsewhere"}, "name"),
        ({"name": "two words"}, "name"),
        ({"run_dir": " "}, "run_dir"),
    ],
)
def test_a_value_out_of_range_is_refused(
    default: dict[str, Any], changes: dict[str, Any], where: str
) -> None:
    code = Code.CONFLICT if where == "model.heads" else Code.INVALID
    problem = problem_of(changed(default, **changes))
    check(problem, where, code)
    value = next(iter(changes.values()))
    assert str(value).strip() in problem.found


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A field for each way to limit a value."""

    share: float = schema.setting(0.5, above=0, below=1)
    count: int = schema.setting(8, at_least=2, at_most=9)
    maybe: int | None = schema.setting(None, at_least=1)
    hinted: float | None = schema.setting(0.5, above=0, example="1/2")


@pytest.mark.parametrize(
    ("values", "expected", "remedy"),
    [
        ({"share": 0.0}, "above 0 and below 1", "group.share=0.5"),
        ({"share": 1.0}, "above 0 and below 1", "group.share=0.5"),
        ({"count": 1}, "at least 2 and at most 9", "group.count=8"),
        ({"count": 10}, "at least 2 and at most 9", "group.count=8"),
        ({"maybe": 0}, "at least 1, or null", "group.maybe=null"),
        ({"hinted": 0.0}, "above 0, or null", "group.hinted=1/2"),
        ({"count": 2, "maybe": None}, None, None),
        ({"count": 9, "maybe": 1, "hinted": None}, None, None),
    ],
)
def test_a_problem_is_made_of_the_limits_of_a_field(
    values: dict[str, Any], expected: str | None, remedy: str | None
) -> None:
    problems: list[Problem] = []
    assert schema.read(Limited, values, "group", problems) == Limited(**values)
    for problem in problems:
        ((name, value),) = values.items()
        check(problem, f"group.{name}", Code.INVALID, value)
        assert (problem.expected, problem.remedy) == (expected, remedy)
    assert len(problems) == (expected is not None)


def test_the_limits_of_a_range_are_allowed(default: dict[str, Any]) -> None:
    changes: dict[str, Any] = {
        "train__weight_decay": 0.0,
        "train__max_grad_norm": 0.0,
        "train__warmup_steps": 0,
        "train__keep_checkpoints": 0,
        "train__adam_beta1": 0.0,
        "masking__rate": 1.0,
        "masking__mask_fraction": 0.9,
        "masking__random_fraction": 0.1,
        "model__dropout": 0.0,
        "data__block_size": 128,
        "model__max_positions": 128,
        "data__limit": 1,
        "seed": -1,
    }
    assert build(changed(default, **changes)).masking.rate == 1.0


@pytest.mark.parametrize(
    "choice", [{"train__export": "best"}, {"train__early_stopping_patience": 3}]
)
def test_the_best_weights_cannot_be_exported_without_checkpoints(
    default: dict[str, Any], choice: dict[str, Any]
) -> None:
    assert build(changed(default, **choice)).train.exports_best
    with refusal("train.export", Code.CONFLICT, "train.keep_checkpoints=0"):
        build(changed(default, **choice, train__keep_checkpoints=0))
    last = changed(default, **choice | {"train__export": "last"}, train__keep_checkpoints=0)
    assert not build(last).train.exports_best


@pytest.mark.parametrize("choice", [{"train__export": "best"}, {"train__export": None}])
def test_a_run_that_overfits_a_batch_exports_its_last_weights(
    default: dict[str, Any], choice: dict[str, Any]
) -> None:
    patient = choice | {"train__early_stopping_patience": 3}
    config = build(changed(default, **patient, debug__mode="overfit"))
    assert not config.train.exports_best
    assert not list(config.train.problems())


def test_several_problems_are_reported_together(default: dict[str, Any]) -> None:
    mapping = changed(
        default, train__epochs=0, data__block_size=5000, model__layers="two", masking__rate=2.0
    )
    mapping["train"]["foo"] = 1
    expected = [
        ("masking.rate", Code.INVALID),
        ("model.layers", Code.WRONG_TYPE),
        ("train.foo", Code.UNKNOWN_KEY),
        ("train.epochs", Code.INVALID),
    ]
    with refusals(*expected):
        build(mapping)
    # A contradiction is found as soon as both its values can be read.
    mapping["model"]["layers"] = 2
    expected[1] = ("data.block_size", Code.CONFLICT)
    assert sorted(map(summary, build_problems(mapping)), key=str) == sorted(expected, key=str)


# Contradictions


def test_an_architecture_beside_a_checkpoint_is_refused() -> None:
    problem = compose_problem("checkpoint=somewhere", "model.layers=2")
    check(
        problem, "model", Code.CONFLICT, "model.family=roberta", "model.layers=2",
        "checkpoint=somewhere", "model=from_checkpoint",
    )  # fmt: skip
    assert "model.dropout=" not in problem.found
    assert compose_problem("+experiment=eli5", "model.layers=3").found == "model.layers=3"


def test_dropout_may_be_set_beside_a_checkpoint() -> None:
    assert mlmlab.compose("+experiment=eli5", "model.dropout=0.2").model.dropout == 0.2


def test_no_checkpoint_needs_an_architecture() -> None:
    with refusals(("model", Code.MISSING), ("model.dropout", Code.MISSING)):
        mlmlab.compose("model=from_checkpoint")
    check(
        compose_problem("model=from_checkpoint", "model.dropout=0.1"), "model", Code.MISSING,
        "model.family, model.hidden_size, model.layers", "checkpoint=DIR_OR_HUB_ID",
    )  # fmt: skip
    problem = compose_problem("model.layers=null")
    check(problem, "model", Code.MISSING, "model.layers")
    assert "model.family" not in problem.found


def test_a_block_must_fit_into_the_positions() -> None:
    with refusal("data.block_size", Code.CONFLICT, "200", "model.max_positions=100"):
        mlmlab.compose("data.block_size=200", "model.max_positions=100")
    assert mlmlab.compose("data.block_size=200", "model.max_positions=200").data.block_size == 200


def test_mask_and_random_fractions_must_leave_each_other_room() -> None:
    keys = "masking.mask_fraction + masking.random_fraction"
    with refusal(keys, Code.CONFLICT, "0.95 + 0.1"):
        mlmlab.compose("masking.mask_fraction=0.95")


@pytest.mark.parametrize(("source", "key"), [("file", "data.path"), ("url", "data.url")])
def test_a_source_needs_its_address(source: str, key: str) -> None:
    with refusal(key, Code.MISSING, f"data.source={source}", f"{key}="):
        mlmlab.compose(f"data.source={source}")


@pytest.mark.parametrize("value", ["zz", "", "a" * 63, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_a_checksum_that_is_not_one_is_refused_before_anything_is_fetched(
    default: dict[str, Any], value: str
) -> None:
    with refusal("data.sha256", Code.INVALID, value):
        build(changed(default, data__sha256=value))


def test_a_checksum_may_be_written_in_capitals(default: dict[str, Any]) -> None:
    assert build(changed(default, data__sha256="aB" * 32)).data.sha256 == "aB" * 32


def test_training_needs_masked_tokens() -> None:
    with refusal("masking.rate", Code.INVALID, "0.0", "masking.rate=0.15"):
        mlmlab.compose("masking.rate=0")


# Debug modes


@pytest.mark.parametrize(
    "overrides",
    [
        ["debug=one_step", "train.max_steps=50", "data.limit=1000"],
        ["+experiment=eli5", "debug=one_step"],
        ["debug=one_step", "+experiment=eli5", "train.max_steps=9"],
    ],
)
def test_one_step_is_one_step_whatever_else_is_said(overrides: list[str]) -> None:
    config = mlmlab.compose(*overrides)
    assert config.debug.mode is DebugMode.ONE_STEP
    assert config.train.max_steps == 1
    assert config.data.limit == 200


def test_one_step_keeps_a_smaller_limit() -> None:
    assert mlmlab.compose("debug=one_step", "data.limit=50").data.limit == 50


def test_overfit_switches_off_whatever_regularizes() -> None:
    config = mlmlab.compose(
        "debug=overfit", "model.dropout=0.3", "train.weight_decay=0.5", "masking.mode=dynamic"
    )
    assert config.model.dropout == 0.0
    assert config.train.weight_decay == 0.0
    assert config.masking.mode is MaskingMode.STATIC


def test_a_debug_mode_sets_only_its_own_key() -> None:
    for file in (config_folder() / "debug").glob("*.yaml"):
        if file.stem != "none":  # which has them all; what a mode means is `build`'s, applied last
            assert list(OmegaConf.load(file)) == ["defaults", "mode"]


# conf/


def options() -> Iterator[str]:
    """Every option of every group, as an override."""
    for file in sorted(config_folder().rglob("*.yaml")):
        group = file.parent.relative_to(config_folder()).as_posix()
        if group == ".":  # the two primary files, which all of these tests compose
            continue
        if file.stem == "replay":  # needs a run: tests/test_resume.py
            continue
        yield f"{'+' if group == 'experiment' else ''}{group}={file.stem}"


FITTING = {
    "data=text": ["data.path=my.txt"],
    "data=imdb_csv": ["data.path=my.csv"],
    "model=from_checkpoint": ["checkpoint=somewhere"],
    "+experiment=finetune": ["data.path=my.txt"],
    "+experiment=pretrain": ["data.path=my.txt"],
    "+experiment=cramming": ["data.path=my.txt"],
    "+experiment=eli5_askscience": ["data.path=my.json"],
    "+experiment=imdb_bert_tpu": ["data.path=my.csv"],
    "+experiment=mosaic": ["data.path=my.txt"],
    "+experiment=scratch_bert_base": ["data.path=my.txt"],
    "+experiment=scratch_roberta": ["data.path=my.txt"],
}


@pytest.mark.parametrize("option", options())
def test_every_option_of_every_group_builds(option: str) -> None:
    assert isinstance(mlmlab.compose(option, *FITTING.get(option, [])), RunConfig)


def test_the_yaml_files_and_the_dataclasses_have_the_same_keys_and_defaults() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        groups = ["data=text", "model=from_checkpoint", "train=default"]
        train = plain(hydra_compose("train", groups))
        evaluate = plain(hydra_compose("evaluate"))
    del train["sweep_dir"]
    assert train == schema.to_mapping(RunConfig(name="small_world", data=DataConfig()))
    assert evaluate == schema.to_mapping(EvaluateConfig(data=DataConfig()))


def test_the_default_run_needs_nothing() -> None:
    config = mlmlab.compose()
    assert config.checkpoint is None
    assert config.data.source.value == "builtin"


FINE_TUNING = {
    "seed": 0,
    "run_dir": None,
    "resume": None,
    "checkpoint": "distilbert/distilroberta-base",
    "checkpoint_head": "require",
    "tokenizer": {"path": None, "kind": "bpe", "vocabulary_size": 8192},
    "masking": {
        "rate": 0.15,
        "unit": "token",
        "options": {},
        "corrupt": "token",
        "mask_fraction": 0.8,
        "random_fraction": 0.1,
        "budget": "bernoulli",
        "mode": "dynamic",
        "schedule": "constant",
        "start_rate": None,
        "rate_steps": [],
    },
    "objective": {"name": "mlm", "options": {}},
    "model": dict.fromkeys(field.name for field in dataclasses.fields(ModelSettings)),
    "train": {
        "epochs": 3,
        "max_steps": None,
        "batch_size": 8,
        "micro_batch_size": None,
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_eps": 1e-8,
        "max_grad_norm": 1.0,
        "optimizer": "adamw",
        "optimizer_options": {},
        "schedule": "linear",
        "schedule_options": {},
        "warmup_steps": 0,
        "warmup_fraction": None,
        "freeze": [],
        "layer_decay": 1.0,
        "gradient_checkpointing": False,
        "save_every_steps": None,
        "save_every_minutes": 30.0,
        "keep_checkpoints": 2,
        "log_every_steps": 10,
        "early_stopping_patience": None,
        "export": None,
        "push_to_hub": None,
    },
    "runtime": {
        "device": "auto",
        "precision": "auto",
        "tf32": False,
        "cuda_graphs": True,
        "compile": False,
        "parallel": "ddp",
        "processes": None,
        "deterministic": False,
        "threads": None,
    },
    "tracking": {"sinks": ["tensorboard", "jsonl"], "options": {}},
    "debug": {"mode": "none", "step": None, "profile_steps": 0},
    "sources": {},
    "varies": [],
}
"""The published recipe: the Hub guide's arguments, and the defaults of its trainer."""
EVALUATION: dict[str, Any] = {
    "every_steps": None,
    "monitor": "eval/loss",
    "monitor_mode": None,
    "evaluators": ["masked_perplexity"],
    "options": {},
    "seed": 0,
    "mask_draws": 1,
    "max_examples": None,
    "masking": {
        "rate": 0.15,
        "unit": "token",
        "options": {},
        "corrupt": "token",
        "mask_fraction": 0.8,
        "random_fraction": 0.1,
        "budget": "bernoulli",
    },
    "fill_mask": None,
}
TEXT = {
    "source": "file",
    "builtin": "small_world",
    "path": None,
    "url": None,
    "sha256": None,
    "repository": None,
    "revision": None,
    "files": None,
    "eval_files": None,
    "eval_repository": None,
    "text_field": "text",
    "encoding": "utf-8",
    "document": "line",
    "on_bad_row": "stop",
    "limit": None,
    "test_fraction": 0.2,
    "eval_path": None,
    "seed": 0,
    "layout": "packed",
    "block_size": 128,
    "isolate_documents": False,
    "train_examples": None,
    "test_examples": None,
    "fingerprint": None,
    "eval_fingerprint": None,
}


def test_eli5_is_the_published_recipe() -> None:
    address = "https://jingshensn2.github.io/eli5c/datasets/eli5-category-train.json.gz"
    assert schema.to_mapping(mlmlab.compose("+experiment=eli5")) == {
        **FINE_TUNING,
        "name": "eli5",
        "data": {
            **TEXT,
            "source": "url",
            "url": address,
            "sha256": "9bfbed0d20608978fde8889f6383bfb695af575c81c3a3b2ec87c644928c725b",
            "text_field": "answers.text",
            "limit": 5000,
        },
        "eval": {**EVALUATION, "fill_mask": ["The Milky Way is a <mask> galaxy."]},
    }


def test_finetune_is_the_published_recipe_on_ones_own_text() -> None:
    config = mlmlab.compose("+experiment=finetune", "data.path=my.txt")
    assert schema.to_mapping(config) == {
        **FINE_TUNING,
        "name": "finetune",
        "data": {**TEXT, "path": "my.txt"},
        "eval": EVALUATION,
    }


# There and back


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["debug=one_step"],
        ["debug=overfit"],
        ["+experiment=eli5", "eval.fill_mask=['a <mask>','b, <mask>']"],
        ["masking=forty_percent", "train=pretrain", "model=bert_base"],
    ],
)
def test_a_config_survives_the_way_to_plain_mappings_and_back(overrides: list[str]) -> None:
    config = mlmlab.compose(*overrides)
    mapping = schema.to_mapping(config)
    assert build(mapping) == config
    written = OmegaConf.to_yaml(OmegaConf.create(mapping))
    assert build(OmegaConf.to_container(OmegaConf.create(written))) == config  # type: ignore[arg-type]


def test_every_field_of_a_config_is_frozen() -> None:
    config = mlmlab.compose()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.epochs = 1  # type: ignore[misc]


def test_composing_again_in_one_process_starts_afresh() -> None:
    first = mlmlab.compose("seed=5", "model.layers=3")
    assert mlmlab.compose().seed == 0
    with refusal("foo", Code.UNKNOWN_KEY):
        mlmlab.compose("foo=1")
    assert mlmlab.compose("seed=5", "model.layers=3") == first
    assert not GlobalHydra.instance().is_initialized()


def test_composing_inside_another_hydra_leaves_it_as_it_was() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder() / "debug")):
        assert mlmlab.compose("seed=5").seed == 5
        with refusal("foo", Code.UNKNOWN_KEY):
            mlmlab.compose("foo=1")
        assert hydra_compose("one_step").mode == "one_step"


def test_the_warm_up_of_pretraining_is_a_share_of_the_run() -> None:
    train = mlmlab.compose("+experiment=pretrain", "data.path=my.txt").train
    assert train.warmup_steps == 0
    for total in (20, 300, 500_000):
        assert 0 < train.warmup(total) < total / 10
    fixed = mlmlab.compose("train.warmup_steps=7").train
    assert fixed.warmup(300) == 7


def test_pretraining_scores_a_small_and_bounded_test_set() -> None:
    config = mlmlab.compose("+experiment=pretrain", "data.path=my.txt")
    assert config.data.test_fraction <= 0.01
    assert config.eval.max_examples is not None
    assert config.train.save_every_minutes == 30


@pytest.mark.parametrize(
    ("overrides", "highest"),
    [
        ((), 0.15),
        (("masking.schedule=linear", "masking.start_rate=0.3"), 0.3),
        (("masking.schedule=cosine", "masking.start_rate=0.1"), 0.15),
        (("masking.schedule=steps", "masking.rate_steps=['5:0.4','9:0.2']"), 0.4),
    ],
)
def test_the_memory_estimate_counts_the_highest_rate_of_a_schedule(
    overrides: tuple[str, ...], highest: float
) -> None:
    masking = mlmlab.compose(*overrides).masking
    assert masking.highest_rate == highest
    assert max(masking.rate_at(step, 20) for step in range(20)) == pytest.approx(highest)


@pytest.mark.parametrize("value", ["0", "1e-07", "5"])
def test_fresh_weights_are_as_wide_as_a_checkpoint_may_say(value: str) -> None:
    with refusal("model.initializer_range", Code.INVALID, value):
        mlmlab.compose(f"model.initializer_range={value}")
