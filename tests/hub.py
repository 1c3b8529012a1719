"""The Hub's cache, for tests, on a machine without a network."""

import shutil
import socket
from pathlib import Path

import pytest

from pipeline.sections import BaseSection

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_cache(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> BaseSection:
    """A folder as the Hub's client keeps it, of the id `owner/name`; whoever asks the network now fails the test."""
    from huggingface_hub import constants

    shutil.copytree(folder, cache / "models--owner--name/snapshots" / COMMIT)

    def unreachable(*arguments: object, **keywords: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    return BaseSection(source="owner/name", revision=COMMIT, config=None, dtype="float32", clip_skip=0, adapters=())
