"""Specs: ranges, constants, and their way through JSON and back."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

import golden.units  # noqa: F401 (makes every kind known)
from golden.adalog import AdaLogDecodeSpec, AdaLogMatmulSpec, AdaLogQuantizeSpec
from golden.adalog_linear import AdaLogLinearSpec
from golden.add import AddSpec
from golden.asymmetric_linear import AsymmetricLinearSpec
from golden.errors import HwsimError
from golden.layernorm import LayerNormSpec
from golden.linear import LinearSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec
from golden.log_sqrt2 import LogSqrt2LinearSpec, LogSqrt2MatmulSpec, LogSqrt2SumsSpec
from golden.lookup import LookupSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec
from golden.softmax import SoftmaxSpec
from golden.spec import IntFormat, spec_from_dict, spec_kinds
from golden.token_mean import TokenMeanSpec
from golden.twin import TwinLinearSpec, TwinMatmulSpec, TwinQuantizeSpec
from golden.windows import ShiftMaskSpec, WindowBiasSpec

ACCUMULATOR = RequantizeSpec(
    input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=16, shift_bits=6, channels=1
)
SPECS = [
    ACCUMULATOR,
    LookupSpec(input_bits=8, output_bits=5, channels=3),
    LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=20, row_length=197, polynomial_bits=12, beyond="saturate"),
    SoftmaxSpec(score_bits=8, fraction_bits=20, row_length=197, polynomial_bits=12, probability_bits=16),
    LayerNormSpec(
        channels=64,
        input_bits=8,
        output_bits=8,
        alpha_bits=2,
        mantissa_bits=12,
        radicand_bits=16,
        gamma_bits=12,
        beta_bits=20,
    ),
    AddSpec(channels=64, a_bits=8, b_bits=8, output_bits=8, multiplier_bits=16, shift_bits=5, offset_bits=30),
    LinearSpec(
        input_features=4, output_features=3, input_bits=8, weight_bits=8, bias_bits=20, overflow="wrap",
        requantize=ACCUMULATOR,
    ),
    MatmulSpec(a_bits=8, b_bits=8, inner=16, requantize=ACCUMULATOR),
    Log2MatmulSpec(code_bits=4, value_bits=8, row_length=50, requantize=ACCUMULATOR),
    AdaLogQuantizeSpec(input_bits=16, code_bits=4),
    AdaLogMatmulSpec(
        code_bits=4, value_bits=8, row_length=50, guard_bits=8, largest_shift=20, requantize=ACCUMULATOR
    ),
    AdaLogDecodeSpec(code_bits=4, guard_bits=4, largest_shift=20),
    WindowBiasSpec(
        heads=2, window=7, score_bits=8, table_bits=8, output_bits=8, multiplier_bits=16, shift_bits=5, offset_bits=30
    ),
    ShiftMaskSpec(height=14, width=14, window=7, shift=3, bits=8, output_bits=10),
    TokenMeanSpec(tokens=49, bits=8, requantize=ACCUMULATOR),
    TwinQuantizeSpec(probability_bits=16, code_bits=8),
    TwinMatmulSpec(code_bits=8, value_bits=8, row_length=50, requantize=ACCUMULATOR),
    TwinLinearSpec(
        input_features=4, output_features=3, input_bits=8, weight_bits=8, bias_bits=20, requantize=ACCUMULATOR
    ),
    AsymmetricLinearSpec(
        input_features=4, output_features=3, input_bits=8, weight_bits=8, bias_bits=20, requantize=ACCUMULATOR
    ),
    AdaLogLinearSpec(
        input_features=4, output_features=3, code_bits=4, weight_bits=4, bias_bits=30, guard_bits=8, largest_shift=20,
        requantize=ACCUMULATOR,
    ),
    LogSqrt2MatmulSpec(code_bits=4, value_bits=8, row_length=50, guard_bits=7, requantize=ACCUMULATOR),
    LogSqrt2LinearSpec(
        input_features=4, output_features=3, code_bits=4, weight_bits=4, bias_bits=30, guard_bits=7,
        requantize=ACCUMULATOR,
    ),
    LogSqrt2SumsSpec(code_bits=4, value_bits=4, row_length=50, guard_bits=7, accumulator_bits=19),
]  # fmt: skip


# --- integer formats ---


@pytest.mark.parametrize("bits", range(1, 64))
@pytest.mark.parametrize("signed", [False, True])
def test_format_bounds_and_smallest_dtype(bits, signed):
    format = IntFormat(bits, signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    assert (format.minimum, format.maximum) == (low, high)
    assert format.largest_magnitude == max(abs(low), abs(high))
    info = np.iinfo(format.dtype)
    assert info.min <= low and high <= info.max
    assert (info.min < 0) == signed
    assert format.dtype.itemsize == 1 or bits > 4 * format.dtype.itemsize
    assert format.check(np.array([low, high], dtype=object).astype(format.dtype), "x").tolist() == [low, high]


@pytest.mark.parametrize("bits", [0, 64, -1, 8.0, "8", None, True])
def test_format_refuses_widths(bits):
    with pytest.raises(HwsimError, match="between 1 and 63 bits"):
        IntFormat(bits)


def test_format_refuses_a_sign_that_is_not_a_truth_value():
    with pytest.raises(HwsimError, match="signed or not"):
        IntFormat(8, signed=1)


@pytest.mark.parametrize("values", [[0, 256], [-1]])
def test_format_check_names_the_range(values):
    with pytest.raises(HwsimError, match=r"codes must be between 0 and 255 \(unsigned 8-bit\)"):
        IntFormat(8).check(np.array(values), "codes")


@pytest.mark.parametrize("values", [[0.5], [1.0], ["1"], [None]])
def test_format_check_takes_integers_only(values):
    with pytest.raises(HwsimError, match="codes must be integers"):
        IntFormat(8).check(np.array(values), "codes")


# --- fields ---


def integer_fields():
    for spec in SPECS:
        for field in fields(spec):
            if "range" in field.metadata:
                yield pytest.param(spec, field.name, *field.metadata["range"], id=f"{spec.kind}.{field.name}")


@pytest.mark.parametrize(("spec", "name", "low", "high"), list(integer_fields()))
def test_every_field_states_its_range(spec, name, low, high):
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    for bad in (low - 1, high + 1, 2.5, "3", None, True):
        with pytest.raises(HwsimError, match=f"{spec.kind} spec: {name} must be an integer between {low} and {high}"):
            type(spec)(**{**values, name: bad})


@pytest.mark.parametrize(("spec", "name"), [(SPECS[2], "beyond"), (SPECS[6], "overflow"), (SPECS[7], "overflow")])
def test_every_choice_states_its_values(spec, name):
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    for bad in ("nothing", "", 1, None):
        with pytest.raises(HwsimError, match=f"{spec.kind} spec: {name} must be one of"):
            type(spec)(**{**values, name: bad})


def test_the_widths_of_requantization_must_fit_together():
    with pytest.raises(HwsimError, match="input of 40 bits times multiplier of 31 bits exceeds 62 bits; narrow one"):
        RequantizeSpec(input=IntFormat(40, signed=True), output_bits=8, multiplier_bits=31, shift_bits=6, channels=1)


@pytest.mark.parametrize("index", [6, 7, 8, 10, 14, 19, 20, 21])
def test_accumulators_of_matrix_products_are_signed(index):
    unsigned = replace(ACCUMULATOR, input=IntFormat(32))
    with pytest.raises(HwsimError, match=f"{SPECS[index].kind} spec: .*signed"):
        replace(SPECS[index], requantize=unsigned)


def test_specs_that_would_overflow_64_bits_are_refused():
    with pytest.raises(HwsimError, match=r"log_softmax spec: a sum of 16384 .* above 61; lower fraction_bits"):
        LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=30, row_length=1 << 14, polynomial_bits=32)
    with pytest.raises(HwsimError, match="softmax spec: exponential times probability exceeds 61 bits"):
        SoftmaxSpec(score_bits=8, fraction_bits=30, row_length=8, polynomial_bits=16, probability_bits=24)
    with pytest.raises(HwsimError, match=r"layernorm spec: 8192 channels of .* above 62; narrow"):
        LayerNormSpec(
            channels=1 << 13, input_bits=16, output_bits=8, alpha_bits=3, mantissa_bits=16, radicand_bits=16,
            gamma_bits=16, beta_bits=30,
        )  # fmt: skip
    with pytest.raises(HwsimError, match="radicand_bits must be even, not 15"):
        LayerNormSpec(
            channels=8, input_bits=8, output_bits=8, alpha_bits=2, mantissa_bits=16, radicand_bits=15,
            gamma_bits=16, beta_bits=30,
        )  # fmt: skip


def test_a_spec_is_frozen_and_equal_by_value():
    first, second = (LookupSpec(input_bits=8, output_bits=8) for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert repr(first) == "LookupSpec(input_bits=8, output_bits=8, channels=1)"
    with pytest.raises(FrozenInstanceError):
        first.input_bits = 4


# --- JSON ---


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_round_trip_through_json(spec):
    text = json.dumps(spec.to_dict())
    assert spec_from_dict(json.loads(text)) == spec


def test_every_kind_with_arithmetic_is_tested_here():
    rearranging = {"patches", "split_heads", "merge_heads", "transpose", "take_token", "join_tokens", "constant"}
    rearranging |= {"concat", "partition_windows", "join_windows", "merge_patches"}
    assert {spec.kind for spec in SPECS} == set(spec_kinds()) - rearranging


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "lookdown"}, "unknown unit kind 'lookdown'; known are .*lookup"),
        ({"kind": None}, "unknown unit kind None"),
        ({"kind": ["lookup"]}, "unknown unit kind"),
        ({"colour": 3}, "linear spec has no field 'colour'"),
        ({"weight_bits": 99}, "weight_bits must be an integer between 1 and 16, not 99"),
        ({"weight_bits": "8"}, "weight_bits must be an integer between 1 and 16, not '8'"),
        ({"weight_bits": [8]}, "weight_bits must be an integer"),
        ({"overflow": "ignore"}, "overflow must be one of prove, wrap, saturate"),
        ({"requantize": 5}, "a spec must be an object"),
        (
            {"requantize": {"kind": "lookup", "input_bits": 8, "output_bits": 8}},
            "must be a requantize spec, not lookup",
        ),
        ({"requantize": ACCUMULATOR.to_dict() | {"input": {"bits": 8}}}, "fields bits and signed"),
        ({"requantize": ACCUMULATOR.to_dict() | {"input": 8}}, "fields bits and signed"),
        ({"requantize": ACCUMULATOR.to_dict() | {"input": {"bits": "8", "signed": True}}}, "between 1 and 63 bits"),
    ],
)
def test_malformed_json_is_refused_by_field(change, message):
    with pytest.raises(HwsimError, match=message):
        spec_from_dict(SPECS[6].to_dict() | change, "node")


@pytest.mark.parametrize("values", [None, 5, [], "lookup"])
def test_json_that_is_no_object_is_refused(values):
    with pytest.raises(HwsimError, match="node: a spec must be an object"):
        spec_from_dict(values, "node")


def test_a_missing_field_is_named_and_a_default_is_not():
    values = SPECS[6].to_dict()
    del values["overflow"]
    assert spec_from_dict(values).overflow == "prove"
    del values["bias_bits"]
    with pytest.raises(HwsimError, match="node: field 'bias_bits' of the linear spec is missing"):
        spec_from_dict(values, "node")


# --- constants ---


def test_constants_come_back_in_their_smallest_dtypes():
    checked = LookupSpec(input_bits=2, output_bits=9).check_constants({"table": np.array([[0, 1, 2, 511]])})
    assert checked["table"].dtype == np.uint16
    assert checked["table"].tolist() == [[0, 1, 2, 511]]


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({}, "fc1: constant 'table' is missing"),
        ({"table": np.zeros((1, 4), int), "bias": np.zeros(1, int)}, "fc1: unknown constant 'bias'; a lookup unit has"),
        ({"table": np.zeros((4,), int)}, r"fc1: constant 'table' must have shape \(1, 4\), not \(4,\)"),
        ({"table": np.full((1, 4), 512)}, "fc1: constant 'table' must be between 0 and 511"),
        ({"table": np.zeros((1, 4))}, "fc1: constant 'table' must be integers, not float64"),
    ],
)
def test_constants_are_refused_by_name(constants, message):
    with pytest.raises(HwsimError, match=message):
        LookupSpec(input_bits=2, output_bits=9).check_constants(constants, "fc1")
