"""The notebooks run from top to bottom, warnings are errors, and none is committed with outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Runs before the first cell. tqdm, which timm imports, warns in a kernel without ipywidgets that its bars will be text.
STRICT = """import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="IProgress not found")"""


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Run a notebook in a kernel of this interpreter that leaves nothing behind outside the test's folder."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))

    def run(notebook):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
        folder = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, kernel_name="python3", timeout=200, resources=folder).execute()
        return notebook

    return run


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, execute):
    notebook = execute(read(path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(figures) == cell.source.count("plt.show()"), cell.source
        assert not any(output.get("name") == "stderr" for output in cell.outputs), cell.outputs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_valid_and_committed_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.source


@pytest.mark.parametrize("source", ["assert 1 == 2", "import warnings\nwarnings.warn('careful')"])
def test_a_wrong_cell_fails(source, execute):
    with pytest.raises(CellExecutionError):
        execute(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]))
