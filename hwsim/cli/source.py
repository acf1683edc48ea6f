"""Options that several commands share: network, data, recipe, program, images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from golden.errors import HwsimError

if TYPE_CHECKING:
    from hwsim.data import ImageSet
    from hwsim.networks.graph import FloatGraph
    from hwsim.program import Program
    from hwsim.quantize.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

BUILD = Path("build")
# Before the name of a node that has no dot in it, which would be taken for a role.
NODE = "node."
EMBEDDED = "embedded"


def with_options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Apply click options in reading order."""

    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


network_options = with_options(
    click.argument("network", default=EMBEDDED, metavar="[NETWORK|CHECKPOINT]"),
    click.option(
        "--checkpoint", type=click.Path(path_type=Path), help="Local weights of NETWORK (safetensors or torch)."
    ),
    click.option("--architecture", help="timm model of a CHECKPOINT whose file name does not tell."),
    click.option(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="timm's random initialisation in place of trained weights: to check a structure, not its accuracy.",
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Calibration images: a folder of images, IDX or CIFAR files, or an .npz.",
    ),
    click.option("--images", type=click.IntRange(1), help="Calibration images.  [default: all, at most 1000]"),
    click.option("--seed", default=0, show_default=True, type=int, help="Of the order of the images of a folder."),
)

recipe_options = with_options(
    click.option(
        "--recipe",
        default="fq-vit",
        show_default=True,
        help="Published system: fq-vit, base-ptq, ptq4vit, repq-vit, adalog or q-vit.",
    ),
    click.option(
        "--bits",
        help="Widths of weights/activations/attention, or one of all three.  "
        "[default: 8/8/4 for fq-vit, 4/4/4 for repq-vit, adalog and q-vit, 8/8/8 for the others]",
    ),
    click.option(
        "--pts/--no-pts", default=None, help="fq-vit: power-of-two scales at LayerNorm inputs.  [default: pts]"
    ),
    click.option(
        "--attention",
        help="fq-vit: quantizer of the softmax, auto, lis, uniform or adalog; auto is lis up to 5 bits, uniform above. "
        "adalog: adalog, log2, log-sqrt2, twin, uniform or float.  [default: auto; adalog]",
    ),
    click.option(
        "--range",
        help="fq-vit, q-vit: observer of the uniform activations, minmax, ema, percentile or omse.  "
        "[default: minmax; omse]",
    ),
    click.option(
        "--metric",
        help="base-ptq, ptq4vit: what the search compares outputs by, hessian, mse or cosine.  "
        "[default: cosine for base-ptq, hessian for ptq4vit]",
    ),
    click.option("--mode", help="base-ptq, ptq4vit: parallel or sequential calibration.  [default: parallel]"),
    click.option("--rounds", type=int, help="base-ptq, ptq4vit, adalog: turns of each operand.  [default: 1; 3; 3]"),
    click.option(
        "--gelu", help="adalog: quantizer behind GELU, adalog, log2, log-sqrt2, twin or uniform.  [default: adalog]"
    ),
    click.option("--method", help="adalog: search, fpcs, released, alternating or brute-force.  [default: fpcs]"),
    click.option(
        "--reconstruct",
        help="adalog, repq-vit: behind the search, block by block, brecq learns the rounding of the weights, brecq-lsq "
        "the steps of the activations too.  [default: none]",
    ),
    click.option(
        "--iterations", type=click.IntRange(1), help="adalog, repq-vit: of each block's reconstruction.  [default: 300]"
    ),
    click.option(
        "--block-inputs",
        help="adalog, repq-vit: what a block is reconstructed on, float or quantized activations.  "
        "[default: quantized]",
    ),
    click.option(
        "--search-images",
        type=click.IntRange(0),
        help="adalog, repq-vit: calibration images of the search, the first ones; 0 takes all.  [default: 32]",
    ),
    click.option(
        "--search-seed",
        "seed_of_search",
        type=int,
        help="base-ptq, ptq4vit: of the classes drawn for the gradients.  [default: 0]",
    ),
    click.option(
        "--as-released/--corrected",
        default=None,
        help="base-ptq, ptq4vit: what the released code does (fake quantization only, no program).",
    ),
    click.option("--twin-softmax/--no-twin-softmax", default=None, help="ptq4vit: twin codes behind the softmax."),
    click.option("--twin-gelu/--no-twin-gelu", default=None, help="ptq4vit: twin codes behind GELU."),
    click.option("--irm/--no-irm", default=None, help="q-vit: rectify queries and keys.  [default: irm]"),
    click.option(
        "--batch",
        "calibration_batch",
        type=click.IntRange(1),
        help="Images a calibration batch.  [default: 100 for fq-vit, 32 for the others]",
    ),
    click.option(
        "--point",
        "points_at",
        multiple=True,
        metavar="PLACE=QUANTIZER",
        help="Another quantizer at the points of a role or at one node, such as gelu=uniform:6,range=omse, "
        "residual=pts:8, blocks.0.mlp.gelu=float; node.head is the node of that name.",
    ),
    click.option(
        "--weights-at",
        multiple=True,
        metavar="PLACE=BITS",
        help="Another width of the weights whose output has the role, or of one layer: patch=8, blocks.0.attn.qkv=6.",
    ),
    click.option(
        "--set",
        "lowering",
        multiple=True,
        metavar="FIELD=VALUE",
        help="A width of the integer program, such as hidden_bits=12.",
    ),
)


def check_device(name: str | None) -> None:
    """Refuse a torch device that this machine has not; None is the command's choice.

    Raises
    ------
    HwsimError
        Says why.
    """
    if name is not None:
        from hwsim.execute.devices import check_torch_device

        check_torch_device(name)


device_option = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="torch device of calibration and fake quantization: cpu, cuda or cuda:1 (the second GPU). Without that GPU it "
    "is an error; only commands that run finished programs, such as `hwsim evaluate`, go on on the CPU.",
)

program_option = click.option(
    "--program",
    "program_path",
    type=click.Path(path_type=Path),
    help="Program file, folder of a `hwsim train` run, or the name of a shipped program such as embedded-q-vit-4.  "
    "[default: the embedded network, calibrated when needed and kept under build/]",
)

evaluation_options = with_options(
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Class folders of images, IDX or CIFAR files, or an .npz.  [default: the embedded test set]",
    ),
    click.option("--images", type=click.IntRange(1), help="At most this many images."),
)


def lowering_values(settings: Sequence[str]) -> dict[str, Any]:
    """Fields of a `Lowering` from settings such as ``irm_bits=10``.

    Raises
    ------
    HwsimError
        A field that there is not, or a value that is no integer.
    """
    from dataclasses import fields

    from hwsim.quantize.recipe import Lowering

    kinds = {field.name: field.type for field in fields(Lowering)}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in kinds:
            raise HwsimError(f"--set {setting}: there is no field {name!r}; choose one of {', '.join(kinds)}")
        try:
            values[name] = value if kinds[name] == "str" else int(value)
        except ValueError:
            raise HwsimError(f"--set {setting}: {name} must be an integer, not {value!r}") from None
    return values


def check_guard_bits(recipe: Recipe, widths: Mapping[str, Any]) -> None:
    """Refuse guard bits for a recipe whose program has no unit with any: they would change nothing.

    Raises
    ------
    HwsimError
        Says where guard bits are.
    """
    from hwsim.quantize.quantizers.adalog import AdaLog
    from hwsim.quantize.quantizers.log_sqrt2 import LogSqrt2, ShiftLogSqrt2
    from hwsim.quantize.quantizers.shift_adalog import ShiftAdaLog

    guarded = AdaLog | LogSqrt2 | ShiftAdaLog | ShiftLogSqrt2
    if "guard_bits" in widths and not any(
        isinstance(quantizer, guarded) for quantizer in (*recipe.points.values(), *recipe.nodes.values())
    ):
        raise HwsimError(
            f"--set guard_bits={widths['guard_bits']}: no unit of {recipe.name} has guard bits; products on AdaLog and "
            "log-sqrt2 codes have them, leave the option out"
        )


def make_recipe(
    recipe: str,
    lowering: tuple[str, ...] = (),
    points_at: tuple[str, ...] = (),
    weights_at: tuple[str, ...] = (),
    seed_of_search: int | None = None,
    **options: Any,
) -> Recipe:
    """The recipe that the options describe; options that are None keep the recipe's own value.

    Raises
    ------
    HwsimError
        Unknown recipe, role or field, an option that the recipe does not have, or a value out of range.
    """
    import inspect

    from hwsim.quantize.parts import NODE_PREFIX, with_parts
    from hwsim.quantize.recipes import RECIPES

    if recipe not in RECIPES:
        raise HwsimError(f"unknown recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    values = lowering_values(lowering)
    options["seed"] = seed_of_search
    given = {name: value for name, value in options.items() if value is not None}
    known = inspect.signature(RECIPES[recipe]).parameters
    for name in given:
        if name not in known:
            raise HwsimError(f"recipe {recipe} has no {name.replace('_', ' ')}; leave that option out")
    parts: dict[str, Any] = {}
    for option, settings, prefix, example in (
        ("--point", points_at, "point", "gelu=uniform:6"),
        ("--weights-at", weights_at, "weights", "patch=8"),
    ):
        for setting in settings:
            place, _, value = setting.partition("=")
            if not value:
                raise HwsimError(f"{option} {setting}: write PLACE=VALUE, such as {example}")
            name = place.removeprefix(NODE)
            parts[f"{NODE_PREFIX[prefix] if '.' in place else prefix}.{name}"] = value
    made = with_parts(RECIPES[recipe](**given), {**parts, **values})
    check_guard_bits(made, values)
    return made


def recipe_arguments(point: Mapping[str, Any]) -> list[str] | None:
    """The `recipe_options` that make the recipe of an explored point, or None where there are none for a field.

    Parameters
    ----------
    point : mapping of str to value
        See `hwsim.explore.space`.
    """
    import inspect

    from hwsim.explore.space import DEFAULT_RECIPE, WIDTHS, effective, recipe_of
    from hwsim.quantize.recipe import Lowering
    from hwsim.quantize.recipes import RECIPES

    point = effective(point)
    system = point.get("recipe", DEFAULT_RECIPE)
    usual = str(inspect.signature(RECIPES[system]).parameters["bits"].default).split("/")
    bits = "/".join(str(point.get(name, width)) for name, width in zip(WIDTHS, usual, strict=True))
    arguments = ["--recipe", system, "--bits", bits]
    options = {option.name: option for option in recipe_options(click.Command("recipe")).params}
    options["seed"] = options.pop("seed_of_search")
    for name, value in point.items():
        prefix, dot, place = name.partition(".")
        if dot:
            if prefix.startswith("node") and "." not in place:
                place = NODE + place
            arguments += ["--point" if prefix in ("point", "node") else "--weights-at", f"{place}={value}"]
        elif hasattr(Lowering, name):
            arguments += ["--set", f"{name}={value}"]
        elif name not in ("recipe", *WIDTHS):
            if name not in options:
                return None
            flags, others = options[name].opts, options[name].secondary_opts
            arguments += [*(flags if value else others)] if others else [flags[0], str(value)]
    if "guard_bits" in point:
        try:
            check_guard_bits(recipe_of(point), point)
        except HwsimError:
            return None  # the command would refuse a width that changes nothing
    return arguments


def read_images(
    path: Path,
    image_size: tuple[int, int, int],
    crop_ratio: float,
    classes: int | None,
    limit: int | None,
    part: str = "test",
) -> ImageSet:
    """An image set with a progress bar."""
    from hwsim.cli.display import progress
    from hwsim.data import find_images, load_images

    source = find_images(path, part=part, limit=limit)
    with progress(f"reading {path}", source.count) as done:
        return load_images(source, image_size, crop_ratio=crop_ratio, classes=classes, progress=done)


def calibration_source(
    network: str,
    checkpoint: Path | None,
    architecture: str | None,
    data: Path | None,
    images: int | None,
    seed: int = 0,
    random_weights: int | None = None,
) -> tuple[FloatGraph, ImageSet]:
    """Float network and calibration images of the options.

    Images of a folder are shuffled: the last batch settles the power-of-two factors, and must not be one class.

    Raises
    ------
    HwsimError
        A network or data set that is not there or does not fit.
    """
    from hwsim.data import ImageSet
    from hwsim.networks import embedded
    from hwsim.networks.load import load_network

    graph = load_network(network, checkpoint=checkpoint, architecture=architecture, random_weights=random_weights)
    limit = images or 1000
    if data is None:
        if network not in embedded.NETWORKS:
            raise HwsimError(f"{network}: give calibration images with --data FOLDER")
        return graph, embedded_calibration_set().head(limit)
    import numpy as np

    found = read_images(data, graph.image_size, graph.crop_ratio, None, limit, part="train")
    return graph, ImageSet(np.random.default_rng(seed).permutation(found.images), None)


def embedded_calibration_set() -> ImageSet:
    """The calibration images that the package ships."""
    from hwsim.networks import embedded

    return embedded.load_calibration_set()


def evaluation_images(of: Program | FloatGraph, data: Path | None, images: int | None) -> ImageSet:
    """Labelled images for a program or a float network: a folder, or the embedded test set.

    Raises
    ------
    HwsimError
        A network other than the embedded ones without a folder, or a folder that does not fit.
    """
    from hwsim.networks import embedded
    from hwsim.program import Program

    if isinstance(of, Program):
        name, classes, crop_ratio = of.network, int(of.header["classes"]), float(of.header["crop_ratio"])
    else:
        name, classes, crop_ratio = of.name, of.classes, of.crop_ratio
    if data is None:
        if name not in embedded.NETWORKS:
            raise HwsimError(f"{name}: give images with --{'data' if isinstance(of, Program) else 'on'} FOLDER")
        return embedded.load_test_set().head(images)
    return read_images(data, of.image_size, crop_ratio, classes, images)


def open_program(path: Path | None) -> Program:
    """The program file, a shipped program, or the embedded network's, calibrated by the default recipe when needed.

    Parameters
    ----------
    path : Path or None
        Of the file, of the folder of a `hwsim train` run, or the name of a shipped program where there is no such
        file.

    Raises
    ------
    HwsimError
        The file is missing or not a valid program.
    """
    from hwsim.identity import code_digest
    from hwsim.program import load_program, save_program
    from hwsim.qat.files import PROGRAM
    from hwsim.shipped import load_shipped

    if path is not None:
        is_name = not path.exists() and not path.suffix and path.name == str(path)
        if path.is_dir():
            path = _file_of_run(path, PROGRAM)
        return load_shipped(path.name) if is_name else load_program(path)
    path = BUILD / "programs" / f"{EMBEDDED}-fq-vit-8-8-4-{code_digest()}.safetensors"
    if not path.exists():
        from hwsim.quantize.calibrate import calibrate
        from hwsim.quantize.lowering import lower
        from hwsim.quantize.recipe import fq_vit

        click.echo(f"calibrating the embedded network (8/8/4), kept as {path}", err=True)
        graph, images = calibration_source(EMBEDDED, None, None, None, None)
        save_program(lower(calibrate(graph, images.images, fq_vit())), path)
    return load_program(path)


def trained_file(path: Path) -> Path:
    """The file of a trained network, given itself or the folder of its run.

    Raises
    ------
    HwsimError
        A folder without one.
    """
    from hwsim.qat.files import TRAINED

    if path.is_dir():
        return _file_of_run(path, TRAINED)
    return path if path.is_file() else path / TRAINED


def _file_of_run(folder: Path, name: str) -> Path:
    """A file in the folder of a training run.

    Raises
    ------
    HwsimError
        It is not there: the run was stopped, or it is another folder.
    """
    from hwsim.qat.files import CHECKPOINT, TRAINED

    if (folder / name).is_file():
        return folder / name
    if any((folder / left).is_file() for left in (CHECKPOINT, TRAINED)):
        raise HwsimError(
            f"{folder}: the training is not finished, there is no {name} yet; give the same `hwsim train` command "
            "again, it goes on"
        )
    raise HwsimError(f"{folder}: is a folder without {name}; name a file, or the folder of a `hwsim train` run")


def tell_fewer(found: int, asked: int | None, kind: str) -> None:
    """Tell the user of fewer images than were asked for."""
    if asked is not None and found < asked:
        click.echo(f"hwsim: {found} {kind}, not the {asked} asked for: there are no more", err=True)


def check_output(path: Path) -> None:
    """Refuse a file that cannot be written, before the work that ends in it.

    Raises
    ------
    HwsimError
        It is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise HwsimError(f"{path}: is a folder; name a file with -o")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise HwsimError(f"{path}: {above} is no folder that can be written; name another file with -o")


def parse_images(text: str) -> list[int]:
    """Image indices such as ``0,3,10-12``.

    Raises
    ------
    HwsimError
        Not such a list.
    """
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            chosen.extend(range(int(first), int(last or first) + 1))
        except ValueError:
            raise HwsimError(f"images must be indices such as 0,3,10-12, not {text!r}") from None
    return chosen
