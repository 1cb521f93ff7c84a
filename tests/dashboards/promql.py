"""PromQL expressions of the dashboards as trees, and the names they may use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import promql_parser

from otel_llm.conventions import INSTRUMENTS, Instrument

# Grafana's variables as durations and numbers that nobody would write himself.
STAND_INS: Final = {"__rate_interval": "61s", "baseline": "67s", "objective": "0.71"}
_UNITS: Final = {"s": "_seconds", "By": "_bytes"}
_PARTS: Final = {
    "histogram": ("_bucket", "_sum", "_count"),
    "counter": ("_total",),
    "observable_counter": ("_total",),
    "observable_gauge": ("",),
}


class Found(NamedTuple):
    """A node of an expression and what it is inside of, from the outermost on."""

    node: Any
    around: tuple[Any, ...]


def metrics() -> dict[str, Instrument]:
    """Every name under which a declared instrument is stored."""
    names = {}
    for instrument in INSTRUMENTS.values():
        unit = "" if instrument.unit.startswith("{") else _UNITS[instrument.unit]
        for part in _PARTS[instrument.kind]:
            names[instrument.name.replace(".", "_") + unit + part] = instrument
    return names


def expression(target: dict[str, Any]) -> str:
    """The query with stand-ins for variables; those inside a string stay as they are."""
    return re.sub(r"\$(\w+)", lambda match: STAND_INS.get(match[1], match[0]), target["expr"])


@cache
def parsed(expr: str) -> Any:
    """The expression as a tree. Raises ValueError if it is none."""
    return promql_parser.parse(expr)


def walk(node: Any, around: tuple[Any, ...] = ()) -> Iterator[Found]:
    """Every node of an expression."""
    yield Found(node, around)
    inside = (*around, node)
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if isinstance(child := getattr(node, name, None), promql_parser.Expr):
            yield from walk(child, inside)
    for child in getattr(node, "args", ()):
        yield from walk(child, inside)


def grouping(node: Any) -> frozenset[str] | None:
    """Labels of an expression's result, None for a number."""
    node = bare(node)
    if isinstance(node, promql_parser.AggregateExpr):
        if str(node.op) in ("topk", "bottomk"):
            return grouping(node.expr)
        by = node.modifier
        return frozenset(by.labels) if by is not None else frozenset()
    if isinstance(node, promql_parser.Call):
        if node.func.name == "histogram_quantile":
            inner = grouping(node.args[1])
            return None if inner is None else inner - {"le"}
        if node.func.name == "vector":
            return frozenset()
        return grouping(node.args[0])
    if isinstance(node, promql_parser.BinaryExpr):
        left = grouping(node.lhs)
        return grouping(node.rhs) if left is None else left
    return None


def bare(node: Any) -> Any:
    """Without parentheses around it."""
    while isinstance(node, promql_parser.ParenExpr):
        node = node.expr
    return node
