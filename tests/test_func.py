# SPDX-License-Identifier: BSD-3-Clause
"""torch.func: derivatives, batches and their compositions compared with plain PyTorch, eager and compiled."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import LOSSES, PLAIN, option
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import linreg_ext

OPS = torch.ops.linreg_ext
# Which of weight, bias, input and target are batched.
MANY = {
    "samples": (None, None, 0, 0),
    "weights": (0, 0, None, None),
    "both": (0, 0, 0, 0),
    "biases": (None, 0, None, None),
}


def pair(loss, reduction="mean"):
    """A loss as a function of weight, bias, input and target: ours and PyTorch's."""
    ours, plain = getattr(linreg_ext, f"linear_{loss}_loss"), PLAIN[loss]
    options = {"reduction": reduction, **option(loss, 0.7)}
    return (
        lambda w, b, x, y: ours(x, w, y, linear_bias=b, **options),
        lambda w, b, x, y: plain(F.linear(x, w, b), y, **options),
    )


def operands(device, *leading):
    """Weight, bias, input and target, each with additional leading dimensions."""
    return [
        torch.randn(*leading, *shape, dtype=torch.float64, device=device) for shape in ((2, 3), (2,), (6, 3), (6, 2))
    ]


def same(transform, functions):
    ours, plain = (transform(f) for f in functions)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives(loss, device):
    """For every operand; fails on a zero where plain PyTorch has none."""
    at, direction, every = operands(device), operands(device), (0, 1, 2, 3)
    functions, elements = pair(loss), pair(loss, "none")
    same(lambda f: grad(f, every)(*at), functions)
    same(lambda f: vjp(f, *at)[1](torch.full((), 2.5, dtype=torch.float64, device=device)), functions)
    same(lambda f: jvp(f, tuple(at), tuple(direction)), functions)
    for jacobian in (jacrev, jacfwd):
        same(lambda f, jacobian=jacobian: jacobian(f, every)(*at), elements)
    same(lambda f: hessian(f, (0, 1))(*at), functions)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("many", MANY.values(), ids=MANY)
def test_batches(loss, many, device):
    """Losses and gradients of many problems at once equal those of one after the other without a transform."""
    one, batch = operands(device), operands(device, 4)
    at = [one_of if dim is None else all_of for one_of, all_of, dim in zip(one, batch, many, strict=True)]
    functions = pair(loss)
    same(lambda f: vmap(f, many)(*at), functions)
    same(lambda f: vmap(grad(f, (0, 1, 2, 3)), many)(*at), functions)
    each = [functions[0](*(t if dim is None else t[i] for t, dim in zip(at, many, strict=True))) for i in range(4)]
    torch.testing.assert_close(vmap(functions[0], many)(*at), torch.stack(each))


def test_gradients_of_every_sample(device):
    """Fails if samples are treated as one batch with one gradient."""
    w, b, x, y = operands(device)
    same(lambda f: vmap(grad(f, (0, 1)), (None, None, 0, 0))(w, b, x, y), pair("mse"))
    same(lambda f: vmap(grad(f, (0, 1)), (None, None, 0, 0))(w, b, x[:, None], y[:, None]), pair("mse"))


def test_functional_call_of_a_module_and_of_an_ensemble(device):
    """Fails if the module's own parameters are used, or those of another member of the ensemble."""
    models = [linreg_ext.LinearMSELoss(3, 2, dtype=torch.float64, device=device) for _ in range(3)]
    w, b, x, y = operands(device)
    plain = pair("mse")[1]
    torch.testing.assert_close(
        functional_call(models[0], {"linear.weight": w, "linear.bias": b}, (x, y)), plain(w, b, x, y)
    )
    parameters, buffers = stack_module_state(models)

    def loss(parameters):
        return functional_call(models[0], (parameters, buffers), (x, y))

    grads = vmap(grad(loss))(parameters)
    for i, model in enumerate(models):
        expected = grad(plain, (0, 1))(model.linear.weight.detach(), model.linear.bias.detach(), x, y)
        torch.testing.assert_close((grads["linear.weight"][i], grads["linear.bias"][i]), expected)


def test_transforms_inside_and_outside_of_each_other_and_of_autograd(device):
    """Inside transforms, requires_grad does not show what is differentiated; no derivative may be lost silently."""
    _, _, x, y = operands(device)
    many = torch.randn(4, 2, 3, dtype=torch.float64, device=device)
    ours, plain = (lambda w, f=f: f(w, None, x, y) for f in pair("huber"))
    for transform in (
        lambda f: grad(lambda ws: vmap(f)(ws).sum())(many),
        lambda f: hessian(f)(many[0]),
        lambda f: vmap(grad(lambda w: grad(f)(w).square().sum()))(many),
    ):
        torch.testing.assert_close(transform(ours), transform(plain))
    leaf = many.clone().requires_grad_()
    vmap(ours)(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, vmap(grad(plain))(many))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(many[0], many[1]))).tangent
    torch.testing.assert_close(tangent, jvp(plain, (many[0],), (many[1],))[1])


@pytest.mark.extended
def test_transforms_that_are_compiled(device):
    """Inside and around compiled code. Fails if a trace uses the operators, whose derivative would be 0."""
    w, b, x, y = operands(device)
    many, one = torch.randn(2, 4, 2, 3, dtype=torch.float64, device=device)
    ours, plain = pair("mse")
    torch._dynamo.reset()
    for transform, at in (
        (lambda f: lambda w: grad(f)(w, b, x, y), (w,)),
        (lambda f: lambda ws: vmap(grad(f), (0, None, None, None))(ws, b, x, y), (many,)),
        (lambda f: lambda w, direction: jvp(lambda w: f(w, b, x, y), (w,), (direction,)), (w, one[0].clone())),
    ):
        compiled = torch.compile(transform(ours), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*at), transform(plain)(*at))
    compiled = torch.compile(ours, backend="aot_eager")  # not supported by PyTorch inside a transform
    for _ in range(2):  # with one's trace in the other's cache
        torch.testing.assert_close(compiled(w, b, x, y), plain(w, b, x, y))
        torch.testing.assert_close(grad(compiled)(w, b, x, y), grad(plain)(w, b, x, y))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operators_themselves(reduction, device):
    """Called directly, the operators have the derivatives of plain PyTorch. Fails on a silent 0."""
    at, many = operands(device), torch.randn(4, 2, 3, dtype=torch.float64, device=device)
    w, b, x, y = at

    def ours(w, b, x, y):
        if reduction == "none":
            return OPS.linear_loss(x, w, y, b, None, "mse", 1.0, reduction).sum()
        value, (g,) = OPS.linear_loss_grads(x, w, y, b, None, "mse", 1.0, reduction, [False, True, False, False])
        return value + g.sum()

    def plain(w, b, x, y):
        value = F.mse_loss(F.linear(x, w, b), y, reduction=reduction)
        return value.sum() if reduction == "none" else value + grad(lambda w: pair("mse")[1](w, b, x, y))(w).sum()

    functions = ours, plain
    same(lambda f: grad(f, (0, 1, 2, 3))(*at), functions)
    same(lambda f: vmap(f, (0, None, None, None))(many, b, x, y), functions)
    same(lambda f: vmap(grad(f), (0, None, None, None))(many, b, x, y), functions)
    if reduction == "mean":
        return  # PyTorch itself has no forward mode over gradients of its losses
    same(lambda f: jvp(f, tuple(at), tuple(at)), functions)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(ours(forward_ad.make_dual(w, many[0]), b, x, y)).tangent
    torch.testing.assert_close(tangent, jvp(lambda w: plain(w, b, x, y), (w,), (many[0],))[1])


def dual(function):
    def call(w):
        with forward_ad.dual_level():
            return function(forward_ad.make_dual(w, torch.ones_like(w)))

    return call


TRANSFORMS = {"grad": grad, "vmap": vmap, "jvp": lambda f: lambda w: jvp(f, (w,), (w,)), "dual": dual}
STEPS = {"sgd_step_": linreg_ext.sgd_step_, "sgd_run_": linreg_ext.sgd_run_, "sgd_run_many_": lambda x, w, y, lr: linreg_ext.sgd_run_many_(x, w[None], y, lr=lr), "the operator sgd_step_": lambda x, w, y, lr: OPS.sgd_step_(x, y, [w], [], [lr, 0, 0, 0, 0, 0])}  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_steps_in_place_are_refused(transform, compiled, device):
    """The loss of an in-place step has no derivative, and a 0 would be wrong. Nothing is modified."""
    w, _, x, y = operands(device)
    given = w.expand(3, 2, 3).contiguous() if transform == "vmap" else w.clone()
    before = given.clone()
    torch._dynamo.reset()
    for name, call in STEPS.items():
        function = TRANSFORMS[transform](lambda w, call=call: call(x, w, y, lr=0.1).sum())
        if compiled:
            function = torch.compile(function, backend="aot_eager")
        name = name.removeprefix("the operator ")
        with pytest.raises(RuntimeError, match=f"{name}: must not be called inside a torch.func transform or forward"):
            function(given)
    assert torch.equal(given, before)


def test_steps_in_place_are_refused_on_fake_tensors():
    with FakeTensorMode(), forward_ad.dual_level():
        w, _, x, y = operands("cpu")
        with pytest.raises(RuntimeError, match="sgd_step_: must not be called inside"):
            OPS.sgd_step_(x, y, [w], [], [0.1, 0, 0, 0, 0, 0])
