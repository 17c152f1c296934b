# SPDX-License-Identifier: BSD-3-Clause
"""First and second derivatives, for any grad_output and any subset of operands."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, LOSSES, Problem, option, threshold
from conftest import crossed

import linreg_ext
from linreg_ext import autograd, functional

FLOAT64 = (torch.float64, torch.float64)


@pytest.fixture(autouse=True, params=["direct", "LinearLoss"])
def recorder(request, monkeypatch):
    """The recorder of the derivative: the direct one, for plain tensors only, or LinearLoss."""
    if request.param == "LinearLoss":
        monkeypatch.setattr(functional._C, "linear_loss", lambda *_: NotImplemented)
    return request.param


def call(loss, x, w, y, b=None, v=None, reduction="mean"):
    options = option(loss, 0.7)
    return getattr(linreg_ext, f"linear_{loss}_loss")(x, w, y, linear_bias=b, weight=v, reduction=reduction, **options)


@crossed(4, bias=(True, False), weight=(None, "elements", "rows"), reduction=("mean", "sum", "none"), loss=LOSSES)
def test_gradcheck_and_gradgradcheck(loss, reduction, weight, bias, device):
    p = Problem.random(5, 3, 2, FLOAT64, bias=bias, weight=weight, device=device)
    operands = [t.requires_grad_() for t in p.operands().values()]

    def function(x, w, y, b=None):
        return call(loss, x, w, y, b, p.weight, reduction)

    assert torch.autograd.gradcheck(function, operands)
    assert torch.autograd.gradgradcheck(function, operands)
    # gradgradcheck differentiates the gradients that have a graph, right or not: they must equal those without one.
    value = function(*operands)
    grad_output = torch.rand_like(value)
    grads = torch.autograd.grad(value, operands, grad_output, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, operands, grad_output, create_graph=True), grads)


def test_gradcheck_of_a_weight_of_one_dimension(device):
    x, w, y = (
        torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True) for shape in ((4, 3), (3,), (4,))
    )
    for bias in (
        torch.zeros((), dtype=torch.float64, device=device),
        torch.zeros(1, dtype=torch.float64, device=device),
    ):
        b = bias.requires_grad_()
        assert torch.autograd.gradcheck(lambda *t: call("mse", *t), (x, w, y, b))
        assert torch.autograd.gradgradcheck(lambda *t: call("mse", *t), (x, w, y, b))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_gradients_that_are_needed(reduction, device):
    plain = Problem.random(9, 4, 2, FLOAT64, device=device)
    for needed in itertools.product([False, True], repeat=4):
        operands = [t.clone().requires_grad_(need) for t, need in zip(plain.operands().values(), needed, strict=True)]
        loss = call("huber", *operands, reduction=reduction)
        assert loss.requires_grad == any(needed)
        if any(needed):
            loss.sum().backward()
        twins = [t.detach().clone().requires_grad_(need) for t, need in zip(operands, needed, strict=True)]
        x, w, y, b = twins
        expected = F.huber_loss(F.linear(x, w, b), y, delta=0.7, reduction=reduction)
        if any(needed):
            expected.sum().backward()
        for ours, theirs, need in zip(operands, twins, needed, strict=True):
            assert (ours.grad is not None) == need
            if need:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_the_gradients_not_needed_are_not_computed(recorder, monkeypatch, device):
    asked, saved = [], []
    original = torch.ops.linreg_ext.linear_loss_grads

    def watched(*arguments):
        asked.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(torch.ops.linreg_ext, "linear_loss_grads", watched)
    p = Problem.random(9, 4, 2, FLOAT64, device=device)
    operands = (p.input, p.linear_weight.requires_grad_(), p.target, p.linear_bias)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call("mse", *operands).backward()
    assert asked == ([[False, True, False, False]] if recorder == "LinearLoss" else [])
    computed = [t for t in saved if all(t is not operand for operand in operands)]
    assert [t.shape for t in computed] == [p.linear_weight.shape]
    with torch.no_grad():
        call("mse", *operands)
    assert len(asked) == (recorder == "LinearLoss")


def grad_outputs(shape, device):
    wide = torch.randn(shape[0], 2 * shape[1], dtype=torch.float64, device=device)
    return {
        "expanded": torch.tensor(0.3, dtype=torch.float64, device=device).expand(shape),
        "row expanded": torch.randn(1, shape[1], dtype=torch.float64, device=device).expand(shape),
        "sliced": wide[:, ::2],
        "transposed": torch.randn(shape[::-1], dtype=torch.float64, device=device).t(),
        "contiguous": torch.randn(shape, dtype=torch.float64, device=device),
    }


@pytest.mark.parametrize("kind", ["expanded", "row expanded", "sliced", "transposed", "contiguous"])
@pytest.mark.parametrize("weight", [None, "elements", "rows"])
def test_any_grad_output_of_an_unreduced_loss(kind, weight, device):
    p = Problem.random(8, 3, 2, FLOAT64, weight=weight, device=device)
    operands = [t.requires_grad_() for t in p.operands().values()]
    output = grad_outputs((8, 2), device)[kind]
    ours = torch.autograd.grad(call("mse", *operands, p.weight, "none"), operands, output)
    x, w, y, b = operands
    value = F.mse_loss(F.linear(x, w, b), y, reduction="none")
    if p.weight is not None:
        value = value * (p.weight if weight == "elements" else p.weight[:, None])
    for a, e in zip(ours, torch.autograd.grad(value, operands, output), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [0.0, -2.5, 1e30, float("nan")])
def test_a_scaled_loss(scale, device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    operands = [t.requires_grad_() for t in p.operands().values()]
    x, w, y, b = operands
    ours = torch.autograd.grad(call("mse", *operands) * scale, operands)
    theirs = torch.autograd.grad(F.mse_loss(F.linear(x, w, b), y) * scale, operands)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14, equal_nan=True)


def test_float16_gradients_are_scaled_before_they_are_rounded(device):
    """1/N of a small residual underflows float16, but not when multiplied by the loss scale."""
    x, y = torch.ones(4096, 1, device=device).half(), torch.full((4096, 1), 2e-3, device=device).half()
    w = torch.zeros(1, 1, device=device).half().requires_grad_()
    target = y.clone().requires_grad_()
    (linear := call("mse", x, w, target)).mul(1024.0).backward()
    exact = 1024 * 2 * y.double() / 4096
    torch.testing.assert_close(target.grad.double(), exact, rtol=1e-3, atol=0)
    w2 = w.detach().clone().requires_grad_()
    (call("mse", x * 100, w2, y + 100, reduction="sum") / 4096).backward()  # the sum itself is above float16
    assert w2.grad.isfinite().all()
    assert linear.dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_many_rows_of_16_bits_is_scaled_in_float(dtype, device):
    x, w, y = torch.randn(9000, 33, dtype=dtype, device=device), torch.randn(1, 33, device=device), 3.0
    x.requires_grad_()
    y = torch.full((9000, 1), y, dtype=dtype, device=device)
    (grad,) = torch.autograd.grad(call("mse", x, w, y, reduction="sum"), x, torch.tensor(0.3, device=device))
    (once,) = torch.ops.linreg_ext.linear_loss_grads(
        x.detach(), w, y, None, None, "mse", 1.0, "sum", [True] + [False] * 3
    )[1]
    assert torch.equal(grad, (torch.tensor([[0.3]], device=device) * once).to(dtype))


def test_backward_twice_and_accumulation(device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    w = p.linear_weight.requires_grad_()
    loss = call("mse", p.input, w, p.target, p.linear_bias)
    loss.backward(retain_graph=True)
    first = w.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(w.grad, 2 * first)
    w.grad.zero_()  # must not reach what backward has saved
    (3 * loss).backward()
    torch.testing.assert_close(w.grad, 3 * first, rtol=1e-15, atol=0)


def test_what_has_been_run_backward_is_gone_as_in_pytorch(device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    loss = call("mse", p.input, p.linear_weight.requires_grad_(), p.target)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["input", "linear_weight", "target", "linear_bias", "weight"])
def test_any_operand_changed_before_backward_is_an_error(changed, device):
    p = Problem.random(8, 3, 2, FLOAT64, weight="rows", device=device)
    loss = call("mse", p.input, p.linear_weight.requires_grad_(), p.target, p.linear_bias, p.weight)
    with torch.no_grad():
        getattr(p, changed).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_are_handed_over_uncopied_and_unshared(device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    w = p.linear_weight.requires_grad_()
    seen = []
    w.register_hook(lambda grad: seen.append(grad.data_ptr()))
    loss = call("mse", p.input, w, p.target)
    loss.backward(retain_graph=True)
    assert [w.grad.data_ptr()] == seen
    first, kept = w.grad, w.grad.clone()
    w.grad = None
    loss.backward()
    assert torch.equal(first, kept)
    assert first.data_ptr() != w.grad.data_ptr()


def test_backward_under_anomaly_detection_and_through_only_some_operands(device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    w, b = p.linear_weight.requires_grad_(), p.linear_bias.requires_grad_()
    expected = torch.autograd.grad(F.mse_loss(F.linear(p.input, w, b), p.target), b)
    with torch.autograd.set_detect_anomaly(True):
        got = torch.autograd.grad(call("mse", p.input, w, p.target, b), b)
    torch.testing.assert_close(got, expected)


def test_operands_that_are_computed_get_their_gradients(device):
    """The loss is inside a graph, and one operand occurs twice."""
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    leaf = p.linear_weight.requires_grad_()
    shift = torch.randn(8, 3, dtype=torch.float64, device=device)

    def ours(w):
        return call("mse", p.input + shift * w.sum(), w.tanh(), p.target).exp()

    def plain(w):
        return F.mse_loss(F.linear(p.input + shift * w.sum(), w.tanh()), p.target).exp()

    torch.testing.assert_close(torch.autograd.grad(ours(leaf), leaf), torch.autograd.grad(plain(leaf), leaf))
    assert torch.autograd.gradgradcheck(ours, leaf)


def test_subclasses_are_left_to_pytorch(device):
    class Mine(torch.Tensor):
        pass

    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    w = p.linear_weight.requires_grad_()
    loss = call("mse", p.input.as_subclass(Mine), w, p.target)
    loss.backward()
    expected = torch.autograd.grad(call("mse", p.input, w, p.target), w)[0]
    assert torch.equal(w.grad, expected)


def test_a_parameter_changed_before_backward_is_an_error_as_in_pytorch(device):
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    loss = call("mse", p.input, p.linear_weight.requires_grad_(), p.target)
    linreg_ext.sgd_step_(p.input, p.linear_weight, p.target, lr=0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivative_is_the_hessian(device):
    p = Problem.random(20, 3, 1, FLOAT64, device=device)
    w = p.linear_weight.requires_grad_()
    (g,) = torch.autograd.grad(call("mse", p.input, w, p.target), w, create_graph=True)
    rows = torch.stack([torch.autograd.grad(g[0, i], w, retain_graph=True)[0][0] for i in range(3)])
    torch.testing.assert_close(rows, 2 / 20 * p.input.T @ p.input)


def test_many_grad_outputs_at_once(device):
    """is_grads_batched, whose batches are of another kind than vmap's."""
    problem = Problem.random(6, 3, 2, FLOAT64, device=device)
    w = problem.linear_weight.requires_grad_()
    rows = call("mse", problem.input, w, problem.target, reduction="none")
    each = torch.eye(12, dtype=torch.float64, device=device).view(12, 6, 2)
    (batched,) = torch.autograd.grad(rows, w, each, is_grads_batched=True)
    plain = F.mse_loss(F.linear(problem.input, w), problem.target, reduction="none")
    for i, one in enumerate(each):
        torch.testing.assert_close(batched[i], torch.autograd.grad(plain, w, one, retain_graph=True)[0])


@pytest.mark.parametrize("shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0)], ids=str)
def test_second_derivatives_of_nothing(shape, device):
    p = Problem.random(*shape, FLOAT64, device=device)
    operands = [t.requires_grad_() for t in p.operands().values()]
    first = torch.autograd.grad(call("mse", *operands, reduction="sum"), operands, create_graph=True)
    sum(g.sum() for g in first).backward()
    assert all(t.grad is None or t.grad.shape == t.shape for t in operands)


@pytest.mark.parametrize(("loss", "plain"), [("huber", F.huber_loss), ("smooth_l1", F.smooth_l1_loss)])
def test_second_derivative_at_the_threshold_is_pytorchs(loss, plain, device):
    x = torch.ones(3, 1, dtype=torch.float64, device=device)
    y = torch.tensor([[0.3], [1.7], [0.5]], dtype=torch.float64, device=device)  # residuals 0.7, -0.7, 0.5 at w = 1
    threshold = option(loss, 0.7)
    y[0], y[1] = 1 - 0.7, 1 + 0.7
    second = []
    for function in (lambda w: call(loss, x, w, y), lambda w: plain(F.linear(x, w), y, **threshold)):
        w = torch.ones(1, 1, dtype=torch.float64, device=device, requires_grad=True)
        (g,) = torch.autograd.grad(function(w), w, create_graph=True)
        second.append(torch.autograd.grad(g, w)[0])
    torch.testing.assert_close(*second)


def test_a_linear_layer_that_does_more_is_refused(device):
    model = linreg_ext.LinearMSELoss(3, 1, device=device)
    x, y = torch.randn(4, 3, device=device), torch.randn(4, 1, device=device)
    hook = model.linear.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"LinearMSELoss: linear must be an nn.* got Linear with hooks;"):
        model(x, y)
    hook.remove()
    model(x, y)
    model.linear.forward = lambda x: x
    with pytest.raises(RuntimeError, match="a custom forward, got Linear with a custom forward;"):
        model(x, y)
    del model.linear.forward
    torch.nn.utils.parametrizations.weight_norm(model.linear)
    with pytest.raises(RuntimeError, match="got ParametrizedLinear"):
        model(x, y)


def test_modules(device):
    pairs = (
        (linreg_ext.LinearMSELoss, torch.nn.MSELoss, {}),
        (linreg_ext.LinearL1Loss, torch.nn.L1Loss, {}),
        (linreg_ext.LinearHuberLoss, torch.nn.HuberLoss, {"delta": 0.5}),
        (linreg_ext.LinearSmoothL1Loss, torch.nn.SmoothL1Loss, {"beta": 0.5}),
    )
    x, y = torch.randn(7, 4, device=device), torch.randn(7, 2, device=device)
    for fused, stock, options in pairs:
        for reduction in ("mean", "sum", "none"):
            model = fused(4, 2, reduction=reduction, device=device, **options)
            layer = torch.nn.Linear(4, 2, device=device)
            layer.load_state_dict({k.removeprefix("linear."): v for k, v in model.state_dict().items()})
            ours, theirs = model(x, y), stock(reduction=reduction, **options)(layer(x), y)
            torch.testing.assert_close(ours, theirs)
            ours.sum().backward()
            theirs.sum().backward()
            torch.testing.assert_close(model.linear.weight.grad, layer.weight.grad)
            torch.testing.assert_close(model.linear.bias.grad, layer.bias.grad)
            assert torch.equal(model.predict(x), layer(x))
            assert reduction in repr(model)
        assert fused(4, 2, bias=False, dtype=torch.float64, **options).linear.bias is None


@pytest.mark.parametrize("recorder", ["direct"], indirect=True)
@crossed(5, loss=LOSSES, dtypes=DTYPES)
def test_both_recorders_give_the_same_bits(loss, dtypes, device):
    """Loss and gradients, for few and many elements, scaled or not, differentiated once and twice."""
    for n, reduction, weight, create_graph in itertools.product(
        (7, 3000), ("mean", "sum", "none"), (None, "rows"), (False, True)
    ):
        p = Problem.random(n, 5, 2, dtypes, weight=weight, device=device)
        x, w, y, b = (t.requires_grad_() for t in p.operands().values())
        results = []
        for way in (call, lambda *a: autograd.LinearLoss.apply(*with_options(*a), [True] * 4)[0]):
            value = way(loss, x, w, y, b, p.weight, reduction)
            scaled = (value * 0.3).sum()
            results.append([value, *torch.autograd.grad(scaled, (x, w, y, b), create_graph=create_graph)])
        for a, e in zip(*results, strict=True):
            assert a.dtype == e.dtype
            assert torch.equal(a, e)


@pytest.mark.parametrize("recorder", ["direct"], indirect=True)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck_of_the_operators_themselves(loss, device):
    """gradcheck of the loss, and of the gradients beside it, which are themselves differentiable."""
    p = Problem.random(4, 3, 2, FLOAT64, weight="rows", device=device)
    operands = [t.requires_grad_() for t in p.operands().values()]
    ops = torch.ops.linreg_ext

    def loss_alone(*t):
        return ops.linear_loss(*with_options(loss, *t, p.weight, "sum"))

    def loss_and_grads(*t):
        value, grads = ops.linear_loss_grads(*with_options(loss, *t, p.weight, "mean"), [True] * 4)
        return (value, *grads)

    assert torch.autograd.gradcheck(loss_alone, operands)
    assert torch.autograd.gradgradcheck(loss_alone, operands)
    assert torch.autograd.gradcheck(loss_and_grads, operands)
    # Differentiable gradients, right or not, must equal the kernel's.
    torch.testing.assert_close(loss_and_grads(*operands), loss_and_grads(*(t.detach() for t in operands)))
    assert torch.equal(loss_alone(*operands), call(loss, *operands, p.weight, "sum"))
    with pytest.raises(RuntimeError, match="weight must not require grad"):
        ops.linear_loss(*with_options(loss, *operands, p.weight.requires_grad_(), "sum"))


def with_options(loss, x, w, y, b, v, reduction):
    return x, w, y, b, v, loss, threshold(loss, 0.7), reduction


@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd(device):
    torch._dynamo.reset()
    p = Problem.random(8, 3, 2, FLOAT64, device=device)
    w, b = p.linear_weight.requires_grad_(), p.linear_bias.requires_grad_()
    expected = torch.autograd.grad(call("mse", p.input, w, p.target, b), (w, b))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        call("mse", p.input, w, p.target, b).backward()
    torch.testing.assert_close((w.grad, b.grad), expected)
