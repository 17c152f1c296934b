# SPDX-License-Identifier: BSD-3-Clause
"""What a decision about Python objects was made from, so that it can be seen whether it still stands.

Almost anything about a model, a loss or an optimizer can be replaced at any time: a hook, a class, a method of a
class, a global variable. So a decision reads all of it through an `Evidence`, which keeps what was found. The decision
stands as long as every object would give the same answers; nobody has to think of what could change them.
"""

from __future__ import annotations

import functools
import sys
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MethodDescriptorType, ModuleType
from typing import Any, NamedTuple

from torch import nn

_IN_C = (BuiltinFunctionType, GetSetDescriptorType, MethodDescriptorType)
ABSENT = type("Absent", (), {"__repr__": lambda self: "ABSENT"})()


class Watched(NamedTuple):
    """What was found in one object. Names are those of its ``__dict__``, or of itself if it is a dictionary.

    Attributes:
        object, type: the object and its type.
        same: (name, value) that were there, compared by identity.
        absent: names that were not there.
        contents: (name, ((key, value), ...)): dictionaries and all that was in them.
        attributes: (name, value) that `getattr` found, for what is in no ``__dict__``.
        methods: of a class, (name, value) that its instances find in it or its bases; None if there was nothing.
    """

    object: Any
    type: type
    same: tuple[tuple[str, Any], ...] = ()
    absent: tuple[str, ...] = ()
    contents: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    methods: tuple[tuple[str, Any], ...] = ()

    def unchanged(self) -> bool:
        """Whether the object would give the same answers now; ``csrc/torch/evidence.cpp`` does the same."""
        if type(self.object) is not self.type:
            return False
        entries = _entries(self.object) if self.same or self.absent or self.contents else {}
        return (
            all(entries.get(name, ABSENT) is value for name, value in self.same)
            and not any(name in entries for name in self.absent)
            and all(_is_same(entries.get(name), pairs) for name, pairs in self.contents)
            and all(getattr(self.object, name) is value for name, value in self.attributes)
            and all(_lookup(self.object, name) is (ABSENT if value is None else value) for name, value in self.methods)
        )


class _Found:
    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.entries: dict[str, Any] = {}
        self.contents: dict[str, dict[str, Any]] = {}
        self.attributes: dict[str, Any] = {}
        self.methods: dict[str, Any] = {}

    def watched(self) -> Watched:
        return Watched(
            self.owner,
            type(self.owner),
            tuple([(name, value) for name, value in self.entries.items() if value is not ABSENT]),
            tuple([name for name, value in self.entries.items() if value is ABSENT]),
            tuple([(name, tuple(mapping.items())) for name, mapping in self.contents.items()]),
            tuple(self.attributes.items()),
            tuple([(name, None if value is ABSENT else value) for name, value in self.methods.items()]),
        )


class Evidence:
    """Reads objects for a decision and keeps what it found."""

    def __init__(self) -> None:
        self._found: dict[int, _Found] = {}

    def type_of(self, owner: Any) -> type:
        self._of(owner)
        return type(owner)

    def entry(self, owner: Any, name: str) -> Any:
        """What is under a name in an object's ``__dict__`` or in a dictionary; ABSENT if nothing is."""
        return self._of(owner).entries.setdefault(sys.intern(name), _entries(owner).get(name, ABSENT))

    def contents(self, owner: Any, name: str) -> dict[str, Any] | None:
        """The dictionary under a name in an object's ``__dict__``; None if there is none."""
        mapping = _entries(owner).get(name)
        if not isinstance(mapping, dict):
            self.entry(owner, name)
            return None
        return self._of(owner).contents.setdefault(sys.intern(name), dict(mapping))

    def attribute(self, owner: Any, name: str) -> Any:
        """An attribute that is the same object whenever it is read, such as the code of a function."""
        return self._of(owner).attributes.setdefault(name, getattr(owner, name))

    def method(self, cls: type, name: str) -> Any:
        """What instances of a class find under a name in it or its bases; ABSENT if nothing."""
        return self._of(cls).methods.setdefault(sys.intern(name), _lookup(cls, name))

    def watched(self) -> tuple[Watched, ...]:
        """All that was found."""
        return tuple([found.watched() for found in self._found.values()])

    def _of(self, owner: Any) -> _Found:
        return self._found.setdefault(id(owner), _Found(owner))


def is_pytorchs(function: Any, *names: str) -> bool:
    """Whether a function is the one that PyTorch defines under one of these (qualified) names, and not another's.

    Python's functions are followed down to what their decorators wrap. Those in C are taken to be PyTorch's.
    """
    if isinstance(function, ModuleType):
        return True
    if isinstance(function, _IN_C):
        return function.__name__ in names
    if not isinstance(function, FunctionType) or function.__qualname__ not in names:
        return False
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(_root()):
            return False
        function = getattr(function, "__wrapped__", None)
    return function is None or isinstance(function, _IN_C)


@functools.cache
def _root() -> str:
    return nn.Module.children.__code__.co_filename.removesuffix("nn/modules/module.py")


def _entries(owner: Any) -> Any:
    return owner if type(owner) is dict else vars(owner)


def _lookup(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), ABSENT)


def _is_same(mapping: Any, pairs: tuple[tuple[str, Any], ...]) -> bool:
    if not isinstance(mapping, dict) or len(mapping) != len(pairs):
        return False
    found = zip(mapping.items(), pairs, strict=True)
    return all(name == other and value is expected for (name, value), (other, expected) in found)
