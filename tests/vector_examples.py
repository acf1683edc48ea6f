"""Golden vectors of four kinds of unit, for the tests that write, damage and replay them."""

import hashlib
import json

import numpy as np
from requantization import requantizer, scaling
from safetensors import safe_open
from safetensors.numpy import save_file

from golden.layernorm import LayerNormSpec
from golden.log2_matmul import Log2MatmulSpec
from golden.log_softmax import LogSoftmaxSpec, exponential_constants
from golden.lookup import LookupSpec
from golden.vectors import UnitVectors

IMAGES = (4, 0, 17)


def vectors_of(spec, constants, *inputs, layer):
    constants = spec.check_constants(constants)
    return UnitVectors(
        spec=spec,
        constants=constants,
        inputs=inputs,
        output=spec.compute(constants, *inputs),
        accumulator=spec.accumulate(constants, *inputs) if hasattr(spec, "accumulate") else None,
        network="embedded",
        recipe="fq-vit 8/8/4",
        layer=layer,
        images=IMAGES,
    )


def examples():
    random = np.random.default_rng(0)
    gelu = LookupSpec(input_bits=6, output_bits=5)
    softmax = LogSoftmaxSpec(score_bits=8, code_bits=4, fraction_bits=30, row_length=7, polynomial_bits=12)
    norm = LayerNormSpec(
        channels=5, input_bits=8, output_bits=8, alpha_bits=2, mantissa_bits=12, radicand_bits=16, gamma_bits=12,
        beta_bits=20,
    )  # fmt: skip
    product = Log2MatmulSpec(code_bits=4, value_bits=8, row_length=7, requantize=requantizer(27))
    return [
        vectors_of(
            gelu, {"table": random.integers(0, 32, (1, 64))}, random.integers(0, 64, (3, 4, 5)),
            layer="blocks.0.mlp.act",
        ),
        vectors_of(
            softmax, exponential_constants(0.05), random.integers(0, 256, (3, 2, 7, 7)), layer="blocks.3.attn.softmax"
        ),
        vectors_of(
            norm,
            {
                "zero_in": np.array(-3),
                "alpha": random.integers(0, 4, 5),
                "gamma": random.integers(-2048, 2048, 5),
                "beta": random.integers(-(2**19), 2**19, 5),
                "fraction_bits": np.array(9),
            },
            random.integers(0, 256, (3, 4, 5)),
            layer="blocks.5.norm1",
        ),
        vectors_of(
            product, {"zero_v": np.array(131), **scaling(700, 24, 60)}, random.integers(0, 17, (3, 2, 7, 7)),
            random.integers(0, 256, (3, 2, 7, 4)), layer="blocks.1.attn.apply",
        ),
    ]  # fmt: skip


EXAMPLES = examples()
GELU, SOFTMAX, NORM, PRODUCT = EXAMPLES


def assert_same(first, second):
    for field in ("spec", "network", "recipe", "layer", "images"):
        assert getattr(first, field) == getattr(second, field)
    assert list(first.arrays()) == list(second.arrays())
    for name, array in first.arrays().items():
        other = second.arrays()[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert (array == other).all()


def tamper(path, change_manifest=None, change_arrays=None, seal_arrays=True, seal_manifest=True):
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    manifest = json.loads(metadata["vit_hwsim"])
    seal = manifest.pop("sha256")
    if change_arrays:
        change_arrays(arrays)
    if seal_arrays:
        manifest["arrays"] = {
            name: {
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
            }
            for name, array in arrays.items()
        }
    if change_manifest:
        change_manifest(manifest)
    if seal_manifest:
        seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    metadata = {"vit_hwsim": json.dumps({**manifest, "sha256": seal})}
    save_file({name: np.array(array) for name, array in arrays.items()}, path, metadata=metadata)


def assign(*keys, value):
    def change(tree):
        for key in keys[:-1]:
            tree = tree[key]
        tree[keys[-1]] = value

    return change
