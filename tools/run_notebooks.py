"""Run the notebooks from top to bottom and write them back with what came out, figures included.

    python tools/run_notebooks.py                  # all; `make notebooks`
    python tools/run_notebooks.py widths pareto    # some

What is written holds no time, no path and no name of a machine. Unchanged code gives the same texts; the pixels of a
figure depend on the version of Matplotlib.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from PIL import Image

from golden.files import write_atomically

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NAMES = ("units", "widths", "activation", "pareto")
CELL_SECONDS = 540
# Runs before the first cell. tqdm, which timm imports, warns in a kernel without ipywidgets that its bars will be text;
# ipykernel warns of itself when it stops.
STRICT = """import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", module="ipykernel")"""
# A path from the root of a file system or a home; a URL and a closing tag are none.
LOCAL_PATH = re.compile(r"(?<![\w.:/<\-])(?:/(?:\w[\w.+\-]*/)+|~/|[A-Z]:\\\w)")


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, of the version of the format in which it is edited."""
    return nbformat.read(path, as_version=4)


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run the cells in a kernel of this interpreter that sees this checkout and works in an empty folder.

    Warnings are errors. The kernel leaves nothing behind outside the folder.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell failed; the message is its traceback.
    """
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    kernel = {**os.environ, "PYTHONPATH": search}
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        kernel[variable] = str(folder / variable.lower())
    work = folder / "work"
    work.mkdir()
    before = nbformat.v4.new_code_cell(STRICT)
    notebook.cells.insert(0, before)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=CELL_SECONDS,
        resources={"metadata": {"path": str(work)}},
        record_timing=False,
        coalesce_streams=True,
    )
    try:
        client.execute(env=kernel)
    finally:
        notebook.cells.remove(before)


def sources_digest(notebook: nbformat.NotebookNode) -> str:
    """What the outputs belong to: a checksum of all code cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]


def local_names(notebook: nbformat.NotebookNode) -> list[str]:
    """Paths in the texts of the outputs: empty, as the tests demand."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if "text" in kind)]
            found += [match for text in texts for match in LOCAL_PATH.findall(text)]
    return found


def smaller(image: str) -> str:
    """A figure (PNG in base64) with a palette of 256 colours: a third of the size."""
    with Image.open(io.BytesIO(base64.b64decode(image))) as figure:
        white = Image.new("RGBA", figure.size, "white")
        white.alpha_composite(figure.convert("RGBA"))
    written = io.BytesIO()
    white.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def finish(notebook: nbformat.NotebookNode) -> None:
    """Leave what belongs to the notebook: cells counted from 1, no state of the kernel, the checksum of the sources."""
    count = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "sources": sources_digest(notebook),
        }
    )


@click.command(help=__doc__.splitlines()[0] if __doc__ else None)
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
def main(names: tuple[str, ...]) -> None:
    """Run notebooks and write them back."""
    for name in names or NAMES:
        path = FOLDER / f"{name}.ipynb"
        notebook = read(path)
        before = os.times()
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        finish(notebook)
        if paths := local_names(notebook):
            sys.exit(f"{path.name}: its outputs name {', '.join(sorted(set(paths)))}; it was not written")
        write_atomically(path, nbformat.writes(notebook) + "\n")
        spent = [now - then for then, now in zip(before, os.times(), strict=True)]
        click.echo(f"{path.name}: {path.stat().st_size // 1000} kB, {sum(spent[:4]):.0f} s of processor time")


if __name__ == "__main__":
    main()
