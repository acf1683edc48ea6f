"""Integer products on every instruction set that the processor has: the bits of the reference, also at the edges."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import pytest
from random_programs import ATTENTIONS, hidden_of, random_program, random_window_program, reference_of
from unit_cases import MAKERS, Case

from golden.adalog import AdaLogMatmulSpec, adalog_tables
from golden.adalog_linear import AdaLogLinearSpec
from golden.linear import LinearSpec
from golden.matmul import MatmulSpec
from golden.requantize import RequantizeSpec
from golden.spec import IntFormat
from hwsim.execute import Executor, integer_gemm, integer_products, product_kernels
from hwsim.execute.integer_gemm import INSTRUCTIONS, Instructions, available, gemm
from hwsim.program import Program

# By integer products where their sums have 32 bits.
INTEGER_UNITS = (
    "linear",
    "linear wrapping",
    "asymmetric_linear",
    "asymmetric_linear wrapping",
    "twin_linear",
    "twin_linear wrapping",
    "adalog_linear",
    "matmul",
    "matmul wrapping",
    "log2_matmul",
    "twin_matmul",
    "adalog_matmul",
)
UNITS = (*INTEGER_UNITS, "log_sqrt2_linear", "log_sqrt2_matmul")


@pytest.fixture(params=INSTRUCTIONS, ids=lambda entry: entry.name)
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Instructions:
    """One of the instruction sets, the only one for the kernels made meanwhile."""
    chosen: Instructions = request.param
    if chosen not in available():
        pytest.skip(f"this processor has no {chosen.name}")
    monkeypatch.setattr(integer_products, "available", lambda: [chosen])
    return chosen


def small_codes(case: Case) -> bool:
    """Codes of at most 8 bits come out: kernels for wider ones would be compiled for every instruction set."""
    return case[0].output.bits <= 8


def both(case: Case) -> tuple[np.ndarray, np.ndarray]:
    spec, constants, inputs = case
    checked = spec.check_constants(constants)
    codes = [format.check(array, "input") for format, array in zip(spec.inputs, inputs, strict=True)]
    return spec.compute(checked, *codes), product_kernels.KERNELS[spec.kind](spec, checked)(*codes)


@pytest.mark.parametrize("unit", UNITS)
def test_random_units(unit: str, instructions: Instructions, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def counted(make: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            taken.append(kernel := make(*arguments))
            return kernel

        return counting

    for name in ("linear", "table_linear", "matmul"):
        monkeypatch.setattr(integer_products, name, counted(getattr(integer_products, name)))
    cases = [case for case in (MAKERS[unit](np.random.default_rng(seed)) for seed in range(40)) if small_codes(case)]
    assert len(cases) > 15
    for case in cases:
        reference, fast = both(case)
        assert fast.dtype == reference.dtype
        assert np.array_equal(fast, reference)
    # Enough of them go through the instructions; those of AdaLog's linear layers are of bytes alone.
    some = unit in INTEGER_UNITS and (instructions.bytes or unit != "adalog_linear")
    assert sum(kernel is not None for kernel in taken) >= (5 if some else 0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_random_programs(attention: str, instructions: Instructions) -> None:
    """Of narrow codes: kernels for wider ones would be compiled for every instruction set."""
    for seed in range(2):
        check_every_node(random_program(seed, attention, hidden_of(seed, attention), widest=8), seed)
    check_every_node(random_window_program(0, attention, widest=8), 0)


def check_every_node(program: Program, seed: int) -> None:
    images, expected = reference_of(program, seed)
    _, found = Executor(program, "numba").run(images, keep=None)
    for name, codes in expected.items():
        assert np.array_equal(found[name], codes), (program.recipe, name)


def wide_linear(weight: np.ndarray, codes: np.ndarray, input_bits: int, shift: int = 12) -> Case:
    """A linear unit with 32-bit sums that are divided by ``2**shift``, an odd zero point and 8-bit codes."""
    outputs, inputs = weight.shape
    requantize = RequantizeSpec(
        input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    spec = LinearSpec(
        input_features=inputs,
        output_features=outputs,
        input_bits=input_bits,
        weight_bits=8 if input_bits == 8 else 16,
        bias_bits=32,
        requantize=requantize,
    )
    constants = {
        "weight": weight,
        "bias": np.arange(outputs) - outputs // 2,
        "multiplier": np.array([1]),
        "shift": np.array([shift]),
        "zero_point": np.array(127),
    }
    return spec, constants, (codes,)


@pytest.mark.parametrize(("bits", "weight_limit", "inputs"), [(8, 128, 8191), (15, 1 << 15, 1)])
def test_largest_products(bits: int, weight_limit: int, inputs: int, instructions: Instructions) -> None:
    """All codes and weights at their ends: no instruction saturates on the way."""
    rng = np.random.default_rng(5)
    weight = rng.choice([-weight_limit, weight_limit - 1], (21, inputs))
    weight[:2] = [[-weight_limit], [weight_limit - 1]]
    codes = rng.choice([0, (1 << bits) - 1], (13, inputs))
    codes[0] = (1 << bits) - 1
    reference, fast = both(wide_linear(weight, codes, bits, shift=21))
    assert len(np.unique(reference)) > 2
    assert np.array_equal(fast, reference)


def test_ties_go_to_the_even_code(instructions: Instructions) -> None:
    """Sums of 0, 1, ... halves around an odd zero point, against Python's own rounding of fractions."""
    codes = np.arange(256)[:, None]
    spec, constants, inputs = wide_linear(np.array([[1], [-1]]), codes, 8, shift=1)
    constants["bias"] = np.array([-100, 100])
    fast = product_kernels.KERNELS["linear"](spec, spec.check_constants(constants))(
        spec.inputs[0].check(inputs[0], "codes")
    )
    sums = np.concatenate([codes - 100, 100 - codes], axis=1)
    expected = [[min(max(round(Fraction(int(x), 2) + 127), 0), 255) for x in row] for row in sums]
    assert fast.tolist() == expected


def test_every_edge_of_the_tiles(instructions: Instructions) -> None:
    rng = np.random.default_rng(3)
    for rows in (1, 5, 6, 7, 13):
        for columns in (1, 15, 16, 17, 63, 64, 65, 130):
            inputs = int(rng.integers(1, 10))
            weight = rng.integers(-128, 128, (columns, inputs))
            reference, fast = both(wide_linear(weight, rng.integers(0, 256, (rows, inputs)), 8, shift=8))
            assert np.array_equal(fast, reference)


@pytest.mark.parametrize("unit", ["adalog_matmul", "adalog_linear"])
@pytest.mark.parametrize("code_bits", [7, 8])
def test_a_zero_symbol_that_no_byte_holds(unit: str, code_bits: int, instructions: Instructions) -> None:
    """Symbol 256 of 8-bit codes weighs nothing; its low byte would be code 0, which weighs most."""
    shift, mantissa = adalog_tables(code_bits, 1)
    fields = {
        "code_bits": code_bits,
        # Nothing is cut, so that one integer product makes all of it.
        "guard_bits": 6,
        "largest_shift": 63,
        "requantize": RequantizeSpec(
            input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=4, shift_bits=6, channels=1
        ),
    }
    constants = {"shift_table": shift, "mantissa_table": mantissa, "multiplier": np.array([9])}
    constants |= {"shift": np.array([16 + code_bits - 7]), "zero_point": np.array(128)}
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 1 << code_bits, (2, 5, 9))
    codes[rng.random(codes.shape) < 0.5] = 1 << code_bits
    values = rng.integers(0, 128, (2, 9, 3))
    case: Case
    if unit == "adalog_matmul":
        zero = {"zero_v": np.array(60)}
        case = AdaLogMatmulSpec(value_bits=7, row_length=9, **fields), constants | zero, (codes, values)
    else:
        constants |= {"weight": values[0].T, "zero_weight": np.full(3, 60), "bias": np.arange(3)}
        spec = AdaLogLinearSpec(input_features=9, output_features=3, weight_bits=7, bias_bits=14, **fields)
        case = spec, constants, (codes,)
    reference, fast = both(case)
    assert len(np.unique(reference)) > 10
    assert np.array_equal(fast, reference)


def test_transposed_and_strided_operands() -> None:
    """Heads are views of a joint projection; keys are transposed views of it."""
    rng = np.random.default_rng(1)
    tokens, heads, depth = 9, 2, 6
    joint = rng.integers(0, 256, (3, tokens, 3, heads, depth)).astype(np.uint8)
    query, key, value = (joint[:, :, part].swapaxes(1, 2) for part in range(3))
    requantize = RequantizeSpec(
        input=IntFormat(24, signed=True), output_bits=8, multiplier_bits=8, shift_bits=6, channels=1
    )
    for left, right, inner in ((query, key.swapaxes(-1, -2), depth), (query.swapaxes(-1, -2), value, tokens)):
        spec = MatmulSpec(a_bits=8, b_bits=8, inner=inner, requantize=requantize)
        constants = {"zero_a": np.array(130), "zero_b": np.array(-9), "multiplier": np.array([77])}
        constants |= {"shift": np.array([14]), "zero_point": np.array(100)}
        reference, fast = both((spec, constants, (left, right)))
        assert len(np.unique(reference)) > 10
        assert np.array_equal(fast, reference)


def test_what_has_no_proof_of_32_bits_goes_another_way() -> None:
    spec, constants, _ = wide_linear(np.full((2, 70000), -128), np.zeros((1, 70000), int), 8)
    assert isinstance(spec, LinearSpec)
    assert integer_products.linear(spec, constants, constants["weight"]) is None
    spec, constants, _ = wide_linear(np.full((2, 65000), -128), np.zeros((1, 65000), int), 8)
    assert isinstance(spec, LinearSpec)
    assert (integer_products.linear(spec, constants, constants["weight"]) is None) == (not available())


@pytest.mark.parametrize("unit", UNITS)
def test_a_processor_without_these_instructions(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_products, "available", list)
    for seed in range(10):
        reference, fast = both(MAKERS[unit](np.random.default_rng(seed)))
        assert np.array_equal(fast, reference)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_programs_on_a_processor_without_these_instructions(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_products, "available", list)
    for seed in range(5):
        check_every_node(random_program(seed, attention, hidden_of(seed, attention)), seed)
    check_every_node(random_window_program(0, attention), 0)


def test_instructions_follow_the_processor_that_numba_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, names in (
        ("+sse2", []),
        ("+avx2", []),
        ("+avx2,+fma", ["avx2"]),
        ("+avx2,+fma,+avxvnni", ["avx-vnni", "avx2"]),
        ("+avx2,+fma,+avx512f,+avx512bw,-avx512vnni", ["avx512", "avx2"]),
    ):
        monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
        integer_gemm._processor_features.cache_clear()
        assert [entry.name for entry in available()] == names
    integer_gemm._processor_features.cache_clear()


def test_the_disk_cache_tells_instructions_apart() -> None:
    """One file holds the kernels of all instructions: their keys must differ, and name the processor."""
    keys = set()
    for entry in INSTRUCTIONS:
        multiply = gemm(entry).multiply
        codegen = multiply.targetdescr.target_context.codegen()
        key = multiply._cache._index_key((), codegen)
        assert codegen.magic_tuple() in key
        keys.add((entry.lanes, entry.accumulates, key))
    assert len({key for *_, key in keys}) == len({(lanes, accumulates) for lanes, accumulates, _ in keys}) == 4


def test_one_changed_bit_of_a_packed_weight_shows() -> None:
    if not available():
        pytest.skip("this processor has none of the instructions")
    rng = np.random.default_rng(2)
    weight = rng.integers(-128, 128, (40, 33))
    product = integer_products.ConstantProduct(
        gemm(available()[0]),
        weight,
        np.int8 if available()[0].bytes else np.int16,
        np.zeros(40, np.int64),
        0,
        integer_products._Epilogue(
            RequantizeSpec(
                input=IntFormat(32, signed=True), output_bits=8, multiplier_bits=4, shift_bits=4, channels=1
            ),
            {"multiplier": np.array([1]), "shift": np.array([4]), "zero_point": np.array(128)},
        ),
    )
    codes = rng.integers(0, 128, (1, 7, product.length)).astype(np.uint8 if available()[0].bytes else np.int16)
    before = product(codes)
    product.packed[0, 0, 0, 0] ^= 64
    assert (product(codes) != before).any()
