"""MLflow: one parent run for one pipeline state, one child for one stage instance. Nothing else in the tree imports it.

    with track("train@alps", params.tracking, params.sets["alps"].train.model_dump()) as tracker:
        tracker.metric("loss", loss, step)

Tracking never costs a result. Only the start of a stage can fail (a UserError, unless `tracking.required` is false);
after it no call raises, and what cannot be sent is kept in `.work/tracking/<run>.jsonl` and sent as soon as it can be,
at the latest by `sync`.
"""

from pipeline.tracking.runs import close_parent, track
from pipeline.tracking.server import dashboard_command, redacted, runs_page, tracking_uri
from pipeline.tracking.sync import kept_files, refused_files, sync
from pipeline.tracking.tracker import Tracker

__all__ = [
    "Tracker",
    "close_parent",
    "dashboard_command",
    "kept_files",
    "refused_files",
    "runs_page",
    "redacted",
    "sync",
    "track",
    "tracking_uri",
]
