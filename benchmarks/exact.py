# SPDX-License-Identifier: BSD-3-Clause
"""Exact least squares beside other libraries, for the targets C14, C14b and C15."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import linreg_ext

from . import ours
from .availability import installed, needs_all_threads
from .clocks import Variant
from .harness import Bench, Case
from .names import BWREAD, HALF_PRODUCT, NAME, READING
from .problem import Expected, Problem

_ROWS = 2**16  # of a block in float64


def exact(bench: Bench) -> None:
    """Solve 2 GB of 128 columns; and, beside the peers that need tens of GB for that, a sixteenth."""
    for scale in (16, 1):
        problem = Problem.random((2**13 if bench.quick else 2**22) // scale, 128)
        makers = {f"{NAME} lstsq": _lstsq, HALF_PRODUCT: _half_product, "normal equations": _normal_equations}
        makers["scikit-learn"] = _scikit_learn
        if scale > 1:
            makers |= {"torch.linalg.lstsq": _torch_lstsq, "NumPy": _numpy}
        makers = {name: functools.partial(make, problem) for name, make in makers.items()}
        weight, bias = _by_normal_equations(problem)
        bench.compare(Case.of("exact", "C14", problem), makers, {"weight": Expected(weight), "bias": Expected(bias)})


def passes(bench: Bench) -> None:
    """One pass of second moments over 2²⁴ rows of few columns."""
    for d in (1, 4, 8, 16):
        problem = Problem.random(2**15 if bench.quick else 2**24, d)
        makers = {f"{NAME} LeastSquares": _update, BWREAD: ours.read_sum, "normal equations": _normal_equations}
        makers = {name: functools.partial(make, problem) for name, make in makers.items()}
        weight, bias = _by_normal_equations(problem)
        case = Case.of("moments", "C14b", problem)
        case.bytes = problem.x.nbytes + problem.y.nbytes
        bench.compare(case, makers, {"weight": Expected(weight), "bias": Expected(bias)})


def stream(bench: Bench) -> None:
    """Fit a Parquet file of 1.6 GB in blocks, as `fit --stream` does without drawing, beside reading it."""
    pyarrow, parquet = installed("pyarrow"), installed("pyarrow.parquet")
    blocks, block, d = (2, 2**12, 20) if bench.quick else (100, 10**5, 20)
    names, gram, right = [f"x{i}" for i in range(d)], torch.zeros(d + 1, d + 1).double(), torch.zeros(d + 1, 1).double()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        with parquet.ParquetWriter(path, pyarrow.schema([(name, "double") for name in (*names, "y")])) as file:
            for _ in range(blocks):
                x = torch.randn(block, d, dtype=torch.float64)
                y = x.sum(1, keepdim=True) + torch.randn(block, 1)
                rows = torch.cat([x, torch.ones(block, 1)], 1)
                gram.addmm_(rows.T, rows), right.addmm_(rows.T, y)
                file.write_table(pyarrow.table(dict(zip((*names, "y"), torch.cat([x, y], 1).T.numpy(), strict=True))))
        solution = torch.linalg.solve(gram, right)
        case = Case("stream", "C15", f"{blocks * block:,} × {d}", blocks * block, d, 1, torch.float64)
        makers = {f"{NAME} fit": functools.partial(_fit_stream, path), READING: functools.partial(_reading, path)}
        bench.compare(case, makers, {"weight": Expected(solution[:-1].T), "bias": Expected(solution[-1])})


def _fit_stream(path: Path) -> Variant:
    from linreg_ext.cli.arguments import parse
    from linreg_ext.cli.processes import Processes
    from linreg_ext.cli.stream import fit_stream

    args = parse(["fit", str(path), "--target", "y", "--val-fraction", "0", "--stream"])
    args.bar = False
    return _solver(lambda: (model := fit_stream(args, Processes())[1]) and (model.weight, model.bias), 1e-9)


def _reading(path: Path) -> Variant:
    """The bound: pyarrow's batches, of which nothing is done."""
    parquet = installed("pyarrow.parquet")

    def run() -> None:
        with parquet.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass

    return Variant(run, role="bound", rest=0.05)


def _by_normal_equations(problem: Problem) -> tuple[Tensor, Tensor]:
    """[weight, bias] in float64, from blocks of rows."""
    width = problem.d + 1
    gram, right = (torch.zeros(width, k, dtype=torch.float64) for k in (width, problem.k))
    for x, y in zip(problem.x.split(_ROWS), problem.y.split(_ROWS), strict=True):
        rows = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
        gram.addmm_(rows.T, rows)
        right.addmm_(rows.T, y.double())
    solution = torch.linalg.solve(gram, right)
    return solution[:-1].T, solution[-1]


def _lstsq(problem: Problem) -> Variant:
    """linreg_ext.lstsq, refined."""
    return _solver(lambda: (s := linreg_ext.lstsq(problem.x, problem.y)) and (s.weight, s.bias), 1e-9)


def _update(problem: Problem) -> Variant:
    """One pass of LeastSquares, and its solution."""

    def run() -> tuple[Tensor, Tensor]:
        solution = linreg_ext.LeastSquares(problem.d).update(problem.x, problem.y).solve()
        return solution.weight, solution.bias

    return _solver(run, 1e-9)


def _solver(run: Callable[[], tuple[Tensor, Tensor]], tolerance: float | None = None) -> Variant:
    last: dict[str, Tensor] = {}

    def remembered() -> None:
        last["weight"], last["bias"] = run()

    role = "peer" if tolerance is None else "ours"
    return Variant(remembered, lambda: last, role=role, tolerance=tolerance, rest=0.05)


def _half_product(problem: Problem) -> Variant:
    """The bound: a symmetric product has half the work of XᵀX, here of half the rows in float64."""
    rows = min(2**18, problem.n // 2)
    x = problem.x[:rows].double()

    def run() -> None:
        for _ in range(problem.n // 2 // rows):
            torch.mm(x.T, x)

    return Variant(run, role="bound", rest=0.05)


def _normal_equations(problem: Problem) -> Variant:
    """Float64 blocks, by hand."""
    return _solver(lambda: _by_normal_equations(problem))


def _torch_lstsq(problem: Problem) -> Variant:
    """torch.linalg.lstsq in float64, which holds the table twice."""
    ones = torch.ones(problem.n, 1, dtype=torch.float64)

    def run() -> tuple[Tensor, Tensor]:
        solution = torch.linalg.lstsq(torch.cat([problem.x.double(), ones], 1), problem.y.double()).solution
        return solution[:-1].T, solution[-1]

    return _solver(run)


def _numpy(problem: Problem) -> Variant:
    """numpy.linalg.lstsq in float64."""
    needs_all_threads("NumPy")
    numpy = installed("numpy")

    def run() -> tuple[Tensor, Tensor]:
        x = numpy.column_stack([problem.x.numpy().astype("float64"), numpy.ones(problem.n)])
        solution = torch.from_numpy(numpy.linalg.lstsq(x, problem.y.numpy().astype("float64"))[0])
        return solution[:-1].T, solution[-1]

    return _solver(run)


def _scikit_learn(problem: Problem) -> Variant:
    """LinearRegression on the table as it is, in float32."""
    needs_all_threads("scikit-learn")
    model = installed("sklearn.linear_model").LinearRegression()

    def run() -> tuple[Tensor, Tensor]:
        model.fit(problem.x.numpy(), problem.y.numpy())
        return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)

    return _solver(run)
