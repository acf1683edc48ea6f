"""Somebody else's unit: the right example passes, the wrong one is found, and a map that does not fit is explained."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.vectors import UnitVectors, write_vectors
from hwsim.cli import main
from sim_tests import foreign
from sim_tests.foreign import cosimulate_foreign, silent
from sim_tests.ports import read_map
from sim_tests.unit_examples import LONGEST, example

EXAMPLE = Path(__file__).parent.parent / "examples" / "bring_your_own"
RIGHT, WRONG, MAP = EXAMPLE / "their_softmax.sv", EXAMPLE / "their_softmax_wrong.sv", EXAMPLE / "ports.toml"


def vectors_of(kind: str, seed: int, length: int = LONGEST, count: int = 60) -> UnitVectors:
    """Rows of an example, half of them of a second image."""
    one = example(kind, seed)
    rows = one.rows(count, length, 3, np.random.default_rng(seed))
    inputs = tuple(part.reshape(2, count // 2, *part.shape[1:]) for part in rows.inputs)
    output, accumulator = rows.output.reshape(2, count // 2, -1), None
    if kind == "log2_matmul":
        # Of each row of codes a matrix of its own: one row times three columns.
        inputs = (inputs[0][:, :, None, :], inputs[1])
        accumulator = output[:, :, None, :]
        output = one.spec.compute(one.constants, *inputs)
    return UnitVectors(one.spec, one.constants, inputs, output, accumulator, "random", "none", one.layer, (4, 9))


def run(
    source: Path,
    map_path: Path,
    layers: list[UnitVectors],
    build_dir: Path,
    top: str = "their_softmax",
    stall_seed: int | None = None,
) -> list[int]:
    """Mismatches of each layer."""
    results = cosimulate_foreign(
        layers, [source], top, read_map(map_path), build_dir=build_dir, stall_seed=stall_seed, waveform=False
    )
    assert [result.compared for result in results] == [
        (layer.output if layer.accumulator is None else layer.accumulator).size for layer in layers
    ]
    return [result.mismatches for result in results]


def softmaxes() -> list[UnitVectors]:
    return [vectors_of("log_softmax", seed) for seed in range(2)]


@pytest.fixture
def small_map(tmp_path: Path) -> Path:
    return changed_map(tmp_path, "", "")


def changed_map(folder: Path, old: str, new: str) -> Path:
    """The map of the example, for the 6-bit scores of these tests."""
    text = MAP.read_text().replace("[parameters]", "[parameters]\nSCORE_BITS = 6")
    assert old in text
    path = folder / "ports.toml"
    path.write_text(text.replace(old, new) if old else text)
    return path


def test_the_right_example_passes(small_map: Path, build_dir: Path) -> None:
    """Its constants are loaded between the layers."""
    for stall_seed in (None, 1):
        assert run(RIGHT, small_map, softmaxes(), build_dir, stall_seed=stall_seed) == [0, 0]


@pytest.mark.parametrize(
    ("source", "reset", "status", "said"),
    [
        (RIGHT, "high", None, "1,260 activations compared in [0-9,]+ clock cycles, 0 mismatches"),
        (WRONG, "high", 1, "first mismatch: log_softmax log_softmax of seed 0: image [49], row"),
        (RIGHT, "low", 1, r"the unit gave nothing at all .* check in .*ports\.toml the reset \(active low\)"),
    ],
)
def test_the_command(
    source: Path,
    reset: str,
    status: int | None,
    said: str,
    small_map: Path,
    build_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(foreign, "cosimulate_foreign", partial(cosimulate_foreign, waveform=False))
    small_map.write_text(small_map.read_text().replace('active = "high"', f'active = "{reset}"'))
    vectors = small_map.parent / "softmax.safetensors"
    write_vectors(vectors, softmaxes()[0])
    unit = ["--verilog", str(source), "--top", "their_softmax", "--map", str(small_map)]
    arguments = ["cosim", "--vectors", str(vectors), *unit, "--stalls", "none", "-o", str(build_dir)]
    if status is None:
        main(arguments)
    else:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == status
    assert re.search(said, capsys.readouterr().out)


def truncated_code(layer: UnitVectors, row: np.ndarray) -> list[int]:
    """Codes of a row with the ratio cut off, in plain integers: what the wrong example gives."""
    x0, b, c = (int(layer.constants[name]) for name in ("x0", "b", "c"))
    bits = layer.spec.fraction_bits  # type: ignore[attr-defined]
    exponentials = []
    for score in row.tolist():
        x = max(score - int(row.max()), bits * x0)
        r = x - x0 * (x // x0)
        exponentials.append((r * (r + b) + c) << bits - x // x0)
    codes = []
    for one in exponentials:
        ratio = sum(exponentials) // one
        octave = ratio.bit_length() - 1
        code = octave + (ratio >> octave - 1 & 1 if octave else 0)
        codes.append(min(code, 16))
    return codes


def test_the_wrong_example_is_found(small_map: Path, build_dir: Path) -> None:
    (layer, _) = softmaxes()
    rows = layer.inputs[0].reshape(-1, LONGEST)
    given = np.array([truncated_code(layer, row) for row in rows])
    differs = given != layer.output.reshape(-1, LONGEST)
    ports = read_map(small_map)
    (result,) = cosimulate_foreign([layer], [WRONG], "their_softmax", ports, build_dir=build_dir, waveform=False)
    assert result.mismatches == int(differs.sum()) > 0
    row, element = (int(place) for place in np.argwhere(differs)[0])
    found = result.first_mismatch
    assert found is not None
    assert (found.image, found.row, found.element) == ((4, 9)[row // 30], row % 30, element)
    assert (found.expected, found.got) == (
        str(layer.output.reshape(-1, LONGEST)[row, element]),
        str(given[row, element]),
    )
    assert silent(result, ports) is None


def test_a_unit_that_never_answers(small_map: Path, build_dir: Path) -> None:
    """Held in reset by a wrong polarity."""
    small_map.write_text(small_map.read_text().replace('active = "high"', 'active = "low"'))
    ports = read_map(small_map)
    (layer, _) = softmaxes()
    (result,) = cosimulate_foreign([layer], [RIGHT], "their_softmax", ports, build_dir=build_dir, waveform=False)
    assert result.mismatches == result.compared == layer.output.size
    hint = silent(result, ports)
    assert hint is not None
    assert re.search(r"gave nothing at all.*ports\.toml the reset \(active low\)", hint)


# Two lanes, the first one highest, of codes in bytes; keep a lane; no ready anywhere, no last.
LOOKUP = """module table_unit #(parameter [64*5-1:0] TABLE = 0) (
  input clock, input en, input [15:0] code, input [1:0] code_keep,
  output reg go, output reg [15:0] value, output reg [1:0] value_keep);
  initial go = 0;
  always @(posedge clock) begin
    go <= en;
    value <= {3'b101, TABLE[5*code[13:8]+:5], 3'b010, TABLE[5*code[5:0]+:5]};
    value_keep <= code_keep;
  end
endmodule
"""
LOOKUP_MAP = """unit = "lookup"
lanes = 2
[parameters]
TABLE = {constant = "table", bits = 5}
[clock]
port = "clock"
[input]
data = "code"
element_bits = 8
first = "high"
valid = "en"
keep = "code_keep"
[output]
data = "value"
element_bits = 8
first = "high"
valid = "go"
keep = "value_keep"
"""


def test_packing_and_missing_ports(tmp_path: Path, build_dir: Path) -> None:
    (tmp_path / "table_unit.v").write_text(LOOKUP)
    (tmp_path / "ports.toml").write_text(LOOKUP_MAP)
    layer = vectors_of("lookup", 0, length=7)
    arguments = (tmp_path / "table_unit.v", tmp_path / "ports.toml", [layer], build_dir, "table_unit")
    assert run(*arguments) == [0]
    assert run(*arguments, stall_seed=3) == [0]


PRODUCT = """module products (
  input aclk, input aresetn, input [4:0] code, input [17:0] v, input valid, output ready, input last,
  output reg [74:0] sums, output reg done, input taken, input we, input [0:0] wa, input [6:0] wd);
  reg signed [6:0] zero;
  reg signed [24:0] sum [0:2];
  reg signed [24:0] term;
  assign ready = !done || taken;
  integer n;
  always @(posedge aclk) begin
    if (we) zero <= wd;
    if (!aresetn) begin
      done <= 0;
      for (n = 0; n < 3; n = n + 1) sum[n] <= 0;
    end else begin
      if (taken) done <= 0;
      if (valid && ready) begin
        for (n = 0; n < 3; n = n + 1) begin
          term = code > 15 ? 25'sd0 : ($signed({19'b0, v[6*n+:6]}) - zero) <<< (15 - code);
          sum[n] <= last ? 25'sd0 : sum[n] + term;
          if (last) sums[25*n+:25] <= sum[n] + term;
        end
        done <= last;
      end
    end
  end
endmodule
"""
PRODUCT_MAP = """unit = "log2_matmul"
lanes = 3
clock = {port = "aclk"}
reset = {port = "aresetn", active = "low"}
[input]
data = {code = "code", values = "v"}
valid = "valid"
ready = "ready"
last = "last"
[output]
data = "sums"
valid = "done"
ready = "taken"
[constants]
address = "wa"
data = "wd"
valid = "we"
words = [{constant = "zero_v", at = 0}]
"""


def test_members_on_ports_of_their_own(tmp_path: Path, build_dir: Path) -> None:
    (tmp_path / "products.v").write_text(PRODUCT)
    (tmp_path / "ports.toml").write_text(PRODUCT_MAP)
    layer = vectors_of("log2_matmul", 0)
    arguments = (tmp_path / "products.v", tmp_path / "ports.toml", [layer], build_dir, "products")
    assert run(*arguments, stall_seed=2) == [0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('port = "clk"', 'port = "clock"', "their_softmax has no port clock; did you mean clk?"),
        ('"out_code"', '"out_cod"', "has no port out_cod; did you mean out_code?"),
        ('"out_code"', '"in_ready"', "port in_ready of their_softmax has 1 bits, the map needs 5 (1 x 5 bits)"),
        ('"out_valid"', '"in_last"', "port in_last of their_softmax is an input, where the map needs an output"),
        ('"out_last"', '"out_valid"', "port out_valid of their_softmax has two roles"),
        ("lanes = 1", "lanes = 2", "port in_score of their_softmax has 6 bits, the map needs 12 (2 x 6 bits)"),
        ("lanes = 1", "lanes = 0", "lanes must be a whole number of at least 1, not 0"),
        (
            'data = "in_score"',
            'data = "in_score"\nelement_bits = 5',
            "of port in_score is 5, but an element has 6 bits",
        ),
        ("[parameters]", "[parameters]\nDEPTH = 3", "module their_softmax has no parameter DEPTH"),
        ('"row_length"', '"rows"', "the spec of log_softmax of seed 0 has no number rows; there are score_bits"),
        ('{constant = "c"', '{constant = "d"', "log_softmax has no constant d; there are x0, b, c"),
        ("at = 2", "at = 4", "c of log_softmax of seed 0 needs address 4, beyond the 2 bits of cfg_address"),
        ('"high"\nkind', '"up"\nkind', 'reset.active must be "high" or "low", not \'up\''),
        (
            'last = "in_last"',
            'lst = "in_last"',
            "input.lst is not known; there are data, element_bits, first, keep, last",
        ),
        ('valid = "in_valid"\n', "", "input.valid is missing; it must be a name"),
        ("[clock]", "[clock", "is no TOML"),
        ('unit = "log_softmax"', 'unit = "layernorm"', "unit is layernorm, but log_softmax of seed 0 is a log_softmax"),
        ('data = "in_score"', 'data = {code = "in_score"}', "input.data must name one port, not code"),
    ],
)
def test_a_map_that_does_not_fit(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = changed_map(tmp_path, old, new)
    with pytest.raises(HwsimError, match=re.escape(message)) as refused:
        run(RIGHT, path, softmaxes()[:1], tmp_path / "build")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "build").exists()


def test_verilog_that_cannot_be_used(tmp_path: Path) -> None:
    layers = softmaxes()[:1]

    def refused(source: Path, top: str = "their_softmax") -> str:
        with pytest.raises(HwsimError) as error:
            run(source, MAP, layers, tmp_path / "build", top)
        assert "\n" not in str(error.value)
        return str(error.value)

    broken = tmp_path / "broken.sv"
    broken.write_text(RIGHT.read_text().replace("typedef enum", "typedef enumm", 1))
    line = next(number for number, text in enumerate(broken.read_text().splitlines(), 1) if "enumm" in text)
    assert re.search(
        rf"Verilator does not accept the Verilog: Error: broken\.sv:{line}:\d+: syntax error", refused(broken)
    )
    assert "there is no module softmax in their_softmax.sv; there are their_softmax" in refused(RIGHT, "softmax")
    assert re.search(r"missing\.sv: cannot be read \(No such file", refused(tmp_path / "missing.sv"))
    record = tmp_path / "record.sv"
    record.write_text(RIGHT.read_text().replace("input  logic                  in_last", "input  real in_last"))
    assert "port in_last of their_softmax is no vector of bits" in refused(record)


def test_rows_that_differ_need_last(tmp_path: Path) -> None:
    path = changed_map(tmp_path, 'last = "out_last"\n', "")
    path.write_text(path.read_text().replace('ROW = {spec = "row_length"}', ""))
    layers = [vectors_of("log_softmax", 0), vectors_of("log_softmax", 1, length=9)]
    with pytest.raises(HwsimError, match=r"output\.last is missing, and rows differ in length \(9, 21\)"):
        run(RIGHT, path, layers, tmp_path / "build")


def test_constants_that_do_not_fit(tmp_path: Path) -> None:
    (layer, _) = softmaxes()
    wide = replace(layer, constants={**layer.constants, "b": np.array((1 << 32) - 1)})
    source = tmp_path / "narrow.sv"
    source.write_text(RIGHT.read_text().replace("[31:0]           cfg_data", "[15:0]           cfg_data"))
    path = changed_map(tmp_path, "", "")
    with pytest.raises(
        HwsimError, match=r"b of log_softmax of seed 0 holds 4294967295, beyond the 16 bits of cfg_data"
    ):
        run(source, path, [wide], tmp_path / "build")
