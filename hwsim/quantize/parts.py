"""Recipes with single parts or widths exchanged, written as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from golden.errors import HwsimError, one_of
from hwsim.networks.graph import FloatGraph
from hwsim.quantize.quantizers import parse_quantizer
from hwsim.quantize.recipe import Lowering, Recipe

# Families of parts: what comes behind the dot is a role, or the name of a node of the graph.
PREFIXES = ("point", "weights", "node", "node_weights")
# What a part of a role is called when it is that of one node.
NODE_PREFIX = {"point": "node", "weights": "node_weights"}


def check_nodes(graph: FloatGraph, points: Iterable[str], layers: Iterable[str]) -> None:
    """Refuse names that a network does not have.

    Parameters
    ----------
    graph : FloatGraph
    points, layers : iterable of str
        Of nodes that have a point, and of linear layers.

    Raises
    ------
    HwsimError
        Says the nearest name.
    """
    known = {
        "point": (points, [node.name for node in graph.nodes if node.role]),
        "linear layer": (layers, [node.name for node in graph.nodes if node.operation == "linear"]),
    }
    for what, (names, there) in known.items():
        for name in names:
            if name not in there:
                advice = one_of(name, there, "`hwsim audit` lists its points")
                raise HwsimError(f"{graph.name} has no {what} {name!r}; {advice}")


def _family(field: str) -> int:
    """Place of a field's family among `PREFIXES`; other fields come last."""
    prefix = field.partition(".")[0]
    return PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES)


def with_parts(recipe: Recipe, parts: Mapping[str, Any]) -> Recipe:
    """A recipe with other quantizers or weights at some roles or nodes, or other widths; its name tells them.

    Parameters
    ----------
    recipe : Recipe
    parts : mapping of str to value
        ``point.ROLE`` and ``node.NAME`` to a quantizer as text ("float" leaves the points in float),
        ``weights.ROLE`` and ``node_weights.NAME`` to a width, and fields of `Lowering`. Other fields are passed
        over.

    Raises
    ------
    HwsimError
        An unknown role or quantizer, or a value out of range.
    """
    points, weights = dict(recipe.points), dict(recipe.weights_at)
    nodes, node_weights = dict(recipe.nodes), dict(recipe.node_weights)
    name = recipe.name
    usual = {field.name: field.default for field in fields(Lowering)}
    widths = {field: value for field, value in parts.items() if field in usual and value is not None}
    # In the order of the families, so that the same parts have one name however they were given.
    for field, value in sorted(parts.items(), key=lambda part: _family(part[0])):
        prefix, dot, place = field.partition(".")
        if not dot or prefix not in PREFIXES:
            continue
        name += f" {field}={value}"
        if prefix in ("point", "node"):
            target: dict[str, Any] = points if prefix == "point" else nodes
            if value != "float":
                target[place] = parse_quantizer(str(value))
            elif prefix == "node":
                target[place] = None
            elif target.pop(place, None) is None:
                raise HwsimError(f"{field}=float: {recipe.name} has quantizers at {', '.join(points)}")
        else:
            if not isinstance(value, int) and not str(value).isdecimal():
                raise HwsimError(f"{field}={value}: weights take a number of bits, such as 8")
            if prefix == "weights":
                weights[place] = replace(recipe.weights_of(place), bits=int(value))
            else:
                node_weights[place] = int(value)
    # Two programs of different widths must not have one name, by which files are called.
    for field, value in widths.items():
        name = re.sub(rf" {field}=\S+", "", name) + (f" {field}={value}" if value != usual[field] else "")
    return replace(
        recipe,
        name=name,
        points=points,
        weights_at=weights,
        nodes=nodes,
        node_weights=node_weights,
        lowering=replace(recipe.lowering, **widths),
    )
