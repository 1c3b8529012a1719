"""MLflow: one parent run for one pipeline state, one child for one stage instance. Nothing else in the tree imports it.

    with track("train@alps", params.tracking, params.sets["alps"].train.model_dump()) as tracker:
        tracker.metric("loss", loss, step)

Every run is written to the project's own database first. Where a server is named, a mirror brings it what it lacks:
every few seconds while a stage runs, at its end, and by `sync`. Tracking never costs a result: only the start of a
stage can fail (a UserError, unless `tracking.required` is false); after it no call raises.
"""

from pipeline.tracking.connection import lacks_scheme
from pipeline.tracking.dashboard import dashboard_command, run_page, runs_page
from pipeline.tracking.descriptions import STUDIO_ADDRESS
from pipeline.tracking.homecoming import bring_home, worker_database
from pipeline.tracking.stages import check_ran, close_parent, note_ran, track
from pipeline.tracking.store import server_uri
from pipeline.tracking.sync import sync
from pipeline.tracking.tracker import Tracker

__all__ = [
    "STUDIO_ADDRESS", "Tracker", "bring_home", "check_ran", "close_parent", "dashboard_command", "lacks_scheme",
    "note_ran", "run_page", "runs_page", "server_uri", "sync", "track", "worker_database",
]  # fmt: skip
