# SPDX-License-Identifier: BSD-3-Clause
"""The GPU workloads, each for one or more of the targets G1 to G13.

Those bound by memory have 2 GB of data, forty times the second-level cache of an H100: a pass leaves nothing in the
cache for the next, so that buffers need not take turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import torch

from . import epochs, launches, memory, ours, workloads_cpu
from .clocks import Variant
from .harness import Bench, Case, Maker
from .names import BWREAD, NAME, PRODUCTS, RUN_BATCHES, RUN_EPOCHS
from .peers import STEPS
from .problem import Problem

ALL_PEERS = ("eager", "compiled", "by hand", "by hand, compiled", "JAX")


def steps(
    bench: Bench, workload: str, id: str, problem: Problem, peers: Iterable[str] = ("eager",), bound: str = BWREAD
) -> None:
    """One step on a problem, by make_train_step and by some peers, captured in graphs."""
    makers = workloads_cpu.makers(problem, {NAME: ours.train_step}, bound)
    chosen = {name: make for name, make in makers.items() if name not in STEPS or name in peers}
    bench.compare(Case.of(workload, id, problem), chosen, problem.after_steps())


def _problem(bench: Bench, d: int, k: int = 1, dtype: torch.dtype = torch.float32) -> Problem:
    """An even number of rows that fill `bench.large` bytes."""
    return Problem.random(bench.large // dtype.itemsize // d // 2 * 2, d, k, dtype, bench.device)


def large(bench: Bench) -> None:
    """One step on 2 GB of float32, one target."""
    for d in (32, 128, 512, 1024, 4096):
        steps(bench, "large", "G1", _problem(bench, d))


def graphs(bench: Bench) -> None:
    """One step on 2 GB beside every peer, PyTorch's captured in graphs."""
    steps(bench, "graphs", "G3", _problem(bench, 128), ALL_PEERS)


def types(bench: Bench) -> None:
    """One step on 2 GB of other dtypes, of very narrow rows and of odd widths."""
    for dtype in (torch.bfloat16, torch.float64):
        for d in (128, 1024):
            steps(bench, "types", "G2", _problem(bench, d, dtype=dtype))
    for d in (1, 2, 4, 8, 13, 101, 1001):
        steps(bench, "types", "G2", _problem(bench, d))


def wide(bench: Bench) -> None:
    """One step on 2 GB of very wide rows."""
    for d in (2**14, 2**16, 2**17):
        steps(bench, "wide", "G4", _problem(bench, d))


def several(bench: Bench) -> None:
    """One step with 2 to 16 targets on 2 GB."""
    for k in (2, 4, 8, 16):
        for d in (128, 512):
            steps(bench, "several", "G5", _problem(bench, d, k))


def products(bench: Bench) -> None:
    """One step in bfloat16 with many targets, where the two matrix products dominate."""
    for d, k in ((1024, 64), (1024, 1024), (4096, 4096)):
        n = 2**8 if bench.quick else 2**16
        problem = Problem.random(n, d, k, torch.bfloat16, bench.device)
        steps(bench, "products", "G6", problem, ("eager", "by hand"), PRODUCTS)


def launch(bench: Bench) -> None:
    """One step on 32 rows of 8 features: the cost of a launch, and what else a step makes the GPU do."""
    problem = Problem.random(*workloads_cpu.TINY, device=bench.device)
    own = {f"{NAME} sgd_step_": ours.function, f"{NAME} TrainStep": ours.train_step}
    makers = {name: make for name, make in workloads_cpu.makers(problem, own).items() if name not in ("NumPy", "numba")}
    replayed, from_python = (Case.of("launch", "G11", problem) for _ in range(2))
    replayed.name += ", replayed"
    bench.compare(replayed, {n: m for n, m in makers.items() if n != "JAX"}, problem.after_steps())
    from_python.name, from_python.id = from_python.name + ", from Python", ""
    bench.compare(from_python, _by_the_wall_clock(makers), problem.after_steps())
    _hygiene(bench, problem)


def _by_the_wall_clock(makers: Mapping[str, Maker]) -> dict[str, Maker]:
    def timed(make: Maker) -> Variant:
        variant = make()
        variant.clock = "wall"
        return variant

    return {name: functools.partial(timed, make) for name, make in makers.items()}


def _hygiene(bench: Bench, problem: Problem) -> None:
    step = ours.train_step(problem).run
    calls = 10
    work = launches.device_work(step, calls)
    found = {
        "kernels a step": launches.kernels(work) / calls,
        "copies and fills a step": launches.copies_and_fills(work) / calls,
        "synchronisations": launches.waits(work),
        "allocations from the driver": launches.driver_allocations(step),
    }
    for name, value in found.items():
        case = Case.of("launch", "G11", problem)
        case.name += f": {name}"
        bench.results.add(**bench.columns(case, f"{NAME} {name}", "ours"), value=value, unit="count")
        print(f"  G11  {name}: {value:g}")


def order(bench: Bench) -> None:
    """The same bits 100 times."""
    problem = Problem.random(2**12 if bench.quick else 2**20, 128, device=bench.device)
    answers = []
    for _ in range(100):
        variant = ours.function(problem)
        variant.run()
        answers.append(variant.answer())
    same = all(torch.equal(answer[part], first) for part, first in answers[0].items() for answer in answers)
    if not same:
        bench.fail(NAME, "different bits when it runs again")
    columns = bench.columns(Case.of("order", "G12", problem), f"{NAME} same bits 100 times", "ours")
    bench.results.add(**columns, value=int(same), unit="same bits")
    print(f"  G12  {'the same' if same else 'DIFFERENT'} bits 100 times")


def loss(bench: Bench) -> None:
    """Forward and backward of the loss on 2 GB, for the gradients of the parameters."""
    workloads_cpu.loss(bench, "loss", "G13", _problem(bench, 128))


def runs(bench: Bench) -> None:
    """Many full-batch epochs in one call, on data that one block holds, beside graphs of as many steps."""
    count = 20 if bench.quick else RUN_EPOCHS
    for n, d in ((2**13, 1), (2**11, 8), (2**9, 32)):
        problem = Problem.random(n // 64 if bench.quick else n, d, device=bench.device, noise=0.1)
        case = Case("runs", "G8", f"{count} epochs of {problem.n:,} × {d}", problem.n, d)
        _compare_runs(bench, case, problem, count)


def run_from_python(bench: Bench) -> None:
    """1000 epochs over 100 rows of one feature, until the GPU has finished."""
    count = 20 if bench.quick else 1000
    problem = Problem.random(100, 1, device=bench.device, noise=0.1)
    case = Case("run from Python", "G9", f"{count:,} epochs of 100 × 1, from Python", 100, 1)
    _compare_runs(bench, case, problem, count, _by_the_wall_clock)


def _compare_runs(
    bench: Bench,
    case: Case,
    problem: Problem,
    count: int,
    timed: Callable[[dict[str, Maker]], dict[str, Maker]] = lambda makers: makers,
) -> None:
    loops = {name: epochs.LOOPS[name] for name in (f"{NAME} sgd_run_", f"{NAME} sgd_step_", "eager")}
    makers = {name: functools.partial(make, problem, count) for name, make in loops.items()}
    bench.compare(case, timed(makers), problem.after_steps(count), tolerance=1e-4)


def mini_batches(bench: Bench) -> None:
    """One epoch over 64 MB in batches of 256 rows of 256 features."""
    size, batches = 256, 4 if bench.quick else RUN_BATCHES
    problem = Problem.random(size * batches, size, device=bench.device)
    case = Case("mini-batches", "", f"{batches} batches of {size} × {size}", problem.n, size)
    make = functools.partial(epochs.sgd_run, problem, 1, size)
    bench.compare(case, {f"{NAME} sgd_run_": make}, epochs.mini_batches(problem, size), tolerance=1e-4)


def sizes(bench: Bench) -> None:
    """One step on 8 features and more and more rows: the speed-up by size."""
    for n in (32, 2**9) if bench.quick else (32, 2**10, 2**15, 2**20, 2**25):
        steps(bench, "sizes", "", Problem.random(n, 8, device=bench.device), ("eager", "by hand"))


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "large": large,
    "graphs": graphs,
    "types": types,
    "several": several,
    "loss": loss,
    "wide": wide,
    "products": products,
    "launch": launch,
    "order": order,
    "runs": runs,
    "run from Python": run_from_python,
    "mini-batches": mini_batches,
    "sizes": sizes,
    "memory": memory.measure,
}
