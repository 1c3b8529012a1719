"""`morphline studio`: the names by which browsers may find it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.commands import studio
from pipeline.studio.security import Guard


def test_a_proxy_is_let_in_by_the_name_that_was_given(small_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Guard] = {}
    monkeypatch.setattr(studio, "require_free", lambda port, host: None)
    monkeypatch.setattr(studio.uvicorn, "Config", lambda guard, **options: given.setdefault("guard", guard))
    monkeypatch.setattr(studio, "_Server", lambda *rest: SimpleNamespace(run=lambda: None))
    answer = CliRunner().invoke(app, ["studio", "--no-browser", "--name", "Studio.Example", "--name", "other.example"])
    assert answer.exit_code == 0, answer.output
    browser = TestClient(given["guard"], base_url="https://studio.example")
    assert browser.get("/static/icon.svg", params={"token": given["guard"].token}).status_code == 200
    for origin, status in {
        "https://studio.example": 404,
        "https://other.example": 403,
        "https://a.example": 403,
    }.items():
        assert browser.post("/api/jobs/x/cancel", headers={"origin": origin}).status_code == status
    for host, status in {"other.example": 200, "a.example": 421}.items():
        assert browser.get("/static/icon.svg", headers={"host": host}).status_code == status
