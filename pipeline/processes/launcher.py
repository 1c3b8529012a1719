"""`accelerate launch`, but with its processes' own exit code, and no traceback of the launcher's below their messages.

python -m pipeline.processes.launcher --multi_gpu --num_processes=2 --module pipeline train alps
"""

import sys

from accelerate.commands.launch import main
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def launch() -> int:
    """Run `accelerate launch` with this process's arguments; the exit code of the first process that failed, or 0."""
    try:
        main()
    except ChildFailedError as error:
        return abs(error.get_first_failure()[1].exitcode) or 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(launch())
