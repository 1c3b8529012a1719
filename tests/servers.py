"""Servers of a team, started for a test out of what is installed."""

import importlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest


def require(*modules: str, programs: tuple[str, ...] = ()) -> None:
    """Skip a test, saying all that it lacks."""
    lacking = [name for name in programs if not shutil.which(name)]
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            lacking.append(f"Python's {name}")
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)} (pip install -e '.[servers]', apt install postgresql)")


@dataclass(frozen=True)
class Bucket:
    """A bucket on an S3 server of this machine. environment: what its clients need."""

    name: str
    client: Any
    environment: dict[str, str]

    def files(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", ()))


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """An empty bucket, and its server until the end; skips where there is none."""
    require("moto.server", "boto3", "flask")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    client.create_bucket(Bucket="team")
    yield Bucket("team", client, {**keys, "MLFLOW_S3_ENDPOINT_URL": url, "AWS_ENDPOINT_URL": url})
    server.stop()
