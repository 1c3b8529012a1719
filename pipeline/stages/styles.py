"""Stage `styles`: which adapters and pictures of other sets each edit uses, by their content.

DVC cannot take the sets that an edit names for dependencies of its stage. So each edit depends on a file of its own
from here: a new adapter makes stale the edits that name it, and no others.
"""

import json
from pathlib import Path

from pipeline.adapters.store import find_adapter, is_file_name
from pipeline.base.digests import file_sha256
from pipeline.outputs import atomic_folder, require_output
from pipeline.params import load_params
from pipeline.tracking import note_ran


def run() -> None:
    """Write data/styles/<edit>.json, one for each edit."""
    params = load_params()
    with atomic_folder(Path("data/styles")) as folder:
        for key, spec in params.edits.items():
            files = {name: find_adapter(name) for name in spec.adapters}
            sets = sorted({name.partition("/")[0] for name in spec.adapters if not is_file_name(name)})
            rows = {name: require_output(Path("data/prepared", name), f"prepare@{name}") for name in sets}
            used = {
                "adapters": {name: file_sha256(path) for name, path in files.items()},
                "pictures": {
                    name: {path.name: file_sha256(path) for path in sorted(place.glob("*.png"))}
                    for name, place in rows.items()
                },
            }
            (folder / f"{key}.json").write_text(json.dumps(used, indent=2) + "\n", encoding="utf-8")
    note_ran("styles")
