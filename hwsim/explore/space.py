"""Search spaces: fields of a recipe with the values that they may take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice, product
from typing import Any

import numpy as np

from golden.errors import HwsimError, one_of
from hwsim.networks.graph import ROLES, FloatGraph
from hwsim.quantize.parts import PREFIXES, check_nodes, with_parts
from hwsim.quantize.quantizers import parse_quantizer
from hwsim.quantize.recipe import Lowering, Recipe
from hwsim.quantize.recipes import RECIPES

# A point: the value of every field, in the order of the space.
Point = Mapping[str, Any]

DEFAULT_RECIPE = "fq-vit"
WIDTHS = ("weight_bits", "activation_bits", "attention_bits")
_NOT_OPTIONS = {"bits", "lowering"}
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


@dataclass(frozen=True)
class Space:
    """Fields and the values that they may take.

    Parameters
    ----------
    values : mapping of str to tuple
        In the order given.

    Raises
    ------
    HwsimError
        No field, a field without values, one that no recipe has, a role that there is not, or a word that none of
        its recipes takes there. Numbers are left to the points.
    """

    values: Mapping[str, tuple[Any, ...]]

    def __post_init__(self) -> None:
        if not self.values or not all(self.values.values()):
            raise HwsimError("the search space is empty; name a field and its values, such as weight_bits=4,6,8")
        known = option_fields()
        for name, values in self.values.items():
            prefix, dot, place = name.partition(".")
            if name == "recipe":
                _check_values("recipe", values, RECIPES)
            elif dot and prefix in PREFIXES:
                if prefix in ("point", "weights") and place not in ROLES:
                    raise HwsimError(f"{name}: no point has the role {place!r}; {one_of(place, ROLES)}")
                for value in values:
                    if prefix in ("point", "node") and value != "float":
                        parse_quantizer(str(value))
            elif name not in WIDTHS and name not in known:
                names = ["recipe", *WIDTHS, *known, *(f"{prefix}." for prefix in PREFIXES)]
                raise HwsimError(f"there is no field {name!r} of a recipe; {one_of(name, names)}")
        self._check_words()

    def _check_words(self) -> None:
        """Refuse a word that makes no recipe, neither alone nor beside any of the other words."""
        words = {
            name: values
            for name, values in self.values.items()
            if "." not in name and not any(isinstance(value, int) and not isinstance(value, bool) for value in values)
        }
        for name, values in words.items():
            for value in values:
                alone: list[Point] = [
                    {"recipe": system, name: value} for system in self.values.get("recipe", (DEFAULT_RECIPE,))
                ]
                beside = product(*{**words, name: (value,)}.values())
                refused: HwsimError | None = None
                for point in chain(alone, (dict(zip(words, choice, strict=True)) for choice in islice(beside, 1000))):
                    try:
                        recipe_of(point)
                    except HwsimError as error:
                        refused = refused or error
                    else:
                        break
                else:
                    raise HwsimError(f"{name}={value}: {refused}")

    def check(self, graph: FloatGraph) -> None:
        """Refuse nodes that a network does not have.

        Raises
        ------
        HwsimError
            Says the nearest name.
        """
        fields = [name.partition(".") for name in self.values]
        check_nodes(
            graph,
            [place for prefix, dot, place in fields if dot and prefix == "node"],
            [place for prefix, dot, place in fields if dot and prefix == "node_weights"],
        )

    def __len__(self) -> int:
        return int(np.prod([len(values) for values in self.values.values()], dtype=object))

    def grid(self) -> list[Point]:
        """Every point, without those that differ only in fields that their recipe does not have."""
        return unique([dict(zip(self.values, choice, strict=True)) for choice in product(*self.values.values())])

    def sample(self, count: int, seed: int) -> list[Point]:
        """So many different points at random (fewer if the space has fewer)."""
        dice = np.random.default_rng(seed)
        if len(self) <= 1 << 20:
            order = dice.permutation(len(self))
            shape = [len(values) for values in self.values.values()]
            indices = (np.unravel_index(place, shape) for place in order)
            drawn: Sequence[Point] = [self._point(index) for index in indices]
            return unique(drawn)[:count]
        drawn = [self._point([dice.integers(len(v)) for v in self.values.values()]) for _ in range(4 * count)]
        return unique(drawn)[:count]

    def _point(self, indices: Sequence[Any]) -> Point:
        return {name: values[int(i)] for (name, values), i in zip(self.values.items(), indices, strict=True)}


def parse_space(settings: Sequence[str]) -> Space:
    """A space from settings such as ``weight_bits=4..8`` or ``point.gelu=uniform:6 twin-gelu:6``.

    Values are separated by commas, those of ``point.`` and ``node.`` fields, which may hold commas, by spaces.

    Raises
    ------
    HwsimError
        A setting without values, a field named twice, or see `Space`.
    """
    values: dict[str, tuple[Any, ...]] = {}
    for setting in settings:
        name, assigned, text = setting.partition("=")
        if not assigned or not text.strip():
            raise HwsimError(f"{setting!r} has no values; write FIELD=VALUE,VALUE,... such as weight_bits=4,6,8")
        if name in values:
            raise HwsimError(f"the field {name} is given twice; put all its values into one")
        spaced = name.partition(".")[0] in ("point", "node")
        parts = text.split() if spaced else re.split(r"[\s,]+", text.strip())
        values[name] = tuple(dict.fromkeys(value for part in parts for value in _values(part)))
    return Space(values)


def _values(text: str) -> list[Any]:
    if found := _RANGE.fullmatch(text):
        first, last = map(int, found.groups())
        return list(range(first, last + 1))
    if re.fullmatch(r"[-\d]*\.\.[-\d]*", text):
        raise HwsimError(f"the range {text!r} needs both ends, such as 4..8")
    if text in _WORDS:
        return [_WORDS[text]]
    return [int(text)] if re.fullmatch(r"-?\d+", text) else [text]


def option_fields() -> list[str]:
    """Fields of the recipes and of the integer program, without the widths that every recipe has."""
    names: dict[str, None] = {}
    for recipe in RECIPES.values():
        names |= dict.fromkeys(name for name in inspect.signature(recipe).parameters if name not in _NOT_OPTIONS)
    return [*names, *(field.name for field in fields(Lowering))]


def effective(point: Point) -> Point:
    """A point without the fields that its recipe does not have."""
    known = inspect.signature(RECIPES[point.get("recipe", DEFAULT_RECIPE)]).parameters
    own = {name for name in option_fields() if name in known}
    own |= {"recipe", *WIDTHS, *(field.name for field in fields(Lowering))}
    return {name: value for name, value in point.items() if name in own or name.partition(".")[0] in PREFIXES}


def unique(points: Sequence[Point]) -> list[Point]:
    """Different points, reduced to what their recipes have."""
    seen: dict[tuple[Any, ...], Point] = {}
    for point in points:
        reduced = effective(point)
        seen.setdefault(tuple(reduced.items()), reduced)
    return list(seen.values())


def recipe_of(point: Point) -> Recipe:
    """The recipe of a point.

    Raises
    ------
    HwsimError
        A value out of range, or fields that do not fit together.
    """
    point = effective(point)
    system = point.get("recipe", DEFAULT_RECIPE)
    make = RECIPES[system]
    default = str(inspect.signature(make).parameters["bits"].default).split("/")
    bits = "/".join(str(point.get(name, width)) for name, width in zip(WIDTHS, default, strict=True))
    widths = {field.name: point[field.name] for field in fields(Lowering) if field.name in point}
    special = {"recipe", *WIDTHS, *widths}
    options = {
        name: value for name, value in point.items() if name not in special and name.partition(".")[0] not in PREFIXES
    }
    try:
        recipe = make(bits, **options, lowering=Lowering(**widths))
    except TypeError as error:
        raise HwsimError(f"{system}: {error}") from None
    return with_parts(recipe, point)


def _check_values(name: str, values: Sequence[Any], known: Mapping[str, Any]) -> None:
    for value in values:
        if value not in known:
            raise HwsimError(f"{name}: there is no {value!r}; {one_of(value, known)}")
