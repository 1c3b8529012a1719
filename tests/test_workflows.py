"""The workflows: by their published schema, and by what must never reach a fork's code or a shell."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.declarations import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
OWN = ("env.OWN == 'true'", "github.event.pull_request.head.repo.full_name == github.repository")


def jobs(path: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_keeps_to_githubs_schema(path: Path, tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(path.read_text(encoding="utf-8").replace("runs-on:", "run-on:"), encoding="utf-8")
    assert subprocess.run([*check, str(broken)], capture_output=True, check=False).returncode == 1


def test_there_are_two_workflows_and_what_they_run_is_there() -> None:
    assert [path.name for path in WORKFLOWS] == ["nightly.yml", "pipeline.yml"]
    for path in WORKFLOWS:
        for script in re.findall(r"\.ci/[\w.]+", path.read_text(encoding="utf-8")):
            assert (ROOT / script).is_file()
            assert script.endswith(".py") or os.access(ROOT / script, os.X_OK), f"{script} cannot be run"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_secret_and_no_writing_token_reaches_a_forks_code(path: Path) -> None:
    top = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    assert set(top["on"]) <= {"push", "pull_request", "schedule", "workflow_dispatch"}  # others run with secrets
    assert top["permissions"] == {"contents": "read"}
    for name, job in top["jobs"].items():
        guarded = OWN[1] in job.get("if", "")
        assert guarded or "permissions" not in job, name
        rest = {key: value for key, value in job.items() if key != "steps"}
        assert "secrets" not in json.dumps(rest) and "github.token" not in json.dumps(rest)
        for step in job["steps"]:
            if "secrets." in json.dumps(step) or "github.token" in json.dumps(step):
                assert guarded or OWN[0] in step.get("if", ""), step["name"]
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False, name


def test_a_job_that_may_write_runs_only_the_target_branchs_code() -> None:
    """Else a pull request's own script would hold a token that may write."""
    writing = {name: job for path in WORKFLOWS for name, job in jobs(path).items() if "permissions" in job}
    assert list(writing) == ["comment"]
    (job,) = writing.values()
    assert job["permissions"] == {"contents": "write", "pull-requests": "write"}
    checkout, download, run = job["steps"]
    assert checkout["with"]["ref"] == "${{ github.event.pull_request.base.sha }}"
    # What the other job has made is unpacked where it can replace no file of the checkout.
    assert download["with"]["path"] == "artifact"
    assert run["run"] == 'python3 .ci/comment.py artifact/report "${NUMBER}"'


def test_a_title_or_branch_name_never_becomes_shell() -> None:
    """Whatever is written out into a script is run: values come as environment variables alone."""
    for path in WORKFLOWS:
        for name, job in jobs(path).items():
            assert not [step for step in job["steps"] if "${{" in step.get("run", "")], name


def test_actions_are_named_by_commit() -> None:
    """A tag can be moved to other code, a commit cannot; the version stands beside it for people."""
    used = [use for path in WORKFLOWS for use in re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))]
    assert len(used) >= 7
    assert not [use for use in used if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", use)]
