"""`morphline track sync`: bring a tracking server what it lacks of the project's runs."""

from pipeline.errors import redacted
from pipeline.params import load_params
from pipeline.tracking import server_uri, sync


def run() -> bool:
    """Mirror every run, and print what became of each. True: nothing is left that failed."""
    params = load_params().tracking
    failed = False
    for outcome in sync(params):
        print(f"  {outcome}")
        failed |= bool(outcome.failed)
    if not failed:
        print(f"{redacted(server_uri(params) or '')} has all runs of this project")
    return not failed
