"""Which voting methods there are. A method is one function ``traces -> weights``; `register` adds yours::

@register("short")
def short(traces):
    '''Shorter traces weigh more.'''
    return np.array([1 / trace.num_tokens for trace in traces])

vote(traces, "short").answer
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from arrol_tts.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Weights: TypeAlias = "NDArray[np.float64]"
Method = Callable[..., Weights]
"""``method(traces, **options) -> weights``: the answered traces of one question in, one finite
non-negative float64 weight a trace out."""
MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """A registered method.

    Attributes:
        name: what `vote` and the command line call it.
        weigh: the function.
        description: first line of its docstring.
        options: keyword options and their defaults.
        needs: the signals each voting trace must carry: ``confidence``, ``scores``, ``self_certainty``.
    """

    name: str
    weigh: Method
    description: str
    options: Mapping[str, Any]
    needs: tuple[str, ...] = ()


def _options_of(method: Method) -> Mapping[str, Any]:
    _, *options = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in options if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


_methods: dict[str, MethodInfo] = {}
METHODS: Mapping[str, MethodInfo] = MappingProxyType(_methods)
"""Every registered method by name; read-only, extend it with `register`."""


def register(name: str, *, needs: Iterable[str] = ()) -> Callable[[MethodT], MethodT]:
    """Decorator that adds a method to `METHODS`.

    Args:
        name: the method's name.
        needs: signals the method reads from every trace, for listings.

    Raises:
        InputError: the name is taken.
    """
    if name in _methods:
        raise InputError(f"voting method {name!r} is already registered; choose another name")

    def add(weigh: MethodT) -> MethodT:
        description = (inspect.getdoc(weigh) or "").partition("\n")[0]
        _methods[name] = MethodInfo(name, weigh, description, _options_of(weigh), tuple(needs))
        return weigh

    return add


def resolve_method(method: str | Method, options: Mapping[str, Any]) -> tuple[str, Method]:
    """The name and the function of a method, once it is known to take the options.

    Raises:
        InputError: unknown method or option; the message lists what there is.
    """
    weigh: Method
    known: Mapping[str, Any]
    if not isinstance(method, str):
        name = str(getattr(method, "name", None) or getattr(method, "__name__", type(method).__name__))
        weigh, known = method, _options_of(method) if options else {}
    elif method in METHODS:
        name, weigh, known = method, METHODS[method].weigh, METHODS[method].options
    else:
        raise InputError(f"unknown voting method {method!r}; choose from {', '.join(sorted(METHODS))}")
    for option in options:
        if option not in known:
            raise InputError(
                f"voting method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}"
            )
    return name, weigh
