"""What is asked of the Hub: a base's files, and the names of those there are.

Its client runs in a process of its own (`download.py`), which ends by itself when nothing comes any more: it has
threads and a library in Rust, waits for a server that sends a byte now and then, and cannot be stopped in this process.
"""

import functools
import http.client
import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, UserError, redacted
from pipeline.sections import BaseSection

HUB_SECONDS = 15.0
"""Until the Hub must have answered the first question."""
PATIENCE_SECONDS = 60.0
"""How long it may send less than SLOWEST, once it has answered."""
SLOWEST = 1000.0
"""Bytes a second: a modem's download goes on, one that drips ends."""


def fetch(section: BaseSection, patterns: list[str]) -> Path:
    """The folder of a Hub base with the files that match, downloaded unless they are in the cache.

    Raises:
        UserError: when the Hub refuses, cannot be reached, or sends next to nothing.
    """
    return Path(_query_hub(section, patterns=patterns))


def list_files(section: BaseSection) -> list[str]:
    """The names of a Hub base's files. Raises UserError as `fetch` does."""
    return list(_query_hub(section, patterns=None))


def _query_hub(section: BaseSection, patterns: list[str] | None) -> Any:
    question = {
        "source": section.source,
        "revision": section.revision,
        "patterns": patterns,
        "patience": PATIENCE_SECONDS,
        "slowest": SLOWEST,
    }
    try:
        _require_answer()
        answer = _in_own_process(question)
    except OSError as error:
        answer = {"failed": str(error)}
    if "failed" not in answer:
        return answer["found"]
    commit = (section.revision or "")[:12]
    found = f"the Hub has no {section.source} at {commit}, or cannot be reached ({redacted(answer['failed'])})"
    fix = "Correct the id and the revision, log in with `hf auth login`, or use a local folder."
    raise UserError(Problem(f"params.yaml: {section.KEY}.source", found, fix))


def _in_own_process(question: dict[str, Any]) -> dict[str, Any]:
    """The answer of `download.py`: {"found": ...} or {"failed": why}. Its progress bars go to our standard error."""
    from pipeline.base import download

    folder = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))}
    done = subprocess.run(
        [sys.executable, "-m", download.__name__],
        input=json.dumps(question),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    if not done.stdout:
        return {"failed": f"the download was ended from outside, code {done.returncode}"}
    return dict(json.loads(done.stdout))


@functools.cache
def _require_answer() -> None:
    """Raises OSError unless the Hub answers anything soon: its client asks a silent one again for minutes.

    In a thread of its own, since a server may also send a byte now and then, which no timeout of a socket ends.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    failures: list[OSError | None] = []
    address = re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)

    def ask() -> None:
        try:
            question = urllib.request.Request(address, method="HEAD")
            # Longer than it is waited for below: which of the two ends first must not choose the sentence.
            urllib.request.urlopen(question, timeout=2 * HUB_SECONDS)
        except urllib.error.HTTPError:
            failures.append(None)  # an answer all the same
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(OSError(f"{redacted(constants.ENDPOINT)}: {error}"))
        else:
            failures.append(None)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    failure = failures[0] if failures else OSError(f"{redacted(constants.ENDPOINT)}: no answer in {HUB_SECONDS:g} s")
    if failure:
        raise failure
