import unicodedata

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import MOST, Problem, UserError, printable, redacted
from tests.project import edit


def test_a_problem_is_one_line_that_a_terminal_only_shows() -> None:
    foreign = "a\x1b[31m\nmorphline check: 0 problems\r\x9b2J\u202egpj.exe\u2028\x07 \ud800ü語"
    text = str(Problem(foreign, foreign, foreign))
    assert not [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert text.startswith(r"a\x1b[31m\x0amorphline check: 0 problems\x0d\x9b2J\u202egpj.exe\u2028\x07 \ud800ü語: ")


def test_long_text_is_cut_in_the_middle() -> None:
    assert printable("x" * 600) == "x" * 600
    cut = printable("a" * 5000 + "z" * 5000)
    assert cut == "a" * 300 + " ... [9400 characters] ... " + "z" * 300


def test_more_problems_than_anybody_reads_are_counted() -> None:
    problems = [Problem(f"file {number}", "bad", "Mend it.") for number in range(MOST + 7)]
    lines = str(UserError(*problems)).splitlines()
    assert len(lines) == MOST + 1 and lines[-1] == "and 7 more"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://ann:***@host:5000/x"),
        ("http://secret@host/x", "http://***@host/x"),
        ("https://host/x?token=secret&a=b", "https://host/x?***"),
        ("postgresql://ann:secret@host/db?sslpassword=secret", "postgresql://ann:***@host/db?***"),
        ("see https://secret@host/a?key=secret for it", "see https://***@host/a?*** for it"),
        ("http://host:5000", "http://host:5000"),
        ("what? me@home", "what? me@home"),
        ("sqlite:///folder/mlflow.db", "sqlite:///folder/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_secrets(address: str, shown: str) -> None:
    assert redacted(address) == shown


def test_keys_of_params_reach_the_terminal_as_text(project) -> None:
    edit(project / "params.yaml", lambda text: text + '\n"evil\\x1b[2J\\nmorphline check: 0 problem(s)": 1\n')
    answer = CliRunner().invoke(app, ["check"])
    assert answer.exit_code == 1 and "\x1b" not in answer.stderr
    assert len(answer.stderr.splitlines()) == 2
