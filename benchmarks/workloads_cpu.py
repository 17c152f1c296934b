# SPDX-License-Identifier: BSD-3-Clause
"""The CPU workloads, each for one of the targets C1 to C16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import linreg_ext
from linreg_ext.examples import b_one_feature

from . import epochs, estimators, exact, many, memory, ours, processes
from .clocks import Variant
from .harness import Bench, Case, Maker
from .names import BWREAD, NAME, PRODUCTS
from .peers import STEPS, linear
from .problem import Answer, Expected, Problem

TINY = 32, 8  # rows and features of the smallest step


def makers(problem: Problem, own: Mapping[str, Callable[[Problem], Variant]], *bounds: str) -> dict[str, Maker]:
    """Our variants, the named bounds and every peer."""
    known = {BWREAD: ours.read_sum, PRODUCTS: ours.two_products}
    chosen = {**own, **{name: known[name] for name in bounds}, **STEPS}
    return {name: functools.partial(make, problem) for name, make in chosen.items()}


def steps(bench: Bench, workload: str, id: str, problem: Problem, *bounds: str) -> None:
    """One step on a problem, by make_train_step and by every peer."""
    bounds = bounds or (BWREAD,)
    own = {NAME: ours.train_step}
    bench.compare(Case.of(workload, id, problem), makers(problem, own, *bounds), problem.after_steps())


def large(bench: Bench) -> None:
    """One step on 1 GB of float32, one target."""
    for d in (16, 64, 128, 512, 1024):
        steps(bench, "large", "C1", Problem.random(bench.large // 4 // d, d))


def narrow(bench: Bench) -> None:
    """One step on 2²⁴ rows of 1 to 8 features."""
    for d in (1, 2, 4, 8):
        steps(bench, "narrow", "C2", Problem.random(2**15 if bench.quick else 2**24, d))


def cache(bench: Bench) -> None:
    """One step on 1.5 MB, which fits in the second-level cache, on one thread."""
    with bench.threads(1):
        for d in (16, 128, 512, 1024):
            problem = Problem.random(3 * 2**17 // d, d)
            own = {f"{NAME} sgd_step_": ours.function}
            case = Case.of("cache", "C3", problem)
            bench.compare(case, makers(problem, own, BWREAD), problem.after_steps())


def full_batch(bench: Bench) -> None:
    """1000 epochs over 80 rows of one feature, by every loop."""
    problem, count = Problem.random(80, 1, noise=0.1), 1000
    case = Case("epochs", "C4", f"{count:,} epochs of 80 × 1", 80, 1)
    loops = {name: functools.partial(make, problem, count) for name, make in epochs.LOOPS.items()}
    bench.compare(case, loops, problem.after_steps(count), tolerance=1e-4)


def tiny(bench: Bench) -> None:
    """One step on 32 rows of 8 features, from Python to Python, by every entry."""
    problem = Problem.random(*TINY)
    own = {
        f"{NAME} _C.sgd_step_": ours.entry,
        f"{NAME} torch.ops": ours.operator,
        f"{NAME} sgd_step_": ours.function,
        f"{NAME} TrainStep": ours.train_step,
    }
    bench.compare(Case.of("tiny", "C5", problem), makers(problem, own), problem.after_steps())


def several(bench: Bench) -> None:
    """One step with 8 targets on 1 GB."""
    steps(bench, "several", "C6", Problem.random(bench.large // 4 // 128, 128, 8))


def products(bench: Bench) -> None:
    """One step with many targets, where the two matrix products dominate."""
    d, n = (128, 2**8) if bench.quick else (1024, 2**14)
    for k in (d // 16, d):
        steps(bench, "products", "C7", Problem.random(n, d, k), PRODUCTS)


def program(bench: Bench) -> None:
    """A whole tutorial program: 150 epochs over a DataLoader in batches of 16, with validation."""
    dataset = TensorDataset(*(torch.from_numpy(column).float() for column in b_one_feature.make_data()))

    def run(fused: bool) -> Answer:
        model, losses, _, _ = b_one_feature.train(fused, dataset, torch.device("cpu"))
        return {"losses": torch.as_tensor(losses), **model.state_dict()}

    def program_of(fused: bool) -> Variant:
        last = {}
        return Variant(lambda: last.update(run(fused)), lambda: last, role="ours" if fused else "peer")

    case = Case("program", "C8", "150 epochs of 80 × 1 in batches of 16", 80, 1)
    programs = {f"{NAME} fit": lambda: program_of(True), "eager": lambda: program_of(False)}
    expected = {name: Expected(value.double()) for name, value in run(False).items()}
    bench.compare(case, programs, expected, tolerance=1e-4)


def loss(bench: Bench, workload: str = "loss", id: str = "C9", problem: Problem | None = None) -> None:
    """Forward and backward of the loss, for the gradients of the parameters."""
    problem = problem or Problem.random(*TINY)
    fused = functools.partial(_backward, problem, linreg_ext.linear_mse_loss, "ours")
    plain = functools.partial(_backward, problem, _plain_loss, "peer")
    ways = {f"{NAME} linear_mse_loss": fused, "eager": plain}
    ways["compiled"] = lambda: _backward(problem, torch.compile(_plain_loss, dynamic=False), "peer")
    if problem.n > TINY[0]:
        ways[BWREAD] = functools.partial(ours.read_sum, problem)
    bench.compare(Case.of(workload, id, problem), ways, problem.loss_and_gradients())


def _plain_loss(x: Tensor, w: Tensor, y: Tensor, *, linear_bias: Tensor) -> Tensor:
    return F.mse_loss(F.linear(x, w, linear_bias), y)


def _backward(problem: Problem, function: Callable[..., Tensor], role: str) -> Variant:
    model: nn.Linear = linear(problem)
    last: dict[str, Tensor] = {}

    def run() -> None:
        model.weight.grad = model.bias.grad = None
        value = function(problem.x, model.weight, problem.y, linear_bias=model.bias)
        value.backward()
        last["loss"] = value.detach()

    return Variant(
        run, lambda: {**last, "weight": model.weight.grad, "bias": model.bias.grad}, role=role, finish=problem.wait
    )


def bits(bench: Bench) -> None:
    """The same bits with one thread and with all."""
    threads = max(2, torch.get_num_threads())
    for n, d, k in ((100_003, 1, 1), (100_003, 7, 2), (30_011, 33, 1), (5_003, 257, 3), (301, 20_000, 1)):
        problem = Problem.random(n, d, k)
        answers = []
        for count in (1, threads):
            with bench.threads(count):
                variant = ours.function(problem)
                for _ in range(3):
                    variant.run()
                answers.append(variant.answer())
        same = all(torch.equal(answers[0][part], answers[1][part]) for part in answers[0])
        if not same:
            bench.fail(NAME, f"different bits with {threads} threads than with one on {n:,} × {d:,} × {k}")
        columns = bench.columns(Case.of("bits", "C11", problem), NAME, "ours")
        bench.results.add(**columns, value=int(same), unit=f"same bits with 1 and {threads} threads")
        print(f"  C11  {n:,} × {d:,} × {k}: {'the same' if same else 'DIFFERENT'} bits with 1 and {threads} threads")


def sizes(bench: Bench) -> None:
    """One step on 8 features and more and more rows: the speed-up by size."""
    for n in (32, 2**9) if bench.quick else (32, 2**9, 2**13, 2**17, 2**21, 2**25):
        steps(bench, "sizes", "", Problem.random(n, 8))


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "large": large,
    "narrow": narrow,
    "cache": cache,
    "epochs": full_batch,
    "tiny": tiny,
    "several": several,
    "products": products,
    "program": program,
    "loss": loss,
    "memory": memory.measure,
    "groups": many.groups,
    "sweep": many.sweep,
    "exact": exact.exact,
    "moments": exact.passes,
    "stream": exact.stream,
    "processes": processes.processes,
    "estimators": estimators.estimators,
    "bits": bits,
    "sizes": sizes,
}
