"""What adapters and encoded pictures depend on besides their inputs: our code and the libraries."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pipeline

ENCODING = ("base/*.py", "training/code_digest.py", "training/examples.py")
TRAINING = (*ENCODING, "adapters/*.py", "processes/joining.py", "processes/launcher.py", "processes/memory.py",
            "sampling/consistency.py", "sampling/recorded.py", "sampling/solver.py", "training/*.py")  # fmt: skip
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


@cache
def code_digest(patterns: tuple[str, ...]) -> str:
    """A digest of the project's files that match, and of the libraries' versions."""
    root = Path(pipeline.__file__).parent
    files = sorted({path for pattern in patterns for path in root.glob(pattern)})
    code = [path.read_text(encoding="utf-8") for path in files]
    parts = [*(f"{name} {version(name)}" for name in LIBRARIES), *code]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
