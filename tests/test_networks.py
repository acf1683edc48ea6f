"""Float graphs of every supported network: timm's values, the published sizes, and what is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from conftest import small_distilled, small_model, small_swin
from golden import windows
from golden.errors import HwsimError
from hwsim.networks import build, embedded, swin_transformer, vision_transformer
from hwsim.networks.interpret import FLOAT_OPERATIONS, Interpreter, evaluate
from hwsim.networks.load import float_graph, load_network

torch = pytest.importorskip("torch")
layers = pytest.importorskip("timm.layers")
MEAN_STD: dict[str, tuple[float, ...]] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}

# Name, parameters in millions, (tokens, channels) of the last block, heads there; Table 5 of the AugReg paper
# (Steiner et al., 2022), Table 1 of DeiT (Touvron et al., 2021), Tables 1 and 7 of Swin (Liu et al., 2021).
SIZES: dict[str, tuple[float, tuple[int, int], int]] = {
    "vit_tiny_patch16_224": (5.7, (197, 192), 3),
    "vit_small_patch16_224": (22, (197, 384), 6),
    "vit_base_patch16_224": (86, (197, 768), 12),
    "vit_large_patch16_224": (304, (197, 1024), 16),
    "vit_small_patch32_224": (23, (50, 384), 6),
    "vit_base_patch16_384": (87, (577, 768), 12),
    "deit_tiny_patch16_224": (5.7, (197, 192), 3),
    "deit_small_patch16_224": (22, (197, 384), 6),
    "deit_base_patch16_224": (86, (197, 768), 12),
    "deit_base_patch16_384": (87, (577, 768), 12),
    "deit_tiny_distilled_patch16_224": (6, (198, 192), 3),
    "deit_small_distilled_patch16_224": (22, (198, 384), 6),
    "deit_base_distilled_patch16_224": (87, (198, 768), 12),
    "swin_tiny_patch4_window7_224": (28, (49, 768), 24),
    "swin_small_patch4_window7_224": (50, (49, 768), 24),
    "swin_base_patch4_window7_224": (88, (49, 1024), 32),
    "swin_base_patch4_window12_384": (88, (144, 1024), 32),
}


@pytest.mark.parametrize("name", SIZES)
def test_structure_of_the_published_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PyTorch's meta device, so without the memory of the weights."""
    import timm

    def without_values(tensor: Any) -> np.ndarray:
        return np.broadcast_to(np.float32(0), tuple(tensor.shape))

    # Imported at the top: a module that is first imported while another is patched would keep the patch.
    for module in (build, swin_transformer, vision_transformer):
        monkeypatch.setattr(module, "array", without_values)
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    graph = float_graph(model, name, **MEAN_STD)
    millions, last, heads = SIZES[name]
    parameters = sum(array.size for node in graph.nodes for array in node.parameters.values())
    parameters -= sum(len(node.parameters["bias"]) for node in graph.nodes if node.name.endswith(".reduction"))
    parameters += 1000 * ("distilled" in name)  # the biases of two heads are one
    assert parameters == sum(parameter.numel() for parameter in model.parameters())
    assert abs(parameters / 1e6 - millions) < 0.03 * millions + 0.3
    assert graph.shapes[graph.nodes[-1].name] == (1, 1000)
    final = [node for node in graph.nodes if node.name.endswith(".add2")][-1]
    assert graph.shapes[final.name] == last
    softmax = [node for node in graph.nodes if node.operation == "softmax"][-1]
    assert graph.shapes[softmax.name][-3] == heads
    operations = Counter(node.operation for node in graph.nodes)
    if name.startswith("swin"):
        blocks = {"tiny": 12, "small": 24, "base": 24}[name.split("_")[1]]
        assert operations["window_bias"] == operations["partition_windows"] == operations["join_windows"] == blocks
        # Every second block is shifted, but not in the last stage, which is one window.
        assert operations["shift_mask"] == blocks // 2 - 1
        assert operations["merge_patches"] == 3
    else:
        assert operations["softmax"] == (24 if "large" in name else 12)


@pytest.mark.parametrize(
    "make",
    [
        small_swin,
        lambda: small_swin(img_size=(24, 12), window_size=3, patch_size=2, depths=(2, 1), num_heads=(2, 2)),
        lambda: small_swin(qkv_bias=False, always_partition=True),
        small_distilled,
        lambda: small_model(qkv_bias=False, patch_size=8),
    ],
)
def test_graph_computes_what_timm_computes(make: Any) -> None:
    from hwsim.networks.interpret import Interpreter

    model = make()
    graph = float_graph(model, "small", **MEAN_STD)
    images = np.random.default_rng(0).integers(0, 256, (3, *graph.image_size), dtype=np.uint8)
    interpreter = Interpreter(graph)
    shapes = {}

    def keep(node, value):  # type: ignore[no-untyped-def]
        shapes[node.name] = tuple(value.shape[1:])
        return value

    logits = interpreter.run(images, after=keep)
    with torch.inference_mode():
        expected = model(interpreter.load(images).permute(0, 3, 1, 2))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert shapes == graph.shapes


def test_embedded_swin_computes_what_timm_computes() -> None:
    from hwsim.networks.interpret import Interpreter

    images = embedded.load_test_set().images[:8]
    logits = Interpreter(load_network("embedded-swin")).run(images)
    with torch.inference_mode():
        expected = embedded.build_model(name="embedded-swin")(torch.from_numpy(embedded.normalize(images)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_random_weights_come_from_their_seed() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_network("embedded-swin", random_weights=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "layers.0.blocks.1.attn.qkv"
    weights = [graph[name].parameters["weight"] for graph in (first, again, other)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert not np.array_equal(weights[0], load_network("embedded-swin")[name].parameters["weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: small_swin(img_size=28),
            r"layers\.0\.blocks\.0\.attn is a padded one \(14x14 in windows of 4\), which this package does not know",
        ),
        (
            lambda: small_swin(img_size=36, window_size=3, patch_size=4),
            r"layers\.1\.downsample is merging of an odd feature map of 9x9",
        ),
        (lambda: small_swin(img_size=(16, 8), window_size=8), r"layers\.0\.blocks\.0\.attn is attention in windows"),
        (lambda: small_swin(global_pool="max"), r"head\.global_pool is pooling by 'max'"),
    ],
)
def test_unknown_swin_blocks_are_named(make: Any, message: str) -> None:
    with pytest.raises(HwsimError, match=f"odd: block {message}"):
        float_graph(make(), "odd", **MEAN_STD)


def test_a_swin_with_a_foreign_module_is_refused() -> None:
    model = small_swin()
    model.layers[1].blocks[0].norm2 = torch.nn.Identity()
    with pytest.raises(HwsimError, match=r"odd: block layers\.1\.blocks\.0\.norm2 is a Identity"):
        float_graph(model, "odd", **MEAN_STD)
    model = small_swin()
    model.layers[0].blocks[1].mlp.act = torch.nn.GELU(approximate="tanh")
    with pytest.raises(HwsimError, match=r"odd: block layers\.0\.blocks\.1\.mlp\.act is an approximate GELU"):
        float_graph(model, "odd", **MEAN_STD)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_model(img_size=18), r"patch_embed is one of images of 18x18 that patches of 4x4 do not fill"),
        (lambda: small_model(img_size=18, dynamic_img_pad=True), r"patch_embed is one of images of 18x18 that patches"),
        (lambda: small_swin(img_size=(17, 16)), r"patch_embed is one of images of 17x16 that patches of 2x2 do not"),
        (lambda: small_model(pos_embed="none"), r"pos_embed is missing"),
        (lambda: small_model(mlp_layer=layers.SwiGLU), r"blocks\.0\.mlp is a SwiGLU"),
        (lambda: small_model(mlp_layer=layers.GluMlp, act_layer=torch.nn.GELU), r"blocks\.0\.mlp is a GluMlp"),
        (lambda: small_model(mlp_layer=layers.GatedMlp), r"blocks\.0\.mlp is a GatedMlp"),
    ],
)
def test_unknown_blocks_of_timm_are_named(make: Any, message: str) -> None:
    with pytest.raises(HwsimError, match=f"odd: block {message}"):
        float_graph(make(), "odd", **MEAN_STD)


@pytest.mark.parametrize("make", [small_model, small_swin])
def test_a_foreign_patch_embedding_is_refused(make: Any) -> None:
    model = make()
    model.patch_embed = torch.nn.Conv2d(3, 24, 4, 4)
    with pytest.raises(HwsimError, match="odd: block patch_embed is a Conv2d"):
        float_graph(model, "odd", **MEAN_STD)


def test_gated_attention_is_refused() -> None:
    """Its gate would be left out without a trace: every layer that is read has the right shape."""
    model = small_model()
    model.blocks[1].attn = layers.Attention(24, num_heads=2, qkv_bias=True, gated=True)
    with pytest.raises(HwsimError, match=r"odd: block blocks\.1\.attn\.gate is a Linear"):
        float_graph(model, "odd", **MEAN_STD)


def test_hybrid_networks_are_refused() -> None:
    """A convolutional network in front of the patches; on the meta device, the smallest of timm's fourteen."""
    import timm

    with torch.device("meta"):
        model = timm.create_model("vit_tiny_r_s16_p8_224")
    with pytest.raises(HwsimError, match="hybrid: block patch_embed is a HybridEmbed"):
        float_graph(model, "hybrid", **MEAN_STD)


def narrow(module: Any, rows: int) -> None:
    """Keep the first rows of a module's weight and bias."""
    for name in ("weight", "bias"):
        setattr(module, name, torch.nn.Parameter(getattr(module, name).detach()[:rows]))


def test_shapes_that_do_not_fit_are_refused_by_node() -> None:
    """What the modules' classes do not tell."""
    model = small_model()
    narrow(model.blocks[1].mlp.fc1, 47)
    with pytest.raises(HwsimError, match=r"odd: blocks\.1\.mlp\.fc2: 47 features for a linear layer of 48"):
        float_graph(model, "odd", **MEAN_STD)
    model = small_model()
    narrow(model.blocks[0].norm2, 23)
    with pytest.raises(HwsimError, match=r"odd: blocks\.0\.norm2: 24 channels for a norm of 23"):
        float_graph(model, "odd", **MEAN_STD)
    model = small_model()
    narrow(model.blocks[0].attn.proj, 20)
    with pytest.raises(HwsimError, match=r"odd: blocks\.0\.add1: a sum of values of shapes \(17, 24\) and \(17, 20\)"):
        float_graph(model, "odd", **MEAN_STD)
    model = small_swin()
    attention = model.layers[0].blocks[1].attn
    attention.relative_position_bias_table = torch.nn.Parameter(torch.zeros(25, 2))
    message = (
        r"odd: layers\.0\.blocks\.1\.attn\.biased: scores of shape \(4, 2, 16, 16\) and a table of \(25, 2\) in windows"
    )
    with pytest.raises(HwsimError, match=message):
        float_graph(model, "odd", **MEAN_STD)


def test_other_families_are_refused_by_their_block() -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model("swinv2_tiny_window8_256")
    message = r"a SwinTransformerV2 is not a network this package knows, its block \S+ is a SwinTransformerV2Block"
    with pytest.raises(HwsimError, match=message):
        float_graph(model, "swinv2", **MEAN_STD)


def test_random_weights_and_a_checkpoint_exclude_each_other(tmp_path: Any) -> None:
    with pytest.raises(HwsimError, match="either random weights or those of"):
        load_network("deit_tiny_patch16_224", checkpoint=tmp_path / "x.pth", random_weights=0)


def test_array_copies() -> None:
    """The graph keeps its weights when the model is trained on."""
    parameter = torch.nn.Parameter(torch.ones(3))
    kept = build.array(parameter)
    with torch.no_grad():
        parameter.zero_()
    assert kept.tolist() == [1, 1, 1]


def test_window_operations_move_what_golden_moves() -> None:
    """In torch with constants made once for a device: the same values, and gradients also after a run without."""
    graph = swin_transformer.swin_transformer_graph(small_swin(), "swin", mean=(0.5,) * 3, std=(0.25,) * 3)
    rng = np.random.default_rng(3)
    seen = set()
    for node in graph.nodes:
        moves = {"partition_windows": windows.partition_windows, "join_windows": windows.join_windows}
        moves["merge_patches"] = windows.merge_patches
        if node.operation not in (*moves, "window_bias", "shift_mask"):
            continue
        seen.add((node.operation, bool(node.attributes.get("shift"))))
        operands = [
            rng.normal(size=(1 if graph[name].operation == "constant" else 2, *graph.shapes[name]))
            for name in node.inputs
        ]
        if node.operation == "window_bias":
            expected = operands[0] + windows.position_bias(operands[1][0], node.attributes["window"])
        elif node.operation == "shift_mask":
            expected = operands[0] - 100.0 * windows.shift_mask(**node.attributes)[:, None]
        else:
            expected = moves[node.operation](operands[0], **node.attributes)
        operation = FLOAT_OPERATIONS[node.operation]
        tensors = [torch.from_numpy(operand) for operand in operands]
        with torch.inference_mode():
            assert np.array_equal(operation(node, {}, tensors).numpy(), expected), node.name
        first = tensors[0].requires_grad_()
        operation(node, {}, tensors).square().sum().backward()
        assert first.grad is not None and first.grad.shape == first.shape
    assert {operation for operation, _ in seen} == {*moves, "window_bias", "shift_mask"}
    assert ("partition_windows", True) in seen


def test_window_constants_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the host is not allowed where a CUDA graph is recorded."""
    graph = swin_transformer.swin_transformer_graph(small_swin(), "swin", mean=(0.5,) * 3, std=(0.25,) * 3)
    interpreter = Interpreter(graph)
    images = np.random.default_rng(4).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels = interpreter.load(images)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return evaluate(graph.nodes, {}, lambda node: interpreter.parameters[node.name], source=pixels)

    first = run()

    def refuse(*arguments: object) -> None:
        raise AssertionError("copied from the host")

    monkeypatch.setattr(torch, "from_numpy", refuse)
    monkeypatch.setattr(torch, "as_tensor", refuse)
    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(run(), first)
