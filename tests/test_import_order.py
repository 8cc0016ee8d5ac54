"""Imports go one way, as docs/design.md has it: read from its text and from the source itself."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlmlab

PACKAGE = Path(mlmlab.__file__).parent

DESIGN = PACKAGE.parent / "docs" / "design.md"
COMMANDS = "the commands"


def packages_in_order() -> list[str]:
    """The lines of docs/design.md that say which package may import which, from left to right."""
    arrows = DESIGN.read_text(encoding="utf-8").split("## The arrows")[1].split("```")[1]
    *levels, commands = (level.split() for level in arrows.split("->"))
    assert " ".join(commands) == COMMANDS
    return [package for level in levels for package in level]


ORDER = packages_in_order()


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


def package_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


COMMAND_MODULES = [
    name
    for name, file in FILES.items()
    if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8")
]
INNER = [name for name in FILES if name != "mlmlab" and name not in COMMAND_MODULES]


def test_the_design_names_every_package_and_no_other() -> None:
    assert {package_of(module) for module in INNER} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert "mlmlab.train" in COMMAND_MODULES


def test_a_package_imports_only_what_is_left_of_it() -> None:
    upwards = [
        f"{module} imports {found.target}"
        for module in INNER
        for found in imports_of(module)
        if found.target.split(".")[0] == "mlmlab"
        and (
            found.target not in INNER
            or ORDER.index(package_of(found.target)) > ORDER.index(package_of(module))
        )
    ]
    assert upwards == []


def test_the_top_level_can_be_taken_in_at_a_glance() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 18


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: [found.target for found in imports_of(module) if found.target in FILES]
        for module in FILES
        if module != "mlmlab"
    }
    order = list(TopologicalSorter(graph).static_order())  # raises for a cycle
    assert {*order} >= graph.keys()


def importers_of(*packages: str) -> set[str]:
    return {
        module
        for module in FILES
        if any(found.target.split(".")[0] in packages for found in imports_of(module))
    }


def test_no_framework_that_mlmlab_replaces_is_imported() -> None:
    frameworks = ("transformers", "datasets", "accelerate", "lightning", "pytorch_lightning")
    assert importers_of(*frameworks) == set()


def test_only_cli_and_the_commands_know_hydra_and_argparse() -> None:
    knowing = importers_of("hydra", "argparse")
    assert "mlmlab.cli.compose" in knowing
    assert {package_of(module) for module in knowing - {*COMMAND_MODULES}} == {"cli"}


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


@pytest.mark.parametrize("command", COMMAND_MODULES)
def test_a_wrong_option_and_help_do_not_wait_for_pytorch(command: str) -> None:
    reached = {name.split(".")[0] for name in reached_by_importing(command)}
    assert "omegaconf" in reached
    assert reached.isdisjoint(
        {"torch", "numpy", "numba", "pyarrow", "transformers", "huggingface_hub"}
    )


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert reached_by_importing("mlmlab") == {"mlmlab", "importlib", "typing"}
