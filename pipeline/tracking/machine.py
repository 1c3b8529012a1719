"""How busy the machine is while a stage works, as MLflow's own metrics `system/...`, which have a page of their own."""

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from pipeline.tracking.server import now

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

log = logging.getLogger(__name__)

Row = tuple[str, float | None, int, int]


class MachineMetrics:
    """Looks at CPU, memory and NVIDIA GPUs every so many seconds, in a thread; `take` hands over what it saw.

    Not MLflow's own thread, which talks to the server itself, and so loses what it says while that is away.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._rows: deque[Row] = deque()
        self._over = threading.Event()
        self._monitors = _monitors()  # imported here, so that no thread imports while a stage starts processes
        self._thread = threading.Thread(target=self._watch, name="machine metrics", daemon=True)
        self._thread.start()

    def take(self) -> list[Row]:
        """The rows (see `Metrics`) since the last call, one step a look."""
        return [self._rows.popleft() for _ in range(len(self._rows))]

    def stop(self) -> None:
        """No more looks; waits for one that is under way."""
        self._over.set()
        self._thread.join(5)

    def _watch(self) -> None:
        try:
            self._look()  # the CPU's figure is about the time since the last look
            started, step = time.monotonic(), 0
            while not self._over.wait(max(0.0, started + (step + 1) * self._every - time.monotonic())):
                stamp = now()
                self._rows.extend((f"system/{name}", value, stamp, step) for name, value in self._look().items())
                step += 1
        except Exception as error:
            log.warning("The machine is not watched any more: %s: %s", type(error).__name__, error)

    def _look(self) -> dict[str, float]:
        seen: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            seen |= {name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return seen


def _monitors() -> "list[BaseMetricsMonitor]":
    """Of the CPU and memory, and of GPUs where there are any and nvidia-ml-py is installed."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    try:
        return [CPUMonitor(), GPUMonitor()]
    except (ImportError, RuntimeError):
        return [CPUMonitor()]
    except Exception as error:  # a driver in disorder
        log.warning("GPUs are not watched: %s: %s", type(error).__name__, error)
        return [CPUMonitor()]
