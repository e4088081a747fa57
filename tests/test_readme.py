"""The README and the examples are executed."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from eve_pyro import cli

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "code", [code for language, code in BLOCKS if language == "python"], ids=lambda c: c.split("\n")[0]
)
def test_python_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def commands():
    lines = "\n".join(code for language, code in BLOCKS if language == "bash").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def test_the_two_commands_come_first_and_are_in_the_makefile():
    assert commands()[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo:", "test:"} <= set(makefile.split())


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("eve-pyro")])
def test_commands_of_the_readme_parse(line):
    name, *arguments = shlex.split(line)[1:]
    command = get_command(cli.app).commands[name]
    command.make_context(name, arguments)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_examples_run(script, capsys):
    runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
