"""Operations, bytes, FixOPs and cycles of a program, against counts made by hand and by running it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import golden.units  # noqa: F401 (makes every kind known)
from golden.add import AddSpec
from golden.errors import HwsimError
from golden.linear import LinearSpec
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.rearrange import PatchesSpec, TransposeSpec
from golden.requantize import RequantizeSpec
from golden.spec import _KINDS, IntFormat, Spec, ranged
from hwsim.cli import cli
from hwsim.cli.hardware_cost import hardware_of, program_cycles
from hwsim.cost.accelerator import Accelerator
from hwsim.cost.cycles import UnitCycles, cycles
from hwsim.cost.fixops import fixops
from hwsim.cost.memory import ConstantBytes, activations, constant_bytes
from hwsim.cost.operations import _COUNTS, MOVEMENTS, Operation, node_operations, operations_of, total
from hwsim.program import Node, Program, save_program


def requantizer(channels: int = 1) -> RequantizeSpec:
    return RequantizeSpec(
        input=IntFormat(16, signed=True), output_bits=4, multiplier_bits=8, shift_bits=4, channels=channels
    )


def scaling(channels: int = 1) -> dict[str, np.ndarray]:
    return {"multiplier": np.full(channels, 3), "shift": np.full(channels, 2), "zero_point": np.array(1)}


@pytest.fixture(scope="module")
def program() -> Program:
    """An image of 4 x 6 pixels as 6 patches of 4, 5 features each, their Gram matrix, a table of it."""
    nodes = (
        Node("patches", PatchesSpec(size=2, bits=8), ("pixels",)),
        Node(
            "fc",
            LinearSpec(
                input_features=4, output_features=5, input_bits=8, weight_bits=3, bias_bits=9, requantize=requantizer(5)
            ),
            ("patches",),
            {"weight": np.ones((5, 4), int), "bias": np.zeros(5, int), **scaling(5)},
        ),
        Node("turned", TransposeSpec(bits=4), ("fc",)),
        Node(
            "gram",
            MatmulSpec(a_bits=4, b_bits=4, inner=5, requantize=requantizer()),
            ("fc", "turned"),
            {"zero_a": np.array(0), "zero_b": np.array(0), **scaling()},
        ),
        Node(
            "table",
            LookupSpec(input_bits=4, output_bits=6),
            ("gram",),
            {"table": np.arange(16)[None]},
        ),
        Node(
            "sum",
            AddSpec(channels=6, a_bits=6, b_bits=4, output_bits=6, multiplier_bits=4, shift_bits=3, offset_bits=12),
            ("table", "gram"),
            {name: np.ones(6, int) for name in ("multiplier_a", "multiplier_b", "offset", "shift")},
        ),
    )
    return Program(nodes, (4, 6, 1), {"network": "by hand", "recipe": "none"})


def counted(operations: tuple[Operation, ...]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for each in operations:
        kinds[each.kind] = kinds.get(each.kind, 0) + each.count
    return kinds


def test_operations_by_hand(program: Program) -> None:
    by_node = node_operations(program)
    # 6 tokens of 4 to 5; each of the 30 results is scaled, moved, shifted, and clipped on two sides.
    assert counted(by_node["fc"]) == {
        "multiply-accumulate": 120, "multiply": 30, "add": 30, "shift": 30, "compare": 60,
    }  # fmt: skip
    # 6 x 5 times 5 x 6, both operands centred.
    assert counted(by_node["gram"]) == {
        "multiply-accumulate": 180, "multiply": 36, "add": 30 + 30 + 36, "shift": 36, "compare": 72,
    }  # fmt: skip
    assert counted(by_node["table"]) == {"lookup": 36}
    assert counted(by_node["sum"]) == {"multiply": 72, "add": 72, "shift": 36, "compare": 72}
    assert by_node["patches"] == by_node["turned"] == ()
    products = [each for each in total(list(by_node.values())) if each.kind == "multiply-accumulate"]
    assert products == [
        Operation("multiply-accumulate", (4, 4), 180),
        Operation("multiply-accumulate", (8, 3), 120),
    ]
    # 120 products of 8 x 3 bits and 180 of 4 x 4, in units of 8 x 8.
    assert fixops(products) == Fraction(120 * 24 + 180 * 16, 64) == 90


def test_multiplications_are_those_of_a_plain_loop(small_program: Program) -> None:
    """Steps of the linear layers and attention of a real program, counted by walking all indices."""
    expected = 0
    for node in small_program.nodes:
        output = small_program.shape(node.name)
        if "weight" in node.constants:
            tokens = sum(1 for _ in np.ndindex(*output[:-1]))
            expected += tokens * node.constants["weight"].size
        elif node.spec.kind.endswith("matmul"):
            inner = small_program.shape(node.inputs[0])[-1]
            expected += sum(inner for _ in np.ndindex(*output))
    operations = total(list(node_operations(small_program).values()))
    assert sum(each.count for each in operations if each.kind.endswith("accumulate")) == expected


def test_every_kind_of_unit_is_counted() -> None:
    ours = {kind for kind, spec in _KINDS.items() if spec.__module__.startswith("golden.")}
    assert ours == set(_COUNTS) | MOVEMENTS


def test_an_unknown_unit_is_refused() -> None:
    class Strange(Spec):
        kind = "strange"
        bits: int = ranged(1, 8)

    try:
        with pytest.raises(HwsimError, match="operations of a strange unit are not known"):
            operations_of(Strange(bits=1), [(1,)], (1,))
    finally:
        del _KINDS["strange"]


def test_bytes_by_hand(program: Program) -> None:
    # 20 weights of 3 bits are 60 bits; 5 biases of 9 bits; multiplier and shift of 5 channels, zero point of 5 bits.
    assert constant_bytes(program["fc"]) == ConstantBytes(weights=8, biases=6, tables=0, other=5 + 3 + 1)
    assert constant_bytes(program["table"]) == ConstantBytes(tables=12)
    live = activations(program)
    # 24 pixels; 30 and 36 codes of 4 bits; 36 of 6. Patches and the transposed matrix are read in place.
    assert live.outputs == {"pixels": 24, "patches": 0, "fc": 15, "turned": 0, "gram": 18, "table": 27, "sum": 27}
    assert live.live == {"patches": 24, "fc": 39, "turned": 15, "gram": 33, "table": 45, "sum": 72}
    assert live.peak == ("sum", 72)


def test_peak_of_activations_while_running(small_program: Program) -> None:
    """Every node's operands are live when it runs, and nothing is that no later node reads."""
    live = activations(small_program)
    for index, node in enumerate(small_program.nodes):
        needed = {name for later in small_program.nodes[index:] for name in later.inputs}
        made = {"pixels", *(earlier.name for earlier in small_program.nodes[: index + 1])}
        bound = sum(live.outputs[name] for name in made if name in needed or name == node.name)
        # A code that is only read through another order counts as long as that is read.
        assert live.live[node.name] >= bound


def test_cycles_by_hand(program: Program) -> None:
    """An array of 2 x 3 and MACs of 4 bits; a memory that holds all; the units given."""
    made = Accelerator(
        array_rows=2, array_columns=3, mac_bits=4, lanes=4, memory_bytes=4096, bandwidth=1, clock_mhz=500
    )
    units = {"table": UnitCycles(40, 2)}
    behind = {"fc": UnitCycles(50, 9), "gram": UnitCycles(200, 11)}
    found = {layer.name: layer for layer in cycles(program, made, units, behind).layers}
    # fc: 3 x 2 tiles of 4 steps, two digits of 8 bits, 3 to leave the array; the requantizer is hidden but its latency.
    assert (found["fc"].compute, found["fc"].basis) == (3 * 2 * 4 * 2 + 3 + 9, "array")
    # gram: 3 x 2 tiles of 5 steps and 3; the requantizer is slower.
    assert found["gram"].compute == max(3 * 2 * 5 + 3, 200 - 11) + 11
    assert (found["table"].compute, found["table"].basis) == (40, "unit")
    assert (found["sum"].compute, found["sum"].basis) == (9, "elementwise")
    # 24 pixels in and 27 bytes out, at 2 bytes a cycle; no constants.
    assert [(layer.read, layer.written, layer.memory) for layer in found.values()] == [
        (24, 0, 12), (0, 0, 0), (0, 0, 0), (0, 27, 14),
    ]  # fmt: skip
    assert found["sum"].bound == "memory" and found["sum"].cycles == 14
    spent = cycles(program, made, units, behind)
    assert spent.cycles == 60 + 200 + 40 + 14 and spent.resident
    assert spent.frames_a_second == 500e6 / 314


def test_a_small_memory_costs_traffic(program: Program) -> None:
    """Constants are read anew; where activations exceed half of the memory they lie outside."""
    made = Accelerator(array_rows=2, array_columns=2, lanes=1, memory_bytes=80, clock_mhz=1, bandwidth=1)
    spent = cycles(program, made, {}, {})
    assert not spent.resident
    found = {layer.name: layer for layer in spent.layers}
    # Half are 40 bytes; 45 and 72 are live at the table and the sum. So gram, table and sum lie outside.
    assert (found["fc"].read, found["fc"].written) == (24 + 8 + 6 + 9, 0)
    assert (found["gram"].read, found["gram"].written) == (constant_bytes(program["gram"]).total, 18)
    assert (found["table"].read, found["table"].written) == (12 + 18, 27)
    assert (found["sum"].read, found["sum"].written) == (constant_bytes(program["sum"]).total + 27 + 18, 27)
    with pytest.raises(
        HwsimError, match=r"fc: 40 columns of its weights take 60 bytes, more than half of the 80 bytes"
    ):
        cycles(program, replace(made, array_columns=40), {}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes must be an integer between 1 and 64, not 0"),
        ({"lanes_of": {"lookup": -1}}, "lanes of lookup must be"),
        ({"array_rows": 0}, "array_rows must be"),
        ({"mac_bits": 33}, "mac_bits must be an integer between 1 and 32"),
        ({"memory_bytes": 0}, "memory_bytes must be"),
        ({"bandwidth": 0.0}, "bandwidth must be positive and finite"),
        ({"clock_mhz": float("nan")}, "clock_mhz must be positive and finite"),
    ],
)
def test_an_impossible_accelerator(change: dict[str, object], message: str) -> None:
    with pytest.raises(HwsimError, match=message):
        Accelerator(**change)  # type: ignore[arg-type]


def test_more_lanes_take_fewer_cycles(small_program: Program) -> None:
    few, many = (program_cycles(small_program, Accelerator(lanes=lanes)) for lanes in (1, 8))
    assert many.cycles < few.cycles
    by_name = {layer.name: layer for layer in many.layers}
    for layer in few.layers:
        assert by_name[layer.name].compute <= layer.compute


def test_every_layer_with_hardware_has_a_unit(small_program: Program) -> None:
    """One unit serves all layers of a kind, as `hwsim rtl` builds them; the rest is said to be a model."""
    from rtl import catalog

    hardware = hardware_of(small_program, Accelerator())
    served = {layer.name for each in hardware.units for layer in each.layers}
    assert served == {node.name for node in small_program.nodes if node.spec.kind in catalog.UNITS}
    spent = program_cycles(small_program, Accelerator())
    assert {layer.name for layer in spent.layers if layer.basis == "unit"} == served


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["cost", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_command(small_program: Program, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_program(small_program, path)
    output = invoke(str(path), "--lanes", "2,log2_matmul=4", "--json", str(tmp_path / "cost.json"),
                    "--csv", str(tmp_path / "cost.csv"), "--layers")  # fmt: skip
    report = json.loads((tmp_path / "cost.json").read_text())
    with (tmp_path / "cost.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert f"{report['cycles']:,} cycles a picture" in output
    assert sum(int(line["cycles"]) for line in lines) == report["cycles"]
    assert report["accelerator"]["lanes_of"] == {"log2_matmul": 4}
    assert report["fixops"] == pytest.approx(sum(float(line["fixops"]) for line in lines), rel=1e-12)
    constants = report["bytes"]
    assert constants["all_constants"] == sum(
        constants[name] for name in ("weights", "biases", "tables", "other_constants")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_network"], "give --bits"),
        (["embedded", "--bits", "4/x"], "one width, or three"),
        (["embedded", "--bits", "0"], "weights must be between 1 and 64 bits, not 0"),
        (["missing.safetensors"], "missing.safetensors"),
        (["missing.safetensors", "--bits", "4"], "a program has its own widths"),
        (["--published", "table 9"], "there are adalog, q-vit"),
        (["--published", "adalog", "--bits", "4"], "leave NETWORK and --bits out"),
        (["x.safetensors", "--array", "16"], "--array must be rows and columns"),
        (["x.safetensors", "--lanes", "conv=2"], "there is no hardware unit 'conv'"),
        (["x.safetensors", "--lanes", "two"], "--lanes must be a number"),
        (["x.safetensors", "--lanes", "0"], "lanes must be an integer between 1 and 64, not 0"),
        (["x.safetensors", "--memory", "0"], "memory_bytes must be"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["cost", *arguments, "--json", str(tmp_path / "none.json")])
    assert isinstance(result.exception, HwsimError)
    assert message in str(result.exception)
    assert not (tmp_path / "none.json").exists()
