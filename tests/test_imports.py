# SPDX-License-Identifier: BSD-3-Clause
"""Every module of the package imports only from lower layers."""

import ast
import graphlib
import shutil
from pathlib import Path

import pytest

import linreg_ext

PACKAGE = Path(linreg_ext.__file__).parent

# From the bottom up. A module may import from lower layers, and a folder's modules from each other.
LAYERS = (
    {"_C"},  # the compiled part
    {"_version", "_extension", "autocast", "losses", "plots", "standardize", "tables"},
    {"reference"},
    {"autograd"},
    {"functional"},
    {"least_squares", "modules"},
    {"estimator", "training"},
    {"__init__"},
    {"cli", "examples"},
    {"__main__"},
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}


def import_graph(package):
    """{module: the modules of the package that it imports}, each as a tuple of names below the package.

    Import statements in functions and under TYPE_CHECKING are included.
    """
    files = {file.relative_to(package).with_suffix("").parts: file for file in package.rglob("*.py")}
    modules = {*files, ("_C",)}
    graph = {module: _imports(module, file, modules, package.name) for module, file in files.items()}
    return graph | {("_C",): set()}


def _imports(module, file, modules, package):
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {_module(name[1:], modules) for name in names if name[0] == package}
        elif isinstance(node, ast.ImportFrom):
            path = node.module.split(".") if node.module else []
            if node.level:
                path = [*module[: len(module) - node.level], *path]
            elif path[0] == package:
                path = path[1:]
            else:
                continue
            found |= {_module([*path, alias.name], modules) for alias in node.names}
    # Importing a module of another folder runs that folder's __init__ first.
    folders = {(*name[:i], "__init__") for name in found for i in range(1, len(name)) if name[:i] != module[:i]}
    return (found | folders) - {module}


def _module(path, modules):
    """The module of a path, which may end in a name that the module defines."""
    for candidate in (path, [*path, "__init__"], path[:-1], [*path[:-1], "__init__"]):
        if tuple(candidate) in modules:
            return tuple(candidate)
    raise ValueError(f"there is no {'.'.join(path)} in the package")


GRAPH = import_graph(PACKAGE)


def circle(graph):
    """A cycle of imports, or []."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [".".join(module) for module in error.args[1]]
    return []


def upward_imports(graph):
    """The imports of another file or folder that is not in a lower layer."""
    return sorted(
        f"{'.'.join(module)} imports {'.'.join(other)}"
        for module, others in graph.items()
        for other in others
        if other[0] != module[0] and LAYER_OF[other[0]] >= LAYER_OF[module[0]]
    )


def test_every_module_has_a_layer():
    assert {module[0] for module in GRAPH} == set(LAYER_OF)


def test_there_is_no_circle():
    assert circle(GRAPH) == []


def test_nothing_imports_upwards():
    assert upward_imports(GRAPH) == []


@pytest.mark.parametrize(
    ("module", "statement", "closes_a_circle", "upward"),
    [
        ("plots", "def f():\n    from .training import History", True, "plots imports training.__init__"),
        ("plots", "import linreg_ext.modules", False, "plots imports modules"),
        ("training/history", "if TYPE_CHECKING:\n    from .fit import fit", True, None),
        ("training/history", "from ..cli.dataset import Problem", True, "training.history imports cli.dataset"),
        ("tables/encoding", "from .. import plots", False, "tables.encoding imports plots"),
        ("autograd", "from linreg_ext import functional", True, "autograd imports functional"),
    ],
)
def test_what_is_planted_is_found(module, statement, closes_a_circle, upward, tmp_path):
    package = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=lambda folder, names: [n for n in names if n.endswith((".so", ".csv"))])
    with open(package / f"{module}.py", "a") as file:
        file.write(f"\n{statement}\n")
    graph = import_graph(package)
    assert bool(circle(graph)) == closes_a_circle
    assert upward in upward_imports(graph) if upward else upward_imports(graph) == []
