import re
from pathlib import Path

import pytest

from ich_keras import errors
from ich_keras.errors import REASONS, InputError, SliceError, report

PACKAGE = Path(errors.__file__).parent


def test_every_reason_in_the_code_is_in_the_table_and_the_other_way_round():
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "errors.py")
    code += "\n".join(path.read_text() for path in PACKAGE.parent.glob("*.py"))
    used = set(re.findall(r"(?:Input|Slice)Error\(\s*\"([a-z-]+)\"", code))
    assert used <= set(REASONS)
    mentioned = {reason for reason in REASONS if f'"{reason}"' in code}
    assert mentioned == set(REASONS)


def test_an_unknown_reason_is_a_mistake_of_ours():
    with pytest.raises(LookupError):
        InputError("no-such-reason", "x")


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (InputError("no-data", "nothing there"), 2, "error: nothing there [no-data]"),
        (SliceError("truncated", "cut"), 2, "error: cut [truncated]"),
        (KeyboardInterrupt(), 75, "stopped"),
    ],
)
def test_a_command_reports_and_returns_a_code(raised, code, words, capsys):
    def main():
        raise raised

    assert report(main) == code
    assert words in capsys.readouterr().err


def test_a_command_that_ends_well():
    assert report(lambda: None) == 0
    assert report(lambda: 1) == 1


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        report(lambda: 1 // 0)
