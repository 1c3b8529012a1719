"""Posts a report as ONE comment of a pull request, written anew each time, with its pictures in a branch.

    python3 .ci/comment.py report 12

takes report/report.md and report/pictures/ for pull request 12; where there is no report, the comment says that the
run failed. A comment cannot show a run's artifacts, so the pictures go to the branch `ci-pictures`: one commit without
parents that holds the latest pictures of each pull request, so that it never grows. Needs Python and Git only, the
token in GH_TOKEN (the checkout keeps no credentials), and GITHUB_REPOSITORY, GITHUB_API_URL, GITHUB_SERVER_URL and
GITHUB_RUN_ID, which GitHub sets.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

MARK = "<!-- morphline ci-report -->"
AUTHOR = "github-actions[bot]"
BRANCH = "refs/heads/ci-pictures"
LONGEST = 65_000  # GitHub takes 65,536 characters
ATTEMPTS = 5


def main(folder: Path, number: int) -> None:
    """Publish the pictures, then write the comment."""
    run = os.environ["GITHUB_RUN_ID"]
    log = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/actions/runs/{run}"
    report = folder / "report.md"
    if report.is_file() and not report.is_symlink():  # what a change made may link to files of this machine
        text = report.read_text(encoding="utf-8")
        pictures = sorted(path for path in (folder / "pictures").glob("*.webp") if not path.is_symlink())
        publish(pictures, number, run)
    else:
        text = f"{MARK}\n\n## The pipeline did not succeed\n\nSo there is nothing to compare."
    post(f"{text[:LONGEST]}\n\n[This run, with its log and files]({log})\n", number)


def publish(pictures: list[Path], number: int, run: str) -> None:
    """Put the pictures to <number>/<run>/ in the branch, in place of the pull request's earlier ones.

    The folder is another one each run, so that no browser shows an old picture. Another run that pushes at the same
    moment makes the push fail; then the branch is read again.
    """
    for attempt in range(ATTEMPTS):
        old = _git("ls-remote", "origin", BRANCH).partition("\t")[0]
        lease, what = f"--force-with-lease={BRANCH}:{old}", f"{_commit(old, pictures, number, run)}:{BRANCH}"
        push = ["git", "push", "--quiet", lease, "origin", what]
        if subprocess.run(push, env={**os.environ, **credentials()}, check=False).returncode == 0:
            return
        print(f"attempt {attempt + 1} to push the pictures failed", file=sys.stderr)
    raise SystemExit("the pictures could not be pushed: see Git's message above")


def credentials() -> dict[str, str]:
    """Git settings, as environment variables, that log in with GH_TOKEN at GitHub's own address and nowhere else.

    Not as arguments: those can be read by every process of the machine.
    """
    login = base64.b64encode(f"x-access-token:{os.environ['GH_TOKEN']}".encode()).decode()
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{os.environ['GITHUB_SERVER_URL']}/.extraheader",
        "GIT_CONFIG_VALUE_0": f"Authorization: basic {login}",
    }


def _commit(old: str, pictures: list[Path], number: int, run: str) -> str:
    """A commit without parents: the old one's files, with other pictures for this pull request."""
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        if old:
            _git("fetch", "--quiet", "--depth", "1", "origin", old)
            _git("read-tree", old, **index)
            _git("rm", "-r", "--quiet", "--cached", "--ignore-unmatch", str(number), **index)
        for picture in pictures:
            blob = _git("hash-object", "-w", str(picture))
            _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{number}/{run}/{picture.name}", **index)
        tree = _git("write-tree", **index)
    names = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "ci")
    addresses = dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "ci@localhost")
    return _git("commit-tree", tree, "-m", "Latest pictures of each pull request", **names, **addresses)


def post(text: str, number: int) -> None:
    """Write the comment that this script wrote before anew, wherever it stands among others; else a new one."""
    repository = f"/repos/{os.environ['GITHUB_REPOSITORY']}"
    for comment in comments(f"{repository}/issues/{number}/comments?per_page=100"):
        # Not by the author alone: other workflows write as the same bot. Not by the mark alone: anybody can write it.
        if comment["user"]["login"] == AUTHOR and comment["body"].startswith(MARK):
            ask(f"{repository}/issues/comments/{comment['id']}", "PATCH", {"body": text})
            return
    ask(f"{repository}/issues/{number}/comments", "POST", {"body": text})


def comments(path: str) -> list[dict[str, Any]]:
    """All comments of a pull request, oldest first, page by page."""
    found: list[dict[str, Any]] = []
    while path:
        page, link = ask(path)
        found += page
        following = re.search(r'<([^>]+)>; rel="next"', link)
        path = following[1] if following else ""
    return found


def ask(path: str, method: str = "GET", body: dict[str, str] | None = None) -> tuple[Any, str]:
    """GitHub's answer and its Link header. path: below the API's address, or a whole address."""
    api = os.environ["GITHUB_API_URL"]
    address = path if path.startswith("http") else api + path
    if not address.startswith(f"{api}/"):
        raise SystemExit(f"the token is for {api} alone, and not for {address!r}")
    request = urllib.request.Request(
        address,
        data=json.dumps(body).encode() if body else None,
        method=method,
        headers={"Authorization": f"Bearer {os.environ['GH_TOKEN']}", "Accept": "application/vnd.github+json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer), answer.headers.get("Link", "")


def _git(*arguments: str, **environment: str) -> str:
    everything = {**os.environ, **credentials(), **environment}
    done = subprocess.run(["git", *arguments], env=everything, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
