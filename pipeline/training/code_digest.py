"""What adapters and encoded pictures depend on besides their inputs: our code and the libraries."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pipeline

ROOMS = ("adapters", "base", "training")
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


@cache
def code_digest() -> str:
    """A digest of the code of the rooms that encode and train, and of the libraries' versions."""
    root = Path(pipeline.__file__).parent
    code = [path.read_text(encoding="utf-8") for room in ROOMS for path in sorted((root / room).glob("*.py"))]
    parts = [*(f"{name} {version(name)}" for name in LIBRARIES), *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
