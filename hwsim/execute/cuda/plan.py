"""From a program to the operations that run it on the GPU: what goes into one kernel, and when values are dropped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from golden.errors import HwsimError
from hwsim.execute.cuda import element_units, movement, product_units
from hwsim.execute.cuda.element_units import table_of
from hwsim.execute.cuda.product_units import Operation, Setting
from hwsim.execute.cuda.requantization import Table
from hwsim.program import Node, Program

UNITS = {**product_units.UNITS, **element_units.UNITS, **movement.UNITS}
# Kinds whose kernel looks its codes up in a table before it keeps them.
_TAKE_A_TABLE = frozenset(product_units.UNITS) | {"softmax", "log_softmax", "token_mean"}
# Kinds whose kernel depends on which codes can come.
_CUT = frozenset({"adalog_matmul", "adalog_linear", "log_sqrt2_matmul", "log_sqrt2_linear"})


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes
    ----------
    name : str
        Of the node whose output it makes.
    inputs : tuple of str
    operation : callable
    dropped : tuple of str
        Values that nothing needs behind it.
    """

    name: str
    inputs: tuple[str, ...]
    operation: Operation
    dropped: tuple[str, ...]


class Planner:
    """Plans of a program; constants are on the device once, whatever is kept.

    Parameters
    ----------
    program : Program
    device : torch.device
    """

    def __init__(self, program: Program, device: torch.device) -> None:
        self.program, self.device = program, device
        self._operations: dict[tuple[str, str | None, bool], Operation] = {}
        self._tables: dict[str, Table | None] = {}
        self._users: dict[str, list[Node]] = {}
        for node in program.nodes:
            for name in node.inputs:
                self._users.setdefault(name, []).append(node)
        for node in program.nodes:
            if node.spec.kind not in UNITS:
                raise HwsimError(
                    f"{node.name}: the cuda executor has no unit {node.spec.kind!r}; use numba (--device cpu)"
                )

    def plan(self, keep: Collection[str] | None) -> list[Step]:
        """Steps that make the logits and the kept nodes; None keeps all.

        Two units become one kernel where the second is a table and the output of the first is not kept.
        """
        pairs: list[tuple[Node, Node | None]] = []
        inside = set()
        for node in self.program.nodes:
            if node.name in inside:
                continue
            behind = self._table_behind(node) if keep is not None and node.name not in keep else None
            pairs.append((node, behind))
            if behind is not None:
                inside.add(behind.name)
        last = {name: step for step, (node, _) in enumerate(pairs) for name in node.inputs}
        return [
            Step(
                node.name if behind is None else behind.name,
                node.inputs,
                self.operation(node, behind),
                tuple(name for name in dict.fromkeys(node.inputs) if last[name] == step),
            )
            for step, (node, behind) in enumerate(pairs)
        ]

    def operation(self, node: Node, behind: Node | None = None, *, alone: bool = False) -> Operation:
        """The operation of a node.

        Parameters
        ----------
        node : Node
        behind : Node, optional
            A table that is part of the same kernel.
        alone : bool
            Right for all codes of the format, not only for those that the node in front gives.
        """
        reachable = None if alone or node.spec.kind not in _CUT else self._reachable(node)
        key = node.name, None if behind is None else behind.name, reachable is not None
        if key not in self._operations:
            users = self._users.get((behind or node).name, [])
            setting = Setting(
                self.device,
                table=None if behind is None else self._table(behind),
                merged=bool(users) and all(user.spec.kind == "merge_heads" for user in users),
                reachable=reachable,
            )
            self._operations[key] = UNITS[node.spec.kind](node.spec, node.constants, setting)
        return self._operations[key]

    def _table_behind(self, node: Node) -> Node | None:
        users = self._users.get(node.name, [])
        if node.spec.kind not in _TAKE_A_TABLE or len(users) != 1:
            return None
        return users[0] if self._table(users[0]) is not None else None

    def _table(self, node: Node) -> Table | None:
        # Plans for other kept nodes ask again, and a table may take 2^17 codes.
        if node.name not in self._tables:
            self._tables[node.name] = table_of(node.spec, node.constants)
        return self._tables[node.name]

    def _reachable(self, node: Node) -> Collection[int] | None:
        """Codes that the first input can have, where a table makes it."""
        table = next((self._table(other) for other in self.program.nodes if other.name == node.inputs[0]), None)
        return None if table is None else np.unique(table.entries).tolist()
