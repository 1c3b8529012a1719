"""Two people's clones over one DVC remote on an S3 server: nothing that one has made is made again by the other."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.project import contents, edit
from tests.servers import Bucket, require, s3_bucket
from tests.workers import project as many
from tests.workers.project import git, make_many, ran

MADE = ("data/prepared", "models/adapters", "reports")
KEYS = many.keys_of(3)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    require("dvc_s3")
    with s3_bucket() as bucket:
        yield bucket


@pytest.fixture
def dvc(bucket: Bucket) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    return lambda folder, *arguments: many.dvc(folder, *arguments, **bucket.environment)


def made(folder: Path) -> dict[str, dict[str, bytes]]:
    return {name: contents(folder / name) for name in MADE}


def test_two_people_share_what_they_make(
    tmp_path: Path, bucket: Bucket, dvc: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    ann, ben, shared = tmp_path / "ann/project", tmp_path / "ben/project", tmp_path / "shared.git"
    make_many(ann, KEYS)
    dvc(ann, "remote", "add", "--default", "team", f"s3://{bucket.name}/morphline")
    dvc(ann, "remote", "modify", "team", "endpointurl", bucket.environment["AWS_ENDPOINT_URL"])
    dvc(ann, "repro", "train")
    dvc(ann, "push", "--run-cache")
    assert len([name for name in bucket.files() if name.startswith("morphline/files/md5/")]) >= 2 * len(KEYS)
    git(ann, "add", "-A")
    git(ann, "commit", "-qm", "Train")
    git(tmp_path, "clone", "-q", "--bare", str(ann), str(shared))
    git(ann, "remote", "add", "origin", str(shared))
    git(tmp_path, "clone", "-q", str(shared), str(ben))

    # Ben has Ann's bytes, and nothing to run.
    dvc(ben, "pull")
    ran(ann)
    dvc(ben, "repro", "train")
    assert not ran(ben) and made(ben) == made(ann)

    # Each changes pictures of one key; both push at once, and Git joins their locks.
    for folder, key, words in ((ann, KEYS[0], "other pictures"), (ben, KEYS[2], "Ben's pictures")):
        edit(folder / f"data/raw/{key}.txt", lambda text, words=words: f"{words}\n")
        dvc(folder, "repro", "train")
        assert ran(folder) == [f"prepare@{key}", f"train@{key}"]
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", words)
    pushing = [
        subprocess.Popen(
            [many.sys.executable, "-m", "dvc", "push", "--run-cache"], cwd=folder,
            env=many.environment(folder, **bucket.environment), stdout=subprocess.DEVNULL,
        )
        for folder in (ann, ben)
    ]  # fmt: skip
    assert [process.wait(300) for process in pushing] == [0, 0]
    git(ann, "push", "-q", "origin", "main")
    git(ben, "pull", "-q", "--no-rebase", "origin", "main")
    git(ben, "push", "-q", "origin", "main")
    git(ann, "pull", "-q", "--no-rebase", "origin", "main")
    for folder in (ann, ben):
        dvc(folder, "pull")
        dvc(folder, "repro", "train")
        assert not ran(folder)
    assert made(ann) == made(ben)
    assert (ann / f"models/adapters/{KEYS[2]}/a").read_text() == "train of prepare of Ben's pictures\n"

    # What Ann has tried and not kept, Ben's clone takes from the runs that she pushed.
    edit(ann / "params.yaml", lambda text: text.replace("seed: 0", "seed: 7"))
    dvc(ann, "repro", "train")
    assert ran(ann) == [f"train@{key}" for key in KEYS]
    dvc(ann, "push", "--run-cache")
    edit(ben / "params.yaml", lambda text: text.replace("seed: 0", "seed: 7"))
    dvc(ben, "pull", "--run-cache")
    dvc(ben, "repro", "--pull", "train")
    assert not ran(ben)
    assert made(ben) == made(ann) and (ben / "dvc.lock").read_bytes() == (ann / "dvc.lock").read_bytes()
