# SPDX-License-Identifier: BSD-3-Clause
"""Rewrites a module that ends in a linear layer and its regression loss so that the two are one pass."""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import functional
from .module_graph import NotTraceableError, module_graph
from .training.affine import has_hooks
from .training.regression_loss import FUNCTIONS, MODULES, THRESHOLDS
from .training.tracing import with_article

_LINEAR = {F.linear, torch._C._nn.linear}
_DROPS = (
    ("call_method", "squeeze", (-1,), {}),
    ("call_function", torch.squeeze, (-1,), {}),
    ("call_function", operator.getitem, ((..., 0),), {}),
)


def fuse(module: nn.Module) -> fx.GraphModule:
    """`module` with every linear layer that goes into a regression loss fused with that loss.

    A layer and a loss are a pair where the output of an nn.Linear (or of `F.linear`), as it is or without its last
    dimension of size 1 (``.squeeze(-1)``, ``[..., 0]``), is an operand of nn.MSELoss, nn.L1Loss, nn.HuberLoss or
    nn.SmoothL1Loss or of their functions, and goes nowhere else. Whatever else forward does stays as it is.

    torch.fx traces forward in training and in evaluation mode. What Python decides there (branches on numbers, loops
    over layers) is decided then and for good.

    Args:
        module: a module whose forward, for example ``forward(x, y)``, computes such a loss.

    Returns:
        A module of the same parameters, buffers and submodules (not copies), the same state_dict and the same
        signature. As in the fused losses, a target is never broadcast to the prediction.

    Raises:
        TypeError: `module` is no nn.Module.
        NotImplementedError: it has no such pair, or torch.fx would not see all that it does. The message names what was
            met. `module` is left as it was.

    Equivalent to:
        ``module`` itself, with ``F.mse_loss(self.linear(h), y)`` in its forward replaced by
        ``linear_mse_loss(h, self.linear.weight, y, linear_bias=self.linear.bias)``.

    Example:
        >>> class Model(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.linear = nn.Linear(8, 16), nn.Linear(16, 1)
        ...     def forward(self, x, y):
        ...         return F.mse_loss(self.linear(torch.relu(self.body(x))), y)
        >>> model = fuse(Model())
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"fuse: module must be an nn.Module, got {type(module).__name__}")
    name = type(module).__name__
    if type(module).__module__.partition(".")[0] == "torch":
        raise NotImplementedError(
            f"fuse: module is {with_article(type(module))}; fuse the module that computes the loss, before it is "
            "wrapped"
        )
    try:
        graph = module_graph(module)
    except NotTraceableError as reason:
        raise NotImplementedError(f"fuse: {reason}") from None
    pairs, reasons = [], []
    for node in graph.nodes:
        try:
            loss = _loss(module, node)
            if loss is not None:
                kind, operands, options = loss
                pairs.append((node, kind, options, *_layer(module, node, operands)))
        except _NoPair as reason:
            reasons.append(str(reason))
    if not pairs:
        words = "; ".join(dict.fromkeys(reasons)) or "there is no regression loss in its forward"
        raise NotImplementedError(f"fuse: {name} has no linear layer and loss to fuse: {words}")
    for pair in pairs:
        _replace(module, graph, *pair)
    graph.lint()
    return _Fused(module, graph)


class _Fused(fx.GraphModule):
    """A rewritten module, which shares all it has with the one that it was made from."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph, class_name=type(module).__name__)
        for state in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[state] = module.__dict__[state]
        self.__dict__["_original"] = module  # not a submodule: its names are this one's

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        copied = fuse(copy.deepcopy(self._original, memo))
        copied.training = self.training
        return copied

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _fused_again, (self._original, self.training)


def _fused_again(module: nn.Module, training: bool) -> fx.GraphModule:
    fused = fuse(module)
    fused.training = training
    return fused


class _NoPair(Exception):  # noqa: N818 - why a loss is left as it is
    pass


def _loss(module: nn.Module, node: fx.Node) -> tuple[str, tuple[Any, Any], dict[str, Any]] | None:
    """The loss's name, its two operands and its options; None for a node that is no loss."""
    if node.op == "call_module" and type(loss := module.get_submodule(node.target)) in MODULES:
        if has_hooks(loss) or "forward" in vars(loss):
            raise _NoPair(f"`{node.target}` has hooks or a forward of its own")
        kind, function = MODULES[type(loss)], type(loss).forward
        given = inspect.signature(function).bind(loss, *node.args, **node.kwargs).arguments
        options = {"reduction": loss.reduction, **{name: getattr(loss, name) for name in THRESHOLDS.get(kind, ())}}
    elif node.op == "call_function" and node.target in FUNCTIONS:
        kind = FUNCTIONS[node.target]
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
        legacy = [name for name in ("size_average", "reduce") if given.get(name) is not None]
        if legacy:
            raise _NoPair(f"F.{kind}_loss is given a {legacy[0]}")
        names = ("reduction", "weight", *THRESHOLDS.get(kind, ()))
        options = {name: given[name] for name in names if name in given and given[name] is not None}
    else:
        return None
    return kind, (given["input"], given["target"]), options


def _layer(module: nn.Module, loss: fx.Node, operands: tuple[Any, Any]) -> tuple[fx.Node, fx.Node, fx.Node, bool]:
    """The operand that a linear layer gives, the other one, the layer, and whether its last dimension is dropped."""
    reason = "no operand of the loss is the output of an nn.Linear"
    for prediction, target in (operands, operands[::-1]):
        layer, drops = prediction, False
        if not isinstance(prediction, fx.Node):
            continue
        if (prediction.op, prediction.target, prediction.args[1:], prediction.kwargs) in _DROPS:
            layer, drops = prediction.args[0], True
        if not isinstance(layer, fx.Node):
            continue
        if layer.op == "call_module":
            linear = module.get_submodule(layer.target)
            if isinstance(linear, nn.Linear) and (type(linear) is not nn.Linear or has_hooks(linear)):
                reason = f"`{layer.target}` is {with_article(type(linear))} with hooks or more than an nn.Linear"
                continue
            if type(linear) is not nn.Linear or "forward" in vars(linear):
                reason = f"the loss is that of `{layer.target}`, {with_article(type(linear))}"
                continue
            outputs = linear.out_features
        elif layer.op == "call_function" and layer.target in _LINEAR:
            outputs = None
        else:
            continue
        if len(prediction.users) > 1 or len(layer.users) > 1 or target is prediction:
            reason = f"the output of `{layer.name}` is used by more than the loss"
        elif drops and outputs != 1:
            reason = f"`{layer.name}` has not one output, whose dimension could be dropped"
        elif changing := next((n for n in _between(layer, loss) if _is_in_place(module, n)), None):
            reason = f"`{changing.name}` may change what went into `{layer.name}` before the loss"
        else:
            return prediction, target, layer, drops
    raise _NoPair(reason)


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    while (first := first.next) is not last:
        yield first


def _is_in_place(module: nn.Module, node: fx.Node) -> bool:
    """Whether a node writes to a tensor that was there before it."""
    if node.op == "call_module":
        return getattr(module.get_submodule(node.target), "inplace", False)
    if node.op not in ("call_function", "call_method") or getattr(node.target, "__module__", "") == "_operator":
        return False  # `and_` is no method that ends in an underscore
    name, given = getattr(node.target, "__name__", node.target), node.kwargs  # functions of torch hand these on by name
    return name.endswith("_") or bool(given.get("inplace")) or given.get("out") is not None


def _replace(
    module: nn.Module,
    graph: fx.Graph,
    node: fx.Node,
    kind: str,
    options: dict[str, Any],
    prediction: fx.Node,
    target: Any,
    layer: fx.Node,
    drops: bool,
) -> None:
    """Put the fused loss in the place of a loss and of the layer that goes into it."""
    with graph.inserting_before(node):
        if layer.op == "call_module":
            (input,) = (*layer.args, *layer.kwargs.values())
            weight = graph.get_attr(f"{layer.target}.weight")
            has_bias = module.get_submodule(layer.target).bias is not None
            bias = graph.get_attr(f"{layer.target}.bias") if has_bias else None
        else:
            given = inspect.signature(lambda input, weight, bias=None: None).bind(*layer.args, **layer.kwargs)
            given.apply_defaults()
            input, weight, bias = given.args
        if drops:
            weight = graph.call_function(operator.getitem, (weight, 0))
        function = getattr(functional, f"linear_{kind}_loss")
        fused = graph.call_function(function, (input, weight, target), {"linear_bias": bias, **options})
    node.replace_all_uses_with(fused)
    for old in (node, prediction, layer):
        if old in graph.nodes and not old.users:
            graph.erase_node(old)
