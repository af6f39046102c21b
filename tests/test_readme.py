"""What the documents tell a reader to type, and to look at, is there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from .conftest import REPOSITORY

DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/*.md", "data/README.md") for path in REPOSITORY.glob(pattern)
)


def commands():
    for document in DOCUMENTS:
        for block in re.findall(r"^ *```\n(.*?)^ *```", document.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("#")[0].strip()
                if re.match(r"(python (-m |\w+\.py)|make )[^\[]*$", line):
                    yield pytest.param(document, line, id=f"{document.name}: {line}")


def parser_of(script: Path):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


@pytest.mark.parametrize(("document", "line"), list(commands()))
def test_a_command_is_one_that_there_is(document, line):
    words = shlex.split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        options = parser_of(REPOSITORY / words[1]).parse_args(words[2:])
        assert options is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(document):
    text = document.read_text()
    assert not re.findall(r"@[A-Z0-9]+@|TODO|FIXME", text)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", prose):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_there_are_commands_to_check():
    assert len(list(commands())) > 10
