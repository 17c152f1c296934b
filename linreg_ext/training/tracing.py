# SPDX-License-Identifier: BSD-3-Clause
"""Reading what a function computes from its code and its torch.fx graph, or saying why that is not possible.

A trace shows one run. So before anything is traced its bytecode must consist of nothing but names that are known:
parameters, submodules, plain numbers and operations without side effects. What a branch, a call of something else, a
store or a value from outside could do is then not a question, and tracing changes nothing.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Callable, Collection
from types import FunctionType, ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..losses import LOSSES
from .evidence import ABSENT, Evidence, is_pytorchs

# Operations that neither change their arguments nor draw random numbers, and the names on the way to them.
# fmt: off
OPERATIONS = frozenset((
    "torch", "nn", "functional", "F",
    "add", "sub", "mul", "div", "matmul", "mm", "mv", "addmm", "linear", "t", "T", "mT",
    "reshape", "view", "view_as", "reshape_as", "squeeze", "flatten", "shape", "size", "numel",
    "sum", "mean", "abs", "pow", "square", *(loss.function.__name__ for loss in LOSSES.values() if loss.function),
))
# fmt: on
_JUMPS = {*dis.hasjrel, *dis.hasjabs}


class Unrecognised(Exception):  # noqa: N818 - the answer to a question, not a failure
    """Why something is not of the recognised kind, as the end of a sentence."""


class Rules(Protocol):
    """What the nodes of a graph stand for."""

    def placeholder(self, index: int) -> Any: ...
    def attribute(self, target: str) -> Any: ...
    def module(self, target: str, args: tuple[Any, ...]) -> Any: ...
    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


def require_plain(function: Any, name: str, evidence: Evidence, attributes: Collection[str] = ()) -> None:
    """Raise unless running `function` once shows all that it can ever do.

    Args:
        function: a Python function.
        name: what to call it in the reason.
        attributes: the names, beside `OPERATIONS`, that it may read from its first argument.
    """
    if not isinstance(function, FunctionType):
        raise Unrecognised(f"{name} is not a plain Python function")
    code = evidence.attribute(function, "__code__")
    if code.co_freevars:
        raise Unrecognised(f"{name} uses `{code.co_freevars[0]}` from outside")
    if any(hasattr(constant, "co_code") for constant in code.co_consts):
        raise Unrecognised(f"{name} defines functions of its own")
    for instruction in dis.get_instructions(code):
        operation, argument = instruction.opname, instruction.argval
        if instruction.opcode in _JUMPS:
            raise Unrecognised(f"{name} has control flow")
        if operation.startswith("INPLACE_") or (operation == "BINARY_OP" and instruction.argrepr.endswith("=")):
            raise Unrecognised(f"{name} works in place")  # a trace shows `+=` as `+`
        if operation.startswith(("STORE_", "DELETE_", "IMPORT_")) and not operation.startswith("STORE_FAST"):
            raise Unrecognised(f"{name} changes `{argument}`")
        if operation == "LOAD_GLOBAL" or operation == "LOAD_NAME":
            _require_torch(evidence.entry(function.__globals__, argument), argument, name)
        elif instruction.opcode in dis.hasname and argument not in OPERATIONS and argument not in attributes:
            raise Unrecognised(f"{name} uses `{argument}`")
    for operation in OPERATIONS.intersection(code.co_names):
        meanings = [evidence.entry(torch, operation), evidence.entry(F, operation), evidence.method(Tensor, operation)]
        if not all(meaning is ABSENT or is_pytorchs(meaning, operation) for meaning in meanings):
            raise Unrecognised(f"{name} uses a `{operation}` that is not PyTorch's")


def _require_torch(value: Any, variable: str, name: str) -> None:
    """Raise unless a global variable is a module of torch or one of its operations."""
    word = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    is_operation = callable(value) and getattr(value, "__name__", None) in OPERATIONS
    if word.partition(".")[0] not in ("torch", "_operator") or not (isinstance(value, ModuleType) or is_operation):
        raise Unrecognised(f"{name} uses `{variable}` from outside")


def evaluate(root: torch.nn.Module | Callable[..., Any], rules: Rules, name: str) -> Any:
    """What `root` returns, its operations evaluated by `rules`."""
    try:
        graph = fx.Tracer().trace(root)
    except Exception as error:
        raise Unrecognised(f"torch.fx cannot trace {name} ({type(error).__name__}: {error})") from None
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "placeholder":
            values[node] = rules.placeholder(len(values))  # placeholders come first
        elif node.op == "get_attr":
            values[node] = rules.attribute(node.target)
        elif node.op == "call_module":
            values[node] = rules.module(node.target, tuple(args))
        elif node.op == "output":
            return args[0]
        else:
            values[node] = rules.call(node.target, tuple(args), dict(kwargs))
    raise Unrecognised(f"{name} returns nothing")


def with_article(cls: type) -> str:
    """A class's name in a reason: "a ReLU", "an LSTM"."""
    article = "an" if re.match("[AEIO]|U[np]|[FHLMNRSX][A-Z]", cls.__name__) else "a"
    return f"{article} {cls.__name__}"


def called(function: Any) -> str:
    """What to call a function or method in a reason."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
