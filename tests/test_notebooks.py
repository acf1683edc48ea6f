"""The notebooks run from top to bottom, warnings are errors, and each is committed with what its cells gave."""

import base64
import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
NAMES = ["activation", "pareto", "units", "widths"]
LARGEST = 400_000  # bytes: they are read on the web

_spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "tools" / "run_notebooks.py")
run_notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run_notebooks)


def path_of(name):
    return ROOT / "notebooks" / f"{name}.ipynb"


def read(name):
    return run_notebooks.read(path_of(name))


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures_of(cell):
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in a kernel of this interpreter that leaves nothing behind outside the test's folder."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

    def run(notebook):
        for cell in code_of(notebook):
            cell.outputs, cell.execution_count = [], None
        run_notebooks.execute(notebook, tmp_path)
        return notebook

    return run


def test_the_four_notebooks_are_there():
    assert sorted(path.stem for path in (ROOT / "notebooks").iterdir()) == NAMES == sorted(run_notebooks.NAMES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, execute):
    code = code_of(execute(read(name)))
    # The first cell that runs makes warnings errors.
    assert [cell.execution_count for cell in code] == list(range(2, len(code) + 2))
    for cell, committed in zip(code, code_of(read(name)), strict=True):
        assert len(figures_of(cell)) == cell.source.count("plt.show()"), cell.source
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs
        assert [output.output_type for output in cell.outputs] == [output.output_type for output in committed.outputs]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_with_its_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = code_of(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert notebook.metadata.sources == run_notebooks.sources_digest(notebook), "changed since: make notebooks"
    assert sum(len(figures_of(cell)) for cell in code) >= 2
    for cell in code:
        assert len(figures_of(cell)) == cell.source.count("plt.show()"), cell.source
        assert all(base64.b64decode(figure).startswith(b"\x89PNG") for figure in figures_of(cell))
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_names_no_machine_and_stays_small(name):
    notebook = read(name)
    assert run_notebooks.local_names(notebook) == []
    for cell in notebook.cells:
        assert not cell.metadata
    text = path_of(name).read_text()
    assert str(ROOT) not in text and str(Path.home()) + "/" not in text
    assert len(text) < LARGEST


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("wrote /home/someone/build/a.v", True),
        ("'/x/y/selftest.v'", True),
        ("~/build", True),
        ("C:\\Users\\someone", True),
        ("build/explore/picked", False),
        ("https://example.org/a/b", False),
        ("</td></tr><br/>", False),
        ("S / E, 1/2 and 16/16 bits", False),
    ],
)
def test_paths_of_a_machine_are_found(text, found):
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", name="stdout", text=text)])
    assert bool(run_notebooks.local_names(nbformat.v4.new_notebook(cells=[cell]))) is found


@pytest.mark.parametrize("source", ["assert 1 == 2", "import warnings\nwarnings.warn('careful')"])
def test_a_wrong_cell_fails(source, execute):
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]))
