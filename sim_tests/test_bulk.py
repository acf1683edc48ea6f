"""The bulk tier: the same verdicts as the protocol tier, and every way in which a unit can be wrong is noticed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from golden.errors import HwsimError
from golden.vectors import UnitVectors
from sim_tests.bulk import cosimulate_bulk
from sim_tests.bulk_build import build_library
from sim_tests.bulk_model import BulkModel
from sim_tests.cosim import cosimulate
from sim_tests.simulate import BeatBits, Play
from sim_tests.toolchain import find_toolchain
from sim_tests.unit_examples import LONGEST, example

IMAGES = (3, 5, 8, 13)


def layer_of(kind: str, seed: int = 0) -> UnitVectors:
    """Vectors of an example: four images of one matrix."""
    made = example(kind, seed)
    rows = made.rows(len(IMAGES), LONGEST, 1, np.random.default_rng(seed))
    inputs = (rows.inputs[0][:, None, :], *rows.inputs[1:])
    spec, constants = made.spec, made.constants
    return UnitVectors(
        spec=spec,
        constants=constants,
        inputs=inputs,
        output=spec.compute(constants, *inputs),
        accumulator=None,
        network="examples",
        recipe="none",
        layer=made.layer,
        images=IMAGES,
    )


def halves(layer: UnitVectors) -> list[UnitVectors]:
    return [
        replace(
            layer,
            inputs=tuple(array[part] for array in layer.inputs),
            output=layer.output[part],
            images=layer.images[part],
        )
        for part in (slice(2), slice(2, None))
    ]


def test_batches_add_up_and_agree_with_the_protocol_tier(build_dir: Path) -> None:
    layers = [layer_of("lookup"), layer_of("log_softmax"), layer_of("lookup", 1)]
    batches = list(zip(*map(halves, layers), strict=True))
    results = cosimulate_bulk(batches, lanes=2, build_dir=build_dir, stall_seeds=[None, 7])
    assert [result.layer for result in results] == [layer.layer for layer in layers] * 2
    assert [result.stall_seed for result in results] == [None] * 3 + [7] * 3
    assert all(result.mismatches == 0 and result.first_mismatch is None for result in results)
    assert all(result.images == 4 and result.compared == 4 * LONGEST for result in results)
    (protocol,) = cosimulate(layers[:1], lanes=2, build_dir=build_dir)
    assert (protocol.compared, protocol.mismatches) == (results[0].compared, 0)
    assert all(stalled.cycles > full.cycles for full, stalled in zip(results[:3], results[3:], strict=True))


@pytest.mark.parametrize("stall_seed", [None, 3])
def test_one_wrong_bit_is_found(build_dir: Path, stall_seed: int | None) -> None:
    layer = layer_of("lookup")
    wrong = layer.output.copy()
    wrong[2, 0, 9] ^= 1
    first, second = halves(replace(layer, output=wrong))
    (result,) = cosimulate_bulk([[first], [second]], lanes=2, build_dir=build_dir, stall_seeds=[stall_seed])
    assert result.mismatches == 1
    found = result.first_mismatch
    assert found is not None
    assert (found.image, found.row, found.element) == (8, 0, 9)
    assert found.got == str(layer.output[2, 0, 9])


BROKEN = """
module broken (
    input wire aclk, input wire aresetn,
    input wire [7:0] s_axis_tdata, input wire s_axis_tkeep, input wire s_axis_tlast, input wire s_axis_tvalid,
    output wire s_axis_tready,
    output wire [7:0] m_axis_tdata, output wire m_axis_tkeep, output wire m_axis_tlast, output wire m_axis_tvalid,
    input wire m_axis_tready
);
    reg [7:0] data = 0;
    reg last = 0, keep = 0, full = 0, again = 0;
    reg [7:0] age = 0;
    assign s_axis_tready = !full || (m_axis_tready && !again);
    assign m_axis_tdata = DATA;
    assign m_axis_tlast = last;
    assign m_axis_tkeep = keep;
    assign m_axis_tvalid = VALID;
    always @(posedge aclk) begin
        age <= age + 1;
        if (m_axis_tready) begin
            again <= 0;
            if (!again) full <= 0;
        end
        if (s_axis_tvalid && s_axis_tready) begin
            {last, keep, data} <= {s_axis_tlast, s_axis_tkeep, s_axis_tdata};
            full <= TAKES;
            again <= AGAIN;
        end
        if (!aresetn) full <= 0;
    end
endmodule
"""


def played_by(build_dir: Path, stall_seed: int | None, **faults: str) -> tuple[Play, np.ndarray, list[int], bool]:
    """A register slice with a fault: the beats of sixteen rows of four, what came out, and what rules were broken."""
    text = BROKEN
    for name, value in {"DATA": "data", "VALID": "full", "TAKES": "1'b1", "AGAIN": "1'b0", **faults}.items():
        text = text.replace(name, value)
    bits = BeatBits(1, 1, 1)
    folder = build_library(text, "broken", bits, loadable=False, build_dir=build_dir, tools=find_toolchain())
    data = np.arange(64, dtype=np.uint8)
    beats = np.column_stack([data, 1 + 2 * (data % 4 == 3)]).astype(np.uint8)
    play = Play(np.zeros((0, 1), np.uint8), beats, len(beats))
    with BulkModel(folder, bits, patience=100) as model:
        played, unstable, finished = model.play(play, stall_seed)
    return play, played.given, unstable, finished


def test_a_register_slice_is_right(build_dir: Path) -> None:
    for stall_seed in (None, 1, 2):
        play, given, unstable, finished = played_by(build_dir, stall_seed)
        assert (given == play.beats).all()
        assert not unstable
        assert finished


@pytest.mark.parametrize(
    "faults",
    [
        {"DATA": "data ^ {7'h0, age[3]}"},  # the payload changes while it waits
        {"VALID": "full & (age[3:0] != 0)"},  # valid drops while it waits
        {"VALID": "full & m_axis_tready"},  # valid waits for ready
    ],
)
def test_a_broken_rule_is_noticed_under_stalls(build_dir: Path, faults: dict[str, str]) -> None:
    *_, unstable, _ = played_by(build_dir, 1, **faults)
    assert unstable


def test_a_beat_too_many_is_noticed(build_dir: Path) -> None:
    play, given, _, _ = played_by(build_dir, None, AGAIN="s_axis_tlast")
    assert len(given) > len(play.beats)


def test_a_unit_that_never_answers_is_left(build_dir: Path) -> None:
    _, given, _, finished = played_by(build_dir, None, TAKES="1'b0")
    assert len(given) == 0
    assert not finished


def test_verilog_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(HwsimError, match=r"building the simulation failed in verilator.*failed-build\.log"):
        build_library(
            "module broken (\n", "broken", BeatBits(1, 1, 1), loadable=False, build_dir=tmp_path, tools=find_toolchain()
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed-build.log"]


def test_a_folder_with_a_space(tmp_path: Path) -> None:
    with pytest.raises(HwsimError, match="holds a space"):
        cosimulate_bulk([[layer_of("lookup")]], lanes=1, build_dir=tmp_path / "a folder")
