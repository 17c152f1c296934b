# SPDX-License-Identifier: BSD-3-Clause
"""The torch.fx graph of a module, where that shows all that calling the module does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from .training.affine import has_hooks
from .training.tracing import with_article

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class NotTraceableError(Exception):
    """Why a module has no graph that shows all that it does."""


def module_graph(module: nn.Module) -> fx.Graph:
    """The graph of the module's forward, the same in training and in evaluation mode.

    Raises:
        NotTraceableError: there is none. The module is left as it was.
    """
    name = type(module).__name__
    try:
        _require_traceable(module)
        graphs = []
        for training in (not module.training, module.training):
            with _as_it_was(module), torch.enable_grad():
                module.train(training)
                graphs.append(_Tracer().trace(module))
    except NotTraceableError as error:
        raise NotTraceableError(f"{name} {error}") from None
    except Exception as error:
        raise NotTraceableError(f"torch.fx cannot trace {name} ({type(error).__name__}: {error})") from None
    if str(graphs[0]) != str(graphs[1]):
        raise NotTraceableError(f"{name} computes something else in evaluation mode than in training mode")
    return graphs[1]


class _Proxy(fx.Proxy):
    """Refuses what a graph would show as something else."""

    def _in_place(self, other: Any) -> Any:
        raise NotTraceableError("works in place, which torch.fx does not record")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = _in_place


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self._modes = _modes()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            raise NotTraceableError("enters a grad mode, inference_mode or autocast, which torch.fx does not record")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_leaf_module(m, self.path_of_module(m)):
            _require_traceable(m)
        return super().call_module(m, forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        held = isinstance(a, nn.Parameter) or not isinstance(a, Tensor) or any(a is b for b in self.root.buffers())
        if not held:  # it would become a constant, and an attribute of the module
            raise NotTraceableError("uses a tensor that is neither a parameter nor a buffer of it")
        return super().create_arg(a)


def _modes() -> tuple[Any, ...]:
    """What decides beside its arguments what an operation does, and whether its gradient is recorded."""
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _require_traceable(module: nn.Module) -> None:
    """Raise unless tracing through a module shows all that calling it does."""
    if type(module).__module__.partition(".")[0] == "torch" and not isinstance(module, _CONTAINERS):
        raise NotTraceableError(f"holds {with_article(type(module))}")
    if has_hooks(module):
        raise NotTraceableError(f"has hooks on its {type(module).__name__}")


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Undo what tracing does to a module, and raise if that is more than to pass through it."""
    states = [(m, dict(vars(m)), m.training) for m in module.modules()]
    holders = [(name, v) for _, before, _ in states for name, v in before.items() if isinstance(v, (list, dict, set))]
    contents = [(name, holder, copy.copy(holder), _held(holder)) for name, holder in holders]
    generator = torch.get_rng_state()
    changed = ""
    try:
        yield
        if not torch.equal(generator, torch.get_rng_state()):
            raise NotTraceableError("draws random numbers outside of its modules")
    finally:
        torch.set_rng_state(generator)
        for m, before, training in states:
            names = {*before, *vars(m)} - {"training"}
            changed = next((n for n in names if vars(m).get(n, m) is not before.get(n, m)), changed)
            vars(m).clear()
            vars(m).update(before)
            m.training = training
        for name, holder, before, held in contents:
            if _held(holder) != held:
                changed = name
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(before)
    if changed:
        raise NotTraceableError(f"changes its `{changed}`")


def _held(holder: list[Any] | dict[Any, Any] | set[Any]) -> list[int]:
    """What is in a container, by identity."""
    return [*map(id, holder), *map(id, holder.values() if isinstance(holder, dict) else ())]
