"""The data flows one way: a stage imports only the stages above it, read from the source itself."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import mlmlab

PACKAGE = Path(mlmlab.__file__).parent

STAGES = (
    "errors",
    "schema",
    "style",
    "kernels",
    # From random numbers and text ...
    "random",
    "fetch",
    "data",
    "masking",
    "processes",
    "micro_batch",
    "loader",
    # ... through the model ...
    "model",
    "checkpoints",
    "filling",
    # ... to updates and figures.
    "tracking",
    "training",
    # The whole run.
    "config",
    "inputs",
    "gathering",
    "run_folder",
    "snapshot",
    "resuming",
    "model_card",
    "optimum",
    "terminal",
    "launch",
    "replaying",
    "evaluating",
    # What entry points share.
    "composition",
    "command",
    "starting",
    "runs",
    "sweeping",
)
"""Modules and packages of mlmlab, each below all that it may import. An entry point (a module that
runs with `python -m`) stands below them all."""


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    target: str
    """The module it comes from, dotted."""
    is_immediate: bool
    """Whether importing the importer imports it, too: not inside a function, not for types only."""


def module_name(file: Path) -> str:
    parts = ("mlmlab", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> list[Import]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return list(_imports(tree, is_immediate=True))


def _imports(node: ast.AST, is_immediate: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, is_immediate) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            assert child.module is not None
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(inner if inner in FILES else child.module, is_immediate)
        else:
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            )
            yield from _imports(child, is_immediate and not later)


def stage_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_config(module: str) -> bool:
    """Plain config dataclasses, which every stage may know."""
    return module.count(".") == 2 and module.endswith(".config")


ENTRY_POINTS = [
    name
    for name, file in FILES.items()
    if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
]
INNER = [name for name in FILES if name != "mlmlab" and name not in ENTRY_POINTS]


def test_every_module_has_a_place_in_the_flow() -> None:
    assert {stage_of(module) for module in INNER} == set(STAGES)
    assert "mlmlab.train" in ENTRY_POINTS


def test_a_stage_imports_only_what_stands_above_it() -> None:
    below = [
        f"{module} imports {found.target}"
        for module in INNER
        for found in imports_of(module)
        if found.target.split(".")[0] == "mlmlab"
        and not is_config(found.target)
        and (
            found.target not in INNER
            or STAGES.index(stage_of(found.target)) > STAGES.index(stage_of(module))
        )
    ]
    assert below == []


def test_config_dataclasses_know_nothing_but_errors_and_each_other() -> None:
    configs = [module for module in INNER if is_config(module)]
    known = {found.target for module in configs for found in imports_of(module)} - {*configs}
    assert len(configs) >= 4
    assert {name for name in known if name.startswith("mlmlab")} == {"mlmlab.errors"}


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: [found.target for found in imports_of(module) if found.target in FILES]
        for module in FILES
        if module != "mlmlab"
    }
    TopologicalSorter(graph).prepare()  # raises for a cycle


def importers_of(*packages: str) -> set[str]:
    return {
        module
        for module in FILES
        if any(found.target.split(".")[0] in packages for found in imports_of(module))
    }


def test_no_framework_that_mlmlab_replaces_is_imported() -> None:
    frameworks = ("transformers", "datasets", "accelerate", "lightning", "pytorch_lightning")
    assert importers_of(*frameworks) == set()


def test_only_entry_points_and_what_they_share_know_hydra() -> None:
    knowing = importers_of("hydra")
    assert "mlmlab.composition" in knowing
    assert knowing <= {
        "mlmlab.composition",
        "mlmlab.command",
        "mlmlab.sweeping",
        *ENTRY_POINTS,
    }


def reached_by_importing(module: str) -> set[str]:
    """Every module that `import module` imports, ours and others, as far as our source says."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        if name in FILES:
            waiting += [found.target for found in imports_of(name) if found.is_immediate]
            waiting += [name.rpartition(".")[0]] if "." in name else []  # packages come along
    return reached


def test_a_wrong_option_does_not_wait_for_pytorch() -> None:
    reached = {name.split(".")[0] for name in reached_by_importing("mlmlab.train")}
    assert "hydra" in reached
    assert reached.isdisjoint({"torch", "numba"})


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert reached_by_importing("mlmlab") == {"mlmlab", "importlib", "typing"}
