"""Entries of params.yaml, by several commands at once; how they are laid out is tested in test_add.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.commands.entries import add_entries
from pipeline.errors import UserError
from pipeline.params import load_params
from tests.declarations import ROOT
from tests.project import paint


def test_what_several_commands_add_at_once_is_all_there(project: Path) -> None:
    """And of two that ask for one key, one gets it."""
    pictures = [project.parent / "a.png", project.parent / "b.png"]
    for number, picture in enumerate(pictures):
        paint(picture, number)
    command = [sys.executable, "-m", "pipeline", "add"]
    keys = ["one", "two", "three", "same", "same"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([*command, key, *map(str, pictures)], env=environment, stderr=subprocess.PIPE, text=True)
        for key in keys
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    ended = [(key, text, process.returncode) for key, text, process in zip(keys, said, running, strict=True)]
    assert sorted(code for _, _, code in ended) == [0, 0, 0, 0, 1], ended
    (loser,) = (text for _, text, code in ended if code)
    assert "KEY: 'same' exists already" in loser
    params = load_params()
    assert set(params.sets) == set(params.morphs) == {"hills", "dots", "one", "two", "three", "same"}


def test_what_params_yaml_refuses_is_said_of_it_and_of_no_file_that_is_gone(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(UserError) as refused:
        add_entries({"edits": {"set": "hills", "adapters": {"no-such": 1.0}, "edit": {}}}, "new")
    assert str(refused.value).startswith("params.yaml: edits.new.adapters: no-such: there is no set 'no-such'")
    assert (project / "params.yaml").read_bytes() == before
