"""How a command ends: with a message for people and an exit code, and with no traceback for a mistake."""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

import typer

from pipeline.errors import Problem, UserError, of_system

REPORT_DELAY = 60.0
"""Seconds that other processes of a stage wait for the first one to report a mistake that all of them make."""


def ending_well(name: str, function: Callable[..., None]) -> Callable[..., None]:
    """A command whose mistakes, the user's and the system's, become a message and exit code 1; Ctrl-C: 130."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        _print_anything()
        try:
            with _kept_interrupts():
                function(*args, **kwargs)
        except UserError as error:
            _refuse(name, error)
        except BrokenPipeError:
            raise  # whoever read the output has seen enough
        except OSError as error:
            _refuse(name, UserError(of_system(error)))
        except UnicodeEncodeError as error:
            found = f"it has no {error.object[error.start : error.end]!r}"
            _refuse(name, UserError(Problem("the locale's encoding", found, "Set PYTHONUTF8=1 in the environment.")))
        except MemoryError:
            fix = (
                "Use smaller pictures, batches or workers (`machine` in params.yaml): what was finished is still there."
            )
            _refuse(name, UserError(Problem("memory", "it ran out", fix)))
        except FloatingPointError as error:
            print(f"morphline {name}: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stopped:
            reason = str(stopped) or "stopped"
            if os.environ.get("RANK", "0") == "0":  # one of several processes speaks for all
                print(f"morphline {name}: {reason}; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(getattr(stopped, "exit_code", 130)) from None

    return run


@contextmanager
def _kept_interrupts() -> Iterator[None]:
    """Ctrl-C stays one where a library, while it is imported, makes another error of it."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(signum, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if pressed and not isinstance(error, (UserError, typer.Exit)):  # which have been meant
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _refuse(name: str, error: UserError) -> NoReturn:
    if os.environ.get("RANK", "0") != "0":
        # The first of several processes reports for all, and its end ends them; unless it has no such problem.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(REPORT_DELAY)
    print(f"morphline {name}: {len(error.problems)} problem(s)", file=sys.stderr)
    for line in str(error).splitlines():
        print(f"  {line}", file=sys.stderr)
    raise typer.Exit(1) from None


def _print_anything() -> None:
    """Names and captions in any script, whatever the terminal's encoding: what it lacks is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
