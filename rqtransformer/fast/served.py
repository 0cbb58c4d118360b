"""What a fast path serves: modules and settings it knows, by exact type and by name. For all else it steps aside.

A fast path does again, in another way, what the plain code does; it can only do what was there when it was written. So
it says what it knows and compares: a subclass, a hook, a parametrization, a sharded parameter, an attribute, a child or
a field of a config that it does not name means that the plain code runs. Whoever adds an option to the plain code gets
the plain code while decoding, until the fast form has the option too and names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_OWN_CALLS = frozenset({"forward", "_compiled_call_impl"})  # set on an instance, they take the place of the class's
Kind = TypeVar("Kind", bound=nn.Module)


def is_plain(module: object, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether the module is exactly of one of these types, and nothing else happens when it is called.

    Its own parameters must be ordinary tensors. What else hangs on it is for `has_only` to say.
    """
    return (
        isinstance(module, nn.Module)
        and type(module) in kinds
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks)
        and not vars(module).keys() & _OWN_CALLS
        and all(type(tensor) in (Tensor, nn.Parameter, type(None)) for tensor in module._parameters.values())
    )


def has_only(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether all attributes, parameters, buffers and children of a module are among these names."""
    own = vars(module).keys() - _OF_EVERY_MODULE
    return names.issuperset((*own, *module._parameters, *module._buffers, *module._modules))


def knows_settings(settings: Any, known: Mapping[type, frozenset[str]]) -> bool:
    """Whether settings, and the dataclasses in them, are exactly of known types that have known fields only."""
    if type(settings) not in known:
        return False
    names = {field.name for field in dataclasses.fields(settings)} | vars(settings).keys()
    parts = [getattr(settings, name) for name in names]
    return known[type(settings)] >= names and all(
        knows_settings(part, known) for part in parts if dataclasses.is_dataclass(part)
    )
