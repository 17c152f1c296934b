# SPDX-License-Identifier: BSD-3-Clause
"""Bad input raises the right error with a clear message: one table of bad calls, eager and compiled."""

import math

import pytest
import torch
from accuracy import LOSSES
from torch import nn

import linreg_ext


def good():
    return {
        "input": torch.randn(32, 3), "linear_weight": torch.randn(1, 3), "target": torch.randn(32, 1),
        "linear_bias": torch.randn(1),
    }  # fmt: skip


def shared(name, *, of):
    """Make an argument a view of another's memory."""

    def change(arguments):
        other = arguments[of].view(-1)
        arguments[name] = other[: arguments[name].numel()].view(arguments[name].shape)

    return change


def expanded(name, shape):
    def change(arguments):
        arguments[name] = torch.zeros(1).expand(shape)

    return change


def buffers(change):
    """Momentum buffers that `change` makes overlap something else."""

    def with_buffers(arguments):
        arguments["momentum"] = 0.9
        arguments["momentum_buffers"] = [torch.zeros(1, 3), torch.zeros(1)]
        change(arguments, arguments["momentum_buffers"])

    return with_buffers


# (change to a good call, error, words of its message). A change is new arguments, or a function that modifies them.
LOSS_CASES = [
    ({"target": torch.zeros(32)}, RuntimeError, "target must have shape [32, 1], got [32]"),
    ({"target": torch.zeros(32, 32)}, RuntimeError, "target must have shape [32, 1], got [32, 32]"),
    ({"target": torch.zeros(31, 1)}, RuntimeError, "target must have shape [32, 1], got [31, 1]"),
    ({"linear_weight": torch.zeros(3)}, RuntimeError, "target must have shape [32], got [32, 1]"),
    ({"linear_weight": torch.zeros(1, 4)}, RuntimeError, "linear_weight must have shape [out_features, 3] or [3], got [1, 4]"),
    ({"linear_weight": torch.zeros(1, 1, 3)}, RuntimeError, "linear_weight must have shape [out_features, 3] or [3]"),
    ({"linear_bias": torch.zeros(2)}, RuntimeError, "linear_bias must have shape [1], got [2]"),
    ({"linear_bias": torch.zeros(())}, RuntimeError, "linear_bias must have shape [1], got []"),
    ({"weight": torch.zeros(31)}, RuntimeError, "weight must have shape [32, 1], [32] or [32, 1], got [31]"),
    ({"input": torch.zeros(())}, RuntimeError, "input must have at least 1 dimension, got shape []"),
    ({"input": torch.zeros(32, 3).long()}, RuntimeError, "input must have dtype float32, float64, bfloat16 or float16, got int64"),
    ({"input": torch.zeros(32, 3).cfloat()}, RuntimeError, "float16, got complex64"),
    ({"input": torch.zeros(32, 3).double()}, RuntimeError, "linear_weight must have dtype float64, got float32"),
    ({"input": torch.zeros(32, 3).half(), "target": torch.zeros(32, 1).bfloat16()}, RuntimeError, "target must have dtype float16 or float32, got bfloat16"),
    ({"linear_weight": torch.zeros(1, 3).half()}, RuntimeError, "linear_weight must have dtype float32, got float16"),
    ({"target": torch.zeros(32, 1).double()}, RuntimeError, "target must have dtype float32, got float64"),
    ({"target": torch.zeros(32, 1).bool()}, RuntimeError, "target must have dtype float32, got bool"),
    ({"linear_bias": torch.zeros(1).double()}, RuntimeError, "linear_bias must have dtype float32, got float64"),
    ({"weight": torch.ones(32).long()}, RuntimeError, "weight must have dtype float32, got int64"),
    ({"input": torch.zeros(32, 3).to_sparse()}, RuntimeError, "input must be a dense tensor, got a sparse or nested one"),
    ({"target": torch.zeros(32, 1, device="meta")}, RuntimeError, "target must be on cpu, got meta"),
]  # fmt: skip

NOT_TENSORS = [
    ({"input": [[1.0, 2.0, 3.0]]}, TypeError, "input must be a Tensor, got list"),
    ({"target": None}, TypeError, "target must be a Tensor, got NoneType"),
    ({"linear_bias": 0.0}, TypeError, "linear_bias must be a Tensor or None, got float"),
    ({"weight": 1}, TypeError, "weight must be a Tensor or None, got int"),
]

STEP_CASES = [
    ({"lr": -0.1}, ValueError, "lr must be >= 0, got -0.1"),
    ({"lr": math.nan}, ValueError, "lr must be >= 0, got nan"),
    ({"lr": torch.zeros(2)}, ValueError, "lr must be a float or a 1-element tensor, got shape [2]"),
    ({"lr": torch.tensor(1)}, RuntimeError, "lr must have dtype float32 or float64, got int64"),
    ({"momentum": -0.5}, ValueError, "momentum must be >= 0, got -0.5"),
    ({"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0, got -1"),
    ({"dampening": math.nan}, ValueError, "dampening must be a number, got nan"),
    ({"nesterov": True}, ValueError, "nesterov must be False unless momentum > 0 and dampening == 0, got momentum 0 and"),
    ({"nesterov": True, "momentum": 0.9, "dampening": 0.5, "momentum_buffers": [None, None]}, ValueError, "and dampening 0.5"),
    ({"loss": "mae"}, ValueError, f"loss must be one of {', '.join(map(repr, LOSSES[:-1]))} or {LOSSES[-1]!r}, got 'mae'"),
    ({"loss": None}, TypeError, "loss must be a str, got NoneType"),
    ({"loss": "huber", "delta": "1"}, TypeError, "delta must be a number, got str"),
    ({"lr": "0.1"}, TypeError, "lr must be a number, got str"),
    ({"momentum": "0.9"}, TypeError, "momentum must be a number, got str"),
    ({"dampening": []}, TypeError, "dampening must be a number, got list"),
    ({"weight_decay": None}, TypeError, "weight_decay must be a number, got NoneType"),
    ({"loss": "huber", "delta": 0.0}, ValueError, "delta must be > 0, got 0"),
    ({"loss": "huber", "delta": math.nan}, ValueError, "delta must be > 0, got nan"),
    ({"loss": "smooth_l1", "beta": -2.5}, ValueError, "beta must be >= 0, got -2.5"),
    ({"loss": "smooth_l1", "delta": 0.5}, ValueError, "delta (of loss 'huber') must be None with loss 'smooth_l1', got 0.5"),
    ({"beta": 0.5}, ValueError, "beta (of loss 'smooth_l1') must be None with loss 'mse', got 0.5"),
    ({"momentum": 0.9}, ValueError, "momentum_buffers must be a list [buffer of linear_weight, buffer of linear_bias] when momentum"),
    ({"momentum": 0.9, "momentum_buffers": [None]}, ValueError, "got 1 entries"),
    ({"momentum": 0.9, "momentum_buffers": [1.0, None]}, TypeError, "momentum_buffers[0] must be a Tensor or None, got float"),
    ({"momentum": 0.9, "momentum_buffers": [torch.zeros(3), None]}, RuntimeError, "momentum_buffers[0] must have shape [1, 3], got [3]"),
    ({"momentum": 0.9, "momentum_buffers": [None, torch.zeros(1).double()]}, RuntimeError, "momentum_buffers[1] must have dtype float32"),
    (shared("linear_weight", of="input"), RuntimeError, "linear_weight must not overlap input in memory; clone one of them"),
    (shared("linear_weight", of="target"), RuntimeError, "linear_weight must not overlap target in memory"),
    (shared("linear_bias", of="linear_weight"), RuntimeError, "linear_weight must not overlap linear_bias in memory"),
    (shared("linear_bias", of="target"), RuntimeError, "linear_bias must not overlap target in memory"),
    (buffers(lambda a, b: b.__setitem__(0, a["linear_weight"])), RuntimeError, "linear_weight must not overlap momentum_buffers[0] in memory"),
    (buffers(lambda a, b: b.__setitem__(1, b[0][0, 2:])), RuntimeError, "momentum_buffers[0] must not overlap momentum_buffers[1] in memory"),
    (buffers(lambda a, b: b.__setitem__(1, a["target"][0])), RuntimeError, "momentum_buffers[1] must not overlap target in memory"),
    (expanded("linear_weight", (1, 3)), RuntimeError, "linear_weight must not overlap itself in memory (is it expanded?); clone it"),
    ({"linear_weight": torch.zeros(1, 3).cfloat().conj().imag}, RuntimeError, "tensors must not have the negative bit; pass their resolve_neg()"),
    ({"input": torch._neg_view(torch.zeros(32, 3))}, RuntimeError, "tensors must not have the negative bit"),
    ({"momentum": 0.9, "momentum_buffers": [None, torch._neg_view(torch.zeros(1))]}, RuntimeError, "tensors must not have the negative bit"),
]  # fmt: skip


RUN_CASES = [
    ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
    ({"epochs": -1}, ValueError, "epochs must be >= 0, got -1"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an int or None, got float"),
    ({"epochs": "2"}, TypeError, "epochs must be an int or None, got str"),
    ({"order": torch.arange(32).int()}, RuntimeError, "order must have dtype int64, got int32"),
    ({"order": torch.zeros(2, 2, 2).long(), "epochs": 1}, RuntimeError, "order must have shape [rows] or [1, rows], got [2, 2, 2]"),
    ({"order": torch.zeros(2, 32).long(), "epochs": 3}, RuntimeError, "order must have shape [rows] or [3, rows], got [2, 32]"),
    ({"order": torch.zeros(()).long()}, RuntimeError, "order must have shape [rows] or [1, rows], got []"),
    ({"order": torch.arange(64)[::2]}, RuntimeError, "order must be contiguous, got strides [2]; pass order.contiguous()"),
    ({"order": torch.arange(32, device="meta")}, RuntimeError, "order must be on cpu, got meta"),
    ({"order": [0, 1]}, TypeError, "order must be a Tensor or None, got list"),
    ({"input": torch.zeros(4, 8, 3), "target": torch.zeros(4, 8, 1)}, RuntimeError, "input must have shape [rows, in_features], got [4, 8, 3]"),
    ({"lr": torch.zeros(3), "batch_size": 16}, ValueError, "lr must be a float, a 1-element tensor or one of shape [2], got shape [3]"),
    ({"lr": torch.zeros(2, 1), "batch_size": 16}, ValueError, "lr must be a float, a 1-element tensor or one of shape [2], got shape [2, 1]"),
]  # fmt: skip

ORDERS = [
    ({"order": torch.arange(33)}, IndexError, "order must hold indices from 0 to 31, got 32"),
    ({"order": torch.tensor([[0, 1], [2, -1]])}, IndexError, "order must hold indices from 0 to 31, got -1"),
]


def changed(change):
    arguments = good()
    if callable(change):
        change(arguments)
    else:
        arguments.update(change)
    return arguments


def message_of(function, arguments, error):
    with pytest.raises(error) as raised:
        function(**arguments)
    assert type(raised.value) is error
    return str(raised.value)


@pytest.mark.parametrize(("change", "error", "words"), LOSS_CASES + NOT_TENSORS)
def test_bad_arguments_of_a_loss(change, error, words):
    arguments = changed(change)
    message = message_of(linreg_ext.linear_mse_loss, arguments, error)
    assert message.startswith("linear_mse_loss: ")
    assert words in message


@pytest.mark.parametrize(("change", "error", "words"), LOSS_CASES + NOT_TENSORS + STEP_CASES)
def test_bad_arguments_of_a_step(change, error, words):
    arguments = {"lr": 0.1, **changed(change)}
    tensors = [
        t for t in arguments.values() if isinstance(t, torch.Tensor) and t.device.type == "cpu" and not t.is_sparse
    ]
    before = [t.clone() for t in tensors]
    message = message_of(linreg_ext.sgd_step_, arguments, error)
    assert message.startswith("sgd_step_: ")
    assert words in message
    for t, old in zip(tensors, before, strict=True):
        torch.testing.assert_close(t, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("change", "error", "words"), LOSS_CASES + NOT_TENSORS + STEP_CASES + RUN_CASES + ORDERS)
def test_bad_arguments_of_a_run(change, error, words):
    arguments = {"lr": 0.1, **changed(change)}
    tensors = [
        t for t in arguments.values() if isinstance(t, torch.Tensor) and t.device.type == "cpu" and not t.is_sparse
    ]
    before = [t.clone() for t in tensors]
    message = message_of(linreg_ext.sgd_run_, arguments, error)
    assert message.startswith("sgd_run_: ")
    assert words in message
    for t, old in zip(tensors, before, strict=True):
        torch.testing.assert_close(t, old, rtol=0, atol=0, equal_nan=True)


def many():
    return {
        "input": torch.zeros(4, 32, 3), "linear_weight": torch.zeros(4, 1, 3), "target": torch.zeros(4, 32, 1),
        "linear_bias": torch.zeros(4, 1), "lr": 0.1,
    }  # fmt: skip


def groups(offsets):
    return {"input": torch.zeros(32, 3), "target": torch.zeros(32, 1), "offsets": offsets}


MANY_CASES = [
    ({"linear_weight": torch.zeros(3)}, RuntimeError, "linear_weight must have shape [problems, out_features, in_features] or [problems, in_features], got [3]"),
    ({"linear_weight": torch.zeros(4, 1, 2)}, RuntimeError, "linear_weight must have shape [out_features, 3] or [3], got [1, 2]"),
    ({"input": torch.zeros(3)}, RuntimeError, "input must have shape [problems, rows, in_features] or [rows, in_features], got [3]"),
    ({"input": torch.zeros(5, 32, 3)}, RuntimeError, "input must have shape [4, …], for each problem of linear_weight, got [5, 32, 3]"),
    ({"target": torch.zeros(4, 31, 1)}, RuntimeError, "target must have shape [32, 1], got [31, 1]"),
    ({"target": torch.zeros(4, 32)}, RuntimeError, "target must have shape [32, 1], got [32]; pass target.unsqueeze(-1)"),
    ({"target": torch.zeros(32, 1)}, RuntimeError, "target must have shape [4, …], for each problem of linear_weight, got [32, 1]"),
    ({"linear_bias": torch.zeros(3, 1)}, RuntimeError, "linear_bias must have shape [4, …], for each problem of linear_weight, got [3, 1]"),
    ({"linear_bias": torch.zeros(())}, RuntimeError, "linear_bias must have shape [4, …], for each problem of linear_weight, got []"),
    ({"linear_bias": torch.zeros(4, 2)}, RuntimeError, "linear_bias must have shape [1], got [2]"),
    ({"weight": torch.ones(32)}, RuntimeError, "weight must have shape [4, …], for each problem of linear_weight, got [32]"),
    ({"weight": torch.ones(4, 32, 2)}, RuntimeError, "weight must have shape [32, 1], [32] or [32, 1], got [32, 2]"),
    ({"lr": torch.zeros(3)}, ValueError, "lr must be a float, a 1-element tensor or one of shape [4], got shape [3]"),
    ({"momentum": torch.zeros(3), "momentum_buffers": [None, None]}, ValueError, "momentum must be a float, a 1-element tensor or one of shape [4], got shape [3]"),
    ({"weight_decay": torch.zeros(4).half()}, RuntimeError, "weight_decay must have dtype float32 or float64, got float16"),
    ({"weight_decay": torch.tensor([0.0, 0, -1, 0])}, ValueError, "weight_decay must be >= 0, got -1"),
    ({"lr": torch.tensor([0.0, math.nan, 0, 0])}, ValueError, "lr must be >= 0, got nan"),
    ({"lr": torch.tensor([-0.5])}, ValueError, "lr must be >= 0, got -0.5"),
    ({"momentum": torch.zeros(4), "nesterov": True, "momentum_buffers": [None, None]}, ValueError, "nesterov must be False unless momentum > 0"),
    ({"momentum": torch.zeros(4)}, ValueError, "momentum_buffers must be a list"),
    ({"momentum": 0.9, "momentum_buffers": [torch.zeros(1, 3), None]}, RuntimeError, "momentum_buffers[0] must have shape [4, 1, 3], got [1, 3]"),
    ({"momentum": "0.9"}, TypeError, "momentum must be a number, got str"),
    ({"linear_weight": torch.zeros(1, 1, 3).expand(4, 1, 3)}, RuntimeError, "linear_weight must not overlap itself in memory (is it expanded?)"),
    ({"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an int or None, got float"),
    ({"epochs": -1}, ValueError, "epochs must be >= 0, got -1"),
    ({"order": torch.arange(33)}, IndexError, "order must hold indices from 0 to 31, got 32"),
    ({"order": torch.zeros(2, 32).long()}, RuntimeError, "order must have shape [rows] or [1, rows], got [2, 32]"),
    ({"offsets": torch.arange(5)}, RuntimeError, "input must have shape [rows, in_features] with offsets, got [4, 32, 3]"),
    (groups(torch.arange(4)), RuntimeError, "offsets must have shape [5], got [4]"),
    (groups(torch.arange(5).int()), RuntimeError, "offsets must have dtype int64, got int32"),
    (groups(torch.arange(10)[::2]), RuntimeError, "offsets must be contiguous, got strides [2]"),
    (groups(torch.tensor([0, 5, 4, 6, 32])), ValueError, "offsets must rise from 0 or more to at most 32, got 4 after 5"),
    (groups(torch.tensor([0, 5, 7, 9, 33])), ValueError, "offsets must rise from 0 or more to at most 32, got 33 after 9"),
    (groups(torch.tensor([-1, 5, 7, 9, 32])), ValueError, "offsets must rise from 0 or more to at most 32, got -1"),
    (groups(torch.tensor([0, 5, 7, 9, 32])) | {"order": torch.full((32,), 32)}, IndexError, "order must hold indices from 0 to 31, got 32"),
    (groups(torch.tensor([0, 5, 7, 9, 32])) | {"order": torch.arange(9)}, ValueError, "offsets must rise from 0 or more to at most 9, got 32 after 9"),
    (groups([0, 5, 7, 9, 32]), TypeError, "offsets must be a Tensor or None, got list"),
    (groups(torch.tensor([0, 5, 7, 9, 32])) | {"target": torch.zeros(4, 32, 1)}, RuntimeError, "target must have shape [32, 1], got [4, 32, 1]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), NOT_TENSORS + MANY_CASES)
def test_bad_arguments_of_many_runs(change, error, words):
    arguments = {**many(), **change}
    message = message_of(linreg_ext.sgd_run_many_, arguments, error)
    assert message.startswith("sgd_run_many_: ")
    assert words in message


def test_bad_ranges_of_many_runs():
    x, w, y, b, _ = many().values()
    call = (x, y, [w, b], [], [0.1], "mse", 1.0, None, None, None, None, 0, None, None, 32, False, 1)
    for begin, end in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match="sgd_run_many_: begin and end must satisfy 0 <= begin <= end <= 4, got"):
            torch.ops.linreg_ext.sgd_run_many_(*call, begin, end)


def test_bad_validation_and_ranges_of_a_run():
    x, w, y, b = good().values()
    step = (x, y, [w, b], [], [0.1, 0, 0, 0, 0, 0], "mse", 1.0, None, None, "mean", 0, 0, False)

    for validation, begin, end, error, words in (
        (
            (x[:4], None, None),
            0,
            4,
            ValueError,
            "validation_input and validation_target must both be tensors or both be None",
        ),
        (
            (None, None, y),
            0,
            4,
            ValueError,
            "validation_input and validation_target must both be tensors or both be None",
        ),
        ((x[:4], y[:4, 0], None), 0, 4, RuntimeError, r"validation: target must have shape \[4, 1\], got \[4\]"),
        ((w, torch.zeros(1, 1), None), 0, 4, RuntimeError, "linear_weight must not overlap validation_input in memory"),
        ((None, None, None), 3, 5, ValueError, "begin and end must satisfy 0 <= begin <= end <= 4, got 3 and 5"),
        ((None, None, None), -1, 2, ValueError, "begin and end must satisfy 0 <= begin <= end <= 4, got -1 and 2"),
    ):
        with pytest.raises(error, match=f"sgd_run_: {words}"):
            torch.ops.linreg_ext.sgd_run_(*step, None, *validation, 16, False, 2, begin, end)


def test_bad_options_of_a_loss():
    arguments = good()
    for function, options, error, words in (
        ("linear_mse_loss", {"reduction": "avg"}, ValueError, "linear_mse_loss: reduction must be one of 'none', 'mean' or 'sum', got 'avg'"),
        ("linear_huber_loss", {"delta": -1.0}, ValueError, "linear_huber_loss: delta must be > 0, got -1"),
        ("linear_smooth_l1_loss", {"beta": -0.5}, ValueError, "linear_smooth_l1_loss: beta must be >= 0, got -0.5"),
        ("linear_mse_loss", {"reduction": None}, TypeError, "linear_mse_loss: reduction must be a str, got NoneType"),
        ("linear_huber_loss", {"delta": "1"}, TypeError, "linear_huber_loss: delta must be a number, got str"),
        ("linear_smooth_l1_loss", {"beta": torch.ones(2)}, TypeError, "linear_smooth_l1_loss: beta must be a number, got Tensor"),
    ):  # fmt: skip
        assert message_of(getattr(linreg_ext, function), arguments | options, error) == words


def test_a_weight_that_requires_grad_is_refused():
    arguments = good()
    weight = torch.ones(32, requires_grad=True)
    with pytest.raises(RuntimeError, match="linear_mse_loss: weight must not require grad"):
        linreg_ext.linear_mse_loss(**arguments, weight=weight)
    with torch.no_grad():
        linreg_ext.linear_mse_loss(**arguments, weight=weight)


def test_momentum_without_a_buffer_is_refused_by_the_operator():
    x, w, y, b = good().values()
    with pytest.raises(
        ValueError, match=r"sgd_step_: momentum_buffers\[0\] must be a tensor when momentum != 0, got None"
    ):
        torch.ops.linreg_ext.sgd_step_(x, y, [w, b], [], [0.1, 0.9, 0.0, 0.0, 0.0, 0.0])


def test_operators_say_what_their_lists_hold():
    x, w, y, b = good().values()
    for parameters, rule, words in (
        ([], [0.1] + [0.0] * 5, r"sgd_step_: parameters must be \[linear_weight\] or \[linear_weight, linear_bias\], got 0 tensors"),
        ([w, b, b], [0.1] + [0.0] * 5, "got 3 tensors"),
        ([w, b], [], r"sgd_step_: rule must be \[lr, momentum, dampening, weight_decay, nesterov, maximize\] or the first of them, got 0 numbers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            torch.ops.linreg_ext.sgd_step_(x, y, parameters, [], rule)


def test_memory_that_interleaves_without_overlap_is_accepted():
    flat = torch.randn(4, 9)
    w, b = flat[:, :8], flat[:, 8]
    linreg_ext.sgd_step_(torch.randn(5, 8), w, torch.randn(5, 4), linear_bias=b, lr=0.1)
    with pytest.raises(RuntimeError, match="linear_weight must not overlap linear_bias"):
        linreg_ext.sgd_step_(torch.randn(5, 8), w, torch.randn(5, 4), linear_bias=flat[:, 7], lr=0.1)


def test_a_compiled_call_says_the_same():
    """Fake kernels only infer shapes; the operator checks when it runs."""
    torch._dynamo.reset()  # beyond a limit of compilations, Dynamo leaves a function alone and compiles what it calls
    for function, options in (
        (linreg_ext.linear_mse_loss, {}),
        (linreg_ext.sgd_step_, {"lr": 0.1}),
        (linreg_ext.sgd_run_, {"lr": 0.1}),
    ):
        with pytest.raises(RuntimeError, match=r"target must have shape \[32, 1\], got \[32\]"):
            torch.compile(function, backend="aot_eager", fullgraph=True)(
                **good() | {"target": torch.zeros(32)}, **options
            )


def test_modules_refuse_bad_options():
    x, y = torch.ones(2, 1), torch.ones(2, 1)
    for module, options, error, words in (
        (linreg_ext.LinearMSELoss, {"reduction": "avg"}, ValueError, "linear_mse_loss: reduction must be one of"),
        (linreg_ext.LinearHuberLoss, {"delta": 0.0}, ValueError, "linear_huber_loss: delta must be > 0, got 0"),
        (linreg_ext.LinearHuberLoss, {"delta": "1"}, TypeError, "linear_huber_loss: delta must be a number, got str"),
        (linreg_ext.LinearSmoothL1Loss, {"beta": -1.0}, ValueError, "linear_smooth_l1_loss: beta must be >= 0, got -1"),
        (linreg_ext.LinearSmoothL1Loss, {"beta": None}, TypeError, "linear_smooth_l1_loss: beta must be a number, got"),
    ):
        with pytest.raises(error, match=words):
            module(1, 1, **options)(x, y)
    with pytest.raises(TypeError, match=r"LinearMSELoss.__init__\(\) got an unexpected keyword argument 'delta'"):
        linreg_ext.LinearMSELoss(1, 1, delta=1.0)
    with pytest.raises(TypeError, match=r"linear_mse_loss\(\) got an unexpected keyword argument 'delta'"):
        linreg_ext.linear_mse_loss(x, x[:1], y, delta=1.0)


def test_fit_refuses_bad_options():
    model = nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = [(torch.ones(2, 1), torch.ones(2, 1))]
    for options, words in (
        ({"num_epochs": -1}, "fit: num_epochs must be >= 0, got -1"),
        ({"log_every": 0}, "fit: log_every must be >= 1, got 0"),
        ({"on_divergence": "ignore"}, "fit: on_divergence must be 'stop' or 'continue', got 'ignore'"),
        (
            {"train_dl": [torch.ones(2, 1)]},
            r"fit: a loader must yield \(input, target\) or \(input, target, weight\), got Tensor",
        ),
        ({"train_dl": [(1, 2, 3, 4)]}, r"fit: a loader must yield \(input, target\) or \(.*\), got 4 items"),
    ):
        arguments = {"num_epochs": 1, "model": model, "loss_fn": nn.MSELoss(), "opt": opt, "train_dl": batch, **options}
        with pytest.raises(ValueError, match=words):
            linreg_ext.fit(**arguments)
    with pytest.raises(ValueError, match=r"fit: a loader must yield \(input, target\) or \(.*\), got 1 items"):
        linreg_ext.fit(1, model, nn.MSELoss(), opt, batch, val_dl=[(1,)])
    with pytest.raises(RuntimeError, match=r"fit: target must have shape \[2, 1\], got \[2\]; pass target.unsqueeze"):
        linreg_ext.fit(1, model, nn.MSELoss(), opt, [(torch.ones(2, 1), torch.ones(2))])


def test_evaluate_refuses_what_fit_refuses():
    model, batch = nn.Linear(1, 2).eval(), (torch.ones(3, 1), torch.ones(3, 2))
    for item, got in (((*batch, 1, 2), "4 items"), (batch[0], "Tensor")):
        with pytest.raises(ValueError, match=rf"evaluate: a loader must yield .*, got {got}"):
            linreg_ext.evaluate(model.train(), nn.MSELoss(), [item])
        assert model.training


@pytest.mark.filterwarnings("ignore:linreg_ext")
def test_a_loss_that_is_not_one_number():
    model, batch = nn.Linear(1, 2), (torch.ones(3, 1), torch.ones(3, 2))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    unreduced, before = nn.MSELoss(reduction="none"), model.weight.detach().clone()
    with pytest.raises(ValueError, match=r"evaluate: the loss must be one number, got shape \[3, 2\]"):
        linreg_ext.evaluate(model, unreduced, [batch])
    for on_divergence in ("stop", "continue"):
        with pytest.raises(ValueError, match=r"fit: the loss must be one number, got shape \[3, 2\]"):
            linreg_ext.fit(1, model, unreduced, opt, [batch], on_divergence=on_divergence)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None


@pytest.mark.filterwarnings("ignore:linreg_ext")
def test_a_loss_of_one_element_is_one_number():
    model, loader = nn.Linear(1, 2), [(torch.ones(3, 1), torch.ones(3, 2)), (torch.ones(2, 1), torch.zeros(2, 2))]
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    one_element = lambda prediction, y: (prediction - y).square().mean().reshape(1, 1)  # noqa: E731
    mean = linreg_ext.evaluate(model, nn.MSELoss(), loader)
    assert linreg_ext.evaluate(model, one_element, loader) == mean
    assert linreg_ext.fit(2, model, one_element, opt, loader).step_loss.shape == (4,)
