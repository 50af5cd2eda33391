"""jinja2's sandbox with bounds: a chat template is code of others, and could otherwise take all memory with
one width, or all time with three loops.
"""

import functools
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2 import Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fullft_assets.extras import require_names

require_names(ImmutableSandboxedEnvironment, ("_generate", "call", "call_binop", "intercepted_binops"))

#: Characters that a template may write, or hold in one value.
MOST_CHARACTERS = 10_000_000
#: A width, a number of repetitions or an exponent that no conversation needs.
_MOST_NUMBER = 100_000
_WIDE = re.compile(r"\d{6}")


class Exceeded(Exception):
    """A template exceeds a bound."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; a rendering begins with `begin`, and ends with `Exceeded` at a bound."""

    intercepted_binops = frozenset(["*", "+", "%", "**"])

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.begin()
        self.filters = {name: bounded(filter_) for name, filter_ in self.filters.items()}
        self.filters["bounded"] = bounded(lambda value: value)

    def begin(self) -> None:
        """Count passes and time from now."""
        self._passes = 0
        self._began = time.monotonic()

    def tick(self) -> None:
        """Count a pass of a loop, or a call of a macro."""
        self._passes += 1
        if self._passes > 200_000 or time.monotonic() - self._began > 10.0:
            raise Exceeded("it takes too long")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the value of an operator, and refuse a value that is too long."""
        sequences = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        if operator == "*" and sequences:
            number = right if sequences[0] is left else left
            _require(not isinstance(number, int) or len(sequences[0]) * number <= MOST_CHARACTERS)
        elif operator == "%" and isinstance(left, str):
            _require(not _WIDE.search(left))
            _require_small(*(right if isinstance(right, tuple) else (right,)), is_needed="*" in left)
        elif operator == "**":
            _require_small(left, right)
        return _require_short(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the value of a function, and refuse a value that is too long."""
        if isinstance((text := getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)), str):
            _require_narrow(__obj.__name__, text, *args, *kwargs.values())
        return _require_short(super().call(__context, __obj, *args, **kwargs))

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        def call(name: str, *values: nodes.Expr) -> nodes.Call:
            return nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None)

        for node in list(source.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            node.body.insert(0, nodes.ExprStmt(call("tick")).set_lineno(node.lineno))
        for node in list(source.find_all(nodes.Concat)):
            node.nodes = [call("joined", *node.nodes)]
        for node in list(source.find_all(nodes.AssignBlock)):
            node.filter = nodes.Filter(node.filter, "bounded", [], [], None, None)
        source.set_environment(self)
        source.set_lineno(1)
        return super()._generate(source, *arguments, **options)

    def joined(self, *values: Any) -> str:
        """Return values as one text, as `~` does."""
        return "".join(map(str, values))


def render(template: Template, blocks: list[str], variables: dict[str, Any]) -> None:
    """Add what a template writes to `blocks`, one after the other."""
    assert isinstance(template.environment, BoundedEnvironment)
    template.environment.begin()
    length = 0
    for block in template.generate(**variables):
        length += len(block)
        _require(length <= MOST_CHARACTERS)
        blocks.append(block)


def bounded(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses wide arguments and long results."""

    @functools.wraps(filter_)
    def call(*args: Any, **kwargs: Any) -> Any:
        # jinja2 gives some of them its environment first.
        first = next((position for position, value in enumerate(args) if isinstance(value, str)), 0)
        _require_narrow(filter_.__name__.removeprefix("do_"), *args[first:], *kwargs.values())
        return _require_short(filter_(*args, **kwargs))

    return call


def _require(is_small: bool) -> None:
    if not is_small:
        raise Exceeded("it writes too much")


def _require_small(*values: Any, is_needed: bool = True) -> None:
    _require(
        not is_needed or all(not isinstance(value, int) or abs(value) <= _MOST_NUMBER for value in values)
    )


def _require_narrow(name: str, text: Any = "", *arguments: Any) -> None:
    _require_small(*arguments)
    if name in ("format", "format_map"):
        _require(not _WIDE.search(text))
    if name == "replace" and len(arguments) > 1:
        times = text.count(arguments[0]) if arguments[0] else len(text) + 1
        _require(len(text) + times * len(arguments[1]) <= MOST_CHARACTERS)


def _require_short(value: Any) -> Any:
    if isinstance(value, str | list | tuple):
        _require(len(value) <= MOST_CHARACTERS)
    if isinstance(value, int):
        _require(value.bit_length() <= _MOST_NUMBER)
    return value
