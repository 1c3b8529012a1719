"""What comes before a stage that several processes may share: launching them, and nothing that this would wait for."""

from collections.abc import Sequence

from pipeline.base.device import choose_device
from pipeline.params import load_params
from pipeline.processes.launcher import launch_if_several


def launch(command: Sequence[str]) -> None:
    """Where `morphline <command>` is for several processes, let them run it in place of this one.

    The stage does so itself, but its libraries are imported by then: seconds of a core, for a process that goes away.
    """
    machine = load_params().machine
    launch_if_several(command, machine.processes, choose_device(machine.device))
