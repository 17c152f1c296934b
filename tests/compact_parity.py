# SPDX-License-Identifier: BSD-3-Clause
"""A few hundred small calls on a GPU, held against an exact oracle and the CPU: also what compute-sanitizer runs over.

Everything is made on the CPU and copied, so that only this package's kernels run on the GPU: what they read was then
written by a copy that initcheck sees, or by themselves.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

import torch
from accuracy import DTYPES, LOSSES, Problem, assert_as_accurate, loss_and_grads, oracle, plain_loss, threshold

import linreg_ext
from linreg_ext.autograd import OPERANDS

# Rows of every layout and their edges: several a load, a part of a warp, a warp, a block, through memory.
SHAPES = [
    (0, 5, 1), (1, 1, 1), (67, 1, 1), (300, 3, 1), (257, 4, 1), (130, 13, 1), (97, 16, 1), (65, 64, 1), (1000, 64, 1), (33, 101, 1),
    (40, 128, 1), (19, 1000, 1), (9, 4096, 1), (5, 5003, 1), (4, 9000, 1), (3, 20000, 1), (2, 70001, 1),
    (65, 8, 2), (33, 17, 3), (29, 128, 4), (17, 256, 8), (9, 130, 31), (5, 3001, 6),
]  # fmt: skip
MANY_TARGETS = [(9, 6, 700), (40, 65, 130)]  # PyTorch's matrix products take part
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def main() -> int:
    """Check all problems; 1 when one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--without-products", action="store_true", help="leave out what PyTorch's own kernels take part in"
    )
    parser.add_argument("--part", default="0/1", metavar="I/N", help="only every N-th shape, from the I-th")
    options = parser.parse_args()
    first, every = map(int, options.part.split("/"))
    torch.manual_seed(0)
    wrong = count = 0
    shapes = list(enumerate(SHAPES if options.without_products else SHAPES + MANY_TARGETS))
    for name, problem, loss, reduction in problems(shapes[first::every]):
        count += 1
        print(name, end=": ", flush=True)  # the last line before a crash says where it was
        try:
            check_loss(problem, loss, reduction, options.device)
            check_steps(problem, loss, options.device)
            check_run(problem, loss, options.device)
        except Exception as error:
            wrong += 1
            print(f"WRONG: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}", flush=True)
            torch.zeros(1, device=options.device).item()  # raises if the error has made the GPU unusable
        else:
            print("ok", flush=True)
    print(f"{count} problems, {wrong} wrong")
    return int(wrong > 0)


def problems(shapes: list[tuple[int, tuple[int, int, int]]]) -> Iterator[tuple[str, Problem, str, str]]:
    """All numbered shapes and all dtypes; losses, reductions, weights and biases take turns."""
    for (i, shape), (j, (dtypes_name, dtypes)) in itertools.product(shapes, enumerate(DTYPES.items())):
        turn = i + 29 * j  # prime, so that a shape meets every loss, reduction and kind of weight
        loss, bias, weight = LOSSES[turn % 5], turn % 7 > 0, (None, "elements", None, "rows")[turn % 4]
        # The mean of nothing is nan on both sides.
        reduction = ("mean" if shape[0] else "sum", "sum", "none")[turn % 3]
        name = f"{shape} {dtypes_name} {loss} {reduction} weight={weight} bias={bias}"
        yield name, Problem.random(*shape, dtypes, bias=bias, weight=weight), loss, reduction


def check_loss(problem: Problem, loss: str, reduction: str, device: str) -> None:
    """Loss and all gradients under the accuracy rule, and the loss alone."""
    delta = 0.75
    plain = loss_and_grads(lambda p: plain_loss(p, loss, delta, reduction), problem)
    exact = oracle(problem, loss, delta, reduction)
    operands = [None if t is None else t.to(device) for t in vars(problem).values()]
    value = torch.ops.linreg_ext.linear_loss(*operands, loss, threshold(loss, delta), reduction)
    assert_as_accurate("loss alone", value.cpu(), plain["loss"], exact["loss"])
    summed = "sum" if reduction == "none" else reduction  # the gradients of an unreduced loss are those of its sum
    for wanted in ([True] * 4, [False, True, True, False]):
        wanted[2] = problem.linear_bias is not None
        value, grads = torch.ops.linreg_ext.linear_loss_grads(*operands, loss, threshold(loss, delta), summed, wanted)
        found = dict(zip((name for name, wish in zip(OPERANDS, wanted, strict=True) if wish), grads, strict=True))
        if summed == reduction:
            found["loss"] = value
        for name, ours in found.items():
            assert_as_accurate(name, ours.cpu().to(plain[name].dtype), plain[name], exact[name])


def check_run(problem: Problem, loss: str, device: str) -> None:
    """Full batches and two epochs of batches in an order, beside the CPU's."""
    rows, features = problem.input.shape
    for batch_size, order in ((None, None), (max(1, rows // 3), torch.arange(rows - 1, -1, -1))):
        results = []
        for where in ("cpu", device):
            x, w, y, b, v = (None if t is None else t.clone().to(where) for t in vars(problem).values())
            buffers = [None, None]
            losses = linreg_ext.sgd_run_(
                x, w, y, linear_bias=b, weight=v, loss=loss, order=order, batch_size=batch_size, epochs=2,
                lr=0.02 / (1 + features), momentum=0.9, momentum_buffers=buffers, stop_nonfinite=True,
            )  # fmt: skip
            results.append({"losses": losses, "weight": w, "bias": b, "buffer of weight": buffers[0]})
        compare("run", *results)


def check_steps(problem: Problem, loss: str, device: str) -> None:
    """Three steps with momentum and a learning rate on the device, beside the CPU's."""
    if problem.input.shape[0] == 0:
        return
    results = []
    for where in ("cpu", device):
        x, w, y, b, v = (None if t is None else t.clone().to(where) for t in vars(problem).values())
        buffers, lr = [None, None], torch.tensor(0.02 / (1 + problem.input.shape[1])).to(where)  # stable
        losses = [
            linreg_ext.sgd_step_(
                x, w, y, linear_bias=b, weight=v, loss=loss, lr=lr, momentum=0.9, weight_decay=0.01, nesterov=True,
                momentum_buffers=buffers,
            )
            for _ in range(3)
        ]  # fmt: skip
        results.append(
            {"weight": w, "bias": b, **dict(zip(("buffer of weight", "buffer of bias"), buffers, strict=True))}
        )
        results[-1] |= {f"loss {i}": value for i, value in enumerate(losses)}
    compare("steps", *results)


def compare(what: str, on_cpu: dict[str, torch.Tensor | None], on_device: dict[str, torch.Tensor | None]) -> None:
    for name, ours in on_device.items():
        if ours is None:
            continue
        expected = on_cpu[name].double()
        error = (ours.cpu().double() - expected).norm()
        allowed = TOLERANCE[ours.dtype] * (expected.norm() + 1e-3)
        assert error <= allowed, f"{what}: {name} is {error:.2g} from the CPU's, {allowed:.2g} is allowed"


if __name__ == "__main__":
    sys.exit(main())
