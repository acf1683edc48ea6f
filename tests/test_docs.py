"""The README and docs/: links lead somewhere, commands and formulas are those of the code, the Python example runs."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hwsim.cli import cli
from rtl import catalog

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(text, language):
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text):
    """Every hwsim command in the shell and console blocks, as its arguments."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    lines += [line[2:] for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["hwsim"]]


def anchors(text):
    """Anchors that GitHub gives the headings outside of code blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page, text):
    """Relative links of a page to a file or heading that is not there."""
    broken = []
    for link in LINK.findall(text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


def test_a_broken_link_is_seen():
    text = "# A title\n[a](LICENSE) [b](LICENCE) [c](#a-title) [d](#no-title) [e](https://example.org)"
    assert broken_links(ROOT / "README.md", text) == ["LICENCE", "#no-title"]


def parse(arguments):
    """Let click parse a command line, without running it."""
    name, *rest = arguments
    cli.commands[name].make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    for arguments in commands(page.read_text()):
        parse(arguments)


def test_every_command_is_in_the_readme():
    named = {arguments[0] for arguments in commands((ROOT / "README.md").read_text())}
    assert named | {"demo"} == set(cli.commands)


@pytest.mark.parametrize("line", ["hwsim evaluate --nonsense", "hwsim evaluate --images none"])
def test_a_wrong_command_is_seen(line):
    (arguments,) = commands(f"```sh\n{line}  # comment\n```")
    with pytest.raises(click.UsageError):
        parse(arguments)


@pytest.mark.parametrize("kind", catalog.UNITS)
def test_hardware_page_has_the_formula_of_every_unit(kind):
    formula = inspect.getdoc(catalog.UNITS[kind].unit.cycles_per_row).splitlines()[0].rstrip(".").replace("``", "`")
    rows = [line for line in (ROOT / "docs" / "hardware.md").read_text().splitlines() if line.startswith(f"| `{kind}`")]
    assert [row.split(" | ")[1] for row in rows] == [formula]


def test_python_example_runs(tmp_path):
    (example,) = blocks((ROOT / "README.md").read_text(), "python")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == example.count("print(")
    assert {path.name for path in (tmp_path / "build").iterdir()} == {"nine.safetensors", "log_softmax.v"}
