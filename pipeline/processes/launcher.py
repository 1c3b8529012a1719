"""`accelerate launch`, but with its processes' own exit code, and no words of the launcher's below their messages.

python -m pipeline.processes.launcher --multi_gpu --num_processes=2 --module pipeline train alps
"""

import logging
import signal
import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch() -> int:
    """Run `accelerate launch` with this process's arguments; the exit code of the first process that failed, or 0."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code < 0:  # the one case in which it could not say anything itself
            name = signal.Signals(-code).name
            print(f"morphline: one of the processes was ended by {name}; perhaps memory ran out", file=sys.stderr)
        return 128 - code if code < 0 else code or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(launch())
