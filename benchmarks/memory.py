# SPDX-License-Identifier: BSD-3-Clause
"""The memory that a computation needs beyond its data, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys

from .harness import Bench, Case
from .names import NAME
from .results import aligned

# VmHWM is the peak of this process; getrusage would include what the parent held before the fork.
PROLOGUE = """
import json, re, sys
import torch, torch.nn.functional as F
import linreg_ext

n, d, k, device = {n}, {d}, {k}, {device!r}
torch.manual_seed(0)
x = torch.empty(n, d, device=device).uniform_(-1, 1)
y = torch.empty(n, k, device=device).uniform_(-1, 1)
model = torch.nn.Linear(d, k, device=device)
w, b = model.weight, model.bias

def held():
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def growth(work):
    work(x[:1000], y[:1000])  # for one-time allocations
    before = held()
    value = work(x, y)
    assert value.isfinite().all()
    print(json.dumps(held() - before))

def backward(x, y, function):
    value = function(x, w, y, linear_bias=b)
    value.backward()
    return value

def plain(x, w, y, *, linear_bias):
    return F.mse_loss(F.linear(x, w, linear_bias), y)

def plain_step(model, loss_fn, optimizer):
    def step(x, y):
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()
    return step

def training(x, y, make=linreg_ext.make_train_step):
    step = make(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-4))
    for _ in range(3):
        value = step(x, y)
    return value
"""
LOSS = {
    f"{NAME} linear_mse_loss": "growth(lambda x, y: backward(x, y, linreg_ext.linear_mse_loss))",
    "eager": "growth(lambda x, y: backward(x, y, plain))",
}
EXACT = {f"{NAME} lstsq": "growth(lambda x, y: linreg_ext.lstsq(x, y).residual_sum_of_squares[0])"}
TRAINING = {
    f"{NAME} TrainStep": "growth(training)",
    "eager": "growth(lambda x, y: training(x, y, plain_step))",
}


def measure(bench: Bench) -> None:
    """Memory of forward and backward for 64 targets (C10), of an exact solution (C14), and of training on 2 GB."""
    rows = 2**14 if bench.quick else 2**20
    _compare(bench, Case("memory", "C10", f"{rows:,} × 64 × 64", rows, 64, 64), LOSS)
    rows = 2**13 if bench.quick else 2**22
    _compare(bench, Case("memory", "C14", f"{rows:,} × 128", rows, 128), EXACT)
    rows = 2**13 if bench.quick else 2**19
    _compare(bench, Case("memory", "", f"training on {rows:,} × 1,024", rows, 1024), TRAINING)


def _compare(bench: Bench, case: Case, pieces: dict[str, str]) -> None:
    data = (case.d + case.k) * case.n * 4
    print(f"\n{case.id or case.workload}  {case.name}  {data / 1e9:.3g} GB of data", flush=True)
    lines = [("variant", "grows by", "of the data")]
    for name, piece in pieces.items():
        if not bench.wanted(name):
            continue
        script = PROLOGUE.format(n=case.n, d=case.d, k=case.k, device=bench.device) + piece
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if run.returncode:
            bench.fail(f"memory of {name}", (run.stderr.strip().splitlines() or ["no message"])[-1])
            continue
        grown = json.loads(run.stdout)
        role = "ours" if name.startswith(NAME) else "peer"
        bench.results.add(**bench.columns(case, name, role), bytes=data, memory_bytes=grown)
        lines.append((name, f"{grown / 1e6:,.1f} MB", f"{grown / data:.2%}"))
    print("  " + aligned(lines).replace("\n", "\n  "), flush=True)
