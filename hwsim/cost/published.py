"""The cost columns that AdaLog and Q-ViT print, beside what rules give for the same networks.

AdaLog: Wu et al., ECCV 2024, Table 3. Q-ViT: Li et al., NeurIPS 2022, Table 2. The printed figures are there to
compare with; nothing is computed from them. Neither paper says which rule it follows, so each column has those that
come nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

from golden.errors import HwsimError
from hwsim.cost.fixops import FLOAT_BITS, fixops
from hwsim.cost.network import FLOAT, Widths, network_products, network_size, swin_buffers
from hwsim.networks.graph import FloatGraph

MEGA, MEBI, GIGA = 10**6, 2**20, 10**9
# What the figures of a column are, from a network and the width of its hidden layers.
Rule = Callable[[FloatGraph, int], Fraction]


@dataclass(frozen=True)
class Comparison:
    """One printed figure and what one rule gives.

    Attributes
    ----------
    network, row, column, rule : str
    printed : str
        As in the paper.
    value : Fraction
        Ours, in the unit of the column.
    """

    network: str
    row: str
    column: str
    rule: str
    printed: str
    value: Fraction

    @property
    def ours(self) -> str:
        """The value with as many digits as the paper prints, half to even."""
        last_digit = Decimal(1).scaleb(int(Decimal(self.printed).as_tuple().exponent))
        value = Decimal(self.value.numerator) / Decimal(self.value.denominator)
        return str(value.quantize(last_digit, rounding=ROUND_HALF_EVEN))

    @property
    def meets(self) -> bool:
        """Whether all printed digits are the same."""
        return self.ours == self.printed


def _uniform(bits: int, *, first_last: int = 8, image: int | None = None, rest: int = 32, channel: int = 0) -> Widths:
    """One width for all but the first and the last layer."""
    if bits == FLOAT_BITS:
        return FLOAT
    return Widths(bits, bits, bits, first_last=first_last, image=image, rest=rest, channel=channel)


def _giga_fixops(graph: FloatGraph, widths: Widths) -> Fraction:
    return fixops(network_products(graph, widths).values()) / GIGA


def _bytes(graph: FloatGraph, widths: Widths) -> Fraction:
    return Fraction(network_size(graph, widths).bytes)


def _adalog_bytes(graph: FloatGraph, bits: int) -> Fraction:
    """First and last layer of 8 bits; a float scale and a zero point of the width a channel; the rest float."""
    return _bytes(graph, _uniform(bits, channel=FLOAT_BITS + bits))


def _q_vit_bytes(graph: FloatGraph, bits: int, index_bytes: int = 0, mask_bytes: int = 0) -> Fraction:
    """First and last layer of 8 bits, all other parameters of the width; at 32 bits a Swin's buffers."""
    buffers = swin_buffers(graph)
    more = index_bytes * buffers.indices + mask_bytes * buffers.masks if bits == FLOAT_BITS else 0
    return _bytes(graph, _uniform(bits, rest=bits)) + more


def _giga_flops(graph: FloatGraph, bits: int, factor: Callable[[int], Fraction], attention: bool = True) -> Fraction:
    """Multiplications by the worth of one of their width."""
    products = network_products(graph, _uniform(bits)).items()
    counted = [each for name, each in products if attention or graph[name].operation == "linear"]
    return sum((each.count * factor(max(each.widths)) for each in counted), Fraction(0)) / GIGA


def _by_product(bits: int) -> Fraction:
    """As in FixOPs."""
    return Fraction(bits * bits, FLOAT_BITS * FLOAT_BITS)


def _by_width(bits: int) -> Fraction:
    return Fraction(bits, FLOAT_BITS)


def _by_power(bits: int) -> Fraction:
    """1/32, 1/16, 1/8 for 2, 3, 4 bits, as works on low-bit networks count bitwise operations; 8 bits by width."""
    return Fraction(1, 1 << 7 - bits) if bits <= 4 else _by_width(bits)


ADALOG_FIXOPS: Mapping[str, Rule] = {
    "b x b": lambda graph, bits: _giga_fixops(graph, _uniform(bits, first_last=bits)),
    "b x b, image in float": lambda graph, bits: _giga_fixops(graph, _uniform(bits, first_last=bits, image=FLOAT_BITS)),
}
ADALOG_SIZE: Mapping[str, Rule] = {
    "10^6 bytes": lambda graph, bits: _adalog_bytes(graph, bits) / MEGA,
    "2^20 bytes": lambda graph, bits: _adalog_bytes(graph, bits) / MEBI,
}
Q_VIT_SIZE: Mapping[str, Rule] = {
    "parameters": lambda graph, bits: _q_vit_bytes(graph, bits) / MEGA,
    "and float masks, 32-bit indices": lambda graph, bits: _q_vit_bytes(graph, bits, 4, 4) / MEGA,
    "and float masks, 64-bit indices": lambda graph, bits: _q_vit_bytes(graph, bits, 8, 4) / MEGA,
}
Q_VIT_FLOPS: Mapping[str, Rule] = {
    "b^2/32^2": lambda graph, bits: _giga_flops(graph, bits, _by_product),
    "b/32": lambda graph, bits: _giga_flops(graph, bits, _by_width),
    "2^b/128": lambda graph, bits: _giga_flops(graph, bits, _by_power),
    "2^b/128, linear layers only": lambda graph, bits: _giga_flops(graph, bits, _by_power, attention=False),
}

# Row label, width, printed figure, by network (timm's name) and column.
Printed = Mapping[str, Mapping[str, tuple[tuple[str, int, str], ...]]]


def _rows(figures: str) -> tuple[tuple[str, int, str], ...]:
    return tuple((f"{bits}-{bits}", bits, figure) for bits, figure in zip((32, 4, 3, 2), figures.split(), strict=True))


ADALOG_PRINTED: Printed = {
    "deit_tiny_patch16_224": {
        "FixOPs (G)": (
            ("float", 32, "20.1"),
            ("RepQ-ViT 4/4", 4, "0.613"),
            ("AdaLog 4/4", 4, "0.539"),
            ("RepQ-ViT 3/3", 3, "0.444"),
            ("AdaLog 3/3", 3, "0.391"),
        ),
        "size (MB)": (("float", 32, "21.9"), ("both 4/4", 4, "3.4"), ("both 3/3", 3, "2.7")),
    }
}
Q_VIT_PRINTED: Printed = {
    "deit_small_patch16_224": {"size (MB)": _rows("88.2 11.4 8.7 6.0"), "FLOPs (G)": _rows("4.3 0.7 0.4 0.2")},
    "deit_base_patch16_224": {"size (MB)": _rows("346.2 44.1 33.4 22.7"), "FLOPs (G)": _rows("16.8 2.2 1.4 0.8")},
    "swin_tiny_patch4_window7_224": {"size (MB)": _rows("114.2 14.6 11.2 7.7"), "FLOPs (G)": _rows("4.5 0.6 0.3 0.2")},
    "swin_small_patch4_window7_224": {"size (MB)": _rows("199.8 7.0 5.5 3.9"), "FLOPs (G)": _rows("8.7 1.1 0.6 0.3")},
}
TABLES: Mapping[str, tuple[Printed, Mapping[str, Mapping[str, Rule]]]] = {
    "adalog": (ADALOG_PRINTED, {"FixOPs (G)": ADALOG_FIXOPS, "size (MB)": ADALOG_SIZE}),
    "q-vit": (Q_VIT_PRINTED, {"size (MB)": Q_VIT_SIZE, "FLOPs (G)": Q_VIT_FLOPS}),
}


def networks_of(table: str) -> tuple[str, ...]:
    """Networks that a published table has figures for.

    Raises
    ------
    HwsimError
        There is no such table.
    """
    if table not in TABLES:
        raise HwsimError(f"there is no published cost table {table!r}; there are {', '.join(TABLES)}")
    return tuple(TABLES[table][0])


def compare(table: str, graph: FloatGraph) -> list[Comparison]:
    """Every printed figure of a network, by every rule of its column.

    Raises
    ------
    HwsimError
        There is no such table, or the network is not in it.
    """
    if graph.name not in networks_of(table):
        raise HwsimError(f"the published table {table} has no {graph.name}; it has {', '.join(networks_of(table))}")
    printed, rules = TABLES[table]
    return [
        Comparison(graph.name, row, column, name, figure, rule(graph, bits))
        for column, rows in printed[graph.name].items()
        for row, bits, figure in rows
        for name, rule in rules[column].items()
    ]
