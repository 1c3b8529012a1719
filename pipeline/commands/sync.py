"""`morphline track sync`: numbers and files that a tracking server did not take are sent again."""

from pipeline.params import load_params
from pipeline.tracking import kept_files, redacted, refused_files, sync, tracking_uri


def run() -> bool:
    """Send what stages kept in .work/tracking, and print what became of it. True: nothing is left that failed."""
    params = load_params().tracking
    print(f"Runs kept in .work/tracking: {len(kept_files())}, to be sent to {redacted(tracking_uri(params))}")
    failed = False
    for outcome in sync(params):
        print(f"  {outcome}")
        failed |= outcome.failed
    for file in refused_files():
        print(f"  refused for good, to be read and deleted: {file}")
    return not failed
