"""A tracking server small enough to be stopped, hung and started again in the midst of a test."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse


class Stub:
    """Answers what the tracker asks of MLflow's REST API, on loopback; what it heard survives `stop` and `start`.

    hang: seconds after which a request gets no answer. refuse, drop, lose: which requests it calls invalid, does not
    hear, or hears without its answer arriving. speak: writes another answer than MLflow's to everything.
    """

    def __init__(self, artifacts: Path) -> None:
        self.artifacts = artifacts
        self.runs: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, str] = {}
        self.requests: list[str] = []
        self.hang = 0.0
        self.refuse: Callable[[str, dict[str, Any]], bool] = lambda call, body: False
        self.drop: Callable[[str, dict[str, Any]], bool] = lambda call, body: False
        self.lose: Callable[[str, dict[str, Any]], bool] = lambda call, body: False
        self.speak: Callable[[BaseHTTPRequestHandler], None] | None = None
        self.port = 0
        self.server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None

    def named(self, name: str) -> dict[str, Any]:
        """The one run of that name."""
        (run,) = [run for run in self.alive() if run["info"]["run_name"] == name]
        return run

    def alive(self) -> list[dict[str, Any]]:
        return [run for run in self.runs.values() if run["info"]["lifecycle_stage"] == "active"]

    def history(self, name: str, key: str) -> list[tuple[int, float]]:
        return sorted((step, value) for name, step, value, _ in self.named(name)["metrics"] if name == key)

    def answer(self, call: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if call == "experiments/get-by-name":
            name = body["experiment_name"]
            return {"experiment": self._experiment(name)} if name in self.experiments else None
        if call == "experiments/create":
            self.experiments[body["name"]] = str(len(self.experiments) + 1)
            return {"experiment_id": self.experiments[body["name"]]}
        if call == "experiments/search":
            return {"experiments": [self._experiment(name) for name in self.experiments]}
        if call == "experiments/get":
            return {
                "experiment": self._experiment(
                    next(n for n, i in self.experiments.items() if i == body["experiment_id"])
                )
            }
        if call == "runs/create":
            return {"run": self._shown(self._create(body))}
        if call == "runs/search":
            wanted = re.findall(r"tags\.`([^`]+)` = '([^']*)'", body.get("filter", ""))
            found = [run for run in self.runs.values() if all(run["tags"].get(key) == text for key, text in wanted)]
            return {"runs": [self._shown(run) for run in reversed(found)]}
        if call == "logged-models/search":
            return {"models": []}
        if body["run_id"] not in self.runs:
            return None
        run = self.runs[body["run_id"]]
        if call == "runs/update":
            run["info"].update({key: body[key] for key in ("status", "end_time") if key in body})
            return {"run_info": run["info"]}
        if call == "runs/delete":
            run["info"]["lifecycle_stage"] = "deleted"
        if call == "runs/set-tag":
            run["tags"][body["key"]] = body["value"]
        if call == "runs/log-inputs":
            run["datasets"] += body["datasets"]
        if call == "runs/log-batch":
            run["metrics"] |= {
                (m["key"], int(m["step"]), float(m["value"]), m["timestamp"]) for m in body.get("metrics", [])
            }
            run["params"].update({item["key"]: item["value"] for item in body.get("params", [])})
            run["tags"].update({item["key"]: item["value"] for item in body.get("tags", [])})
        return {"run": self._shown(run)}

    def _experiment(self, name: str) -> dict[str, Any]:
        return {
            "experiment_id": self.experiments[name],
            "name": name,
            "artifact_location": self.artifacts.as_uri(),
            "lifecycle_stage": "active",
        }

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        run_id = uuid.uuid4().hex
        info = {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": body["run_name"],
            "experiment_id": body["experiment_id"],
            "status": "RUNNING",
            "start_time": body["start_time"],
            "artifact_uri": f"{self.artifacts.as_uri()}/{run_id}",
            "lifecycle_stage": "active",
        }
        tags = {tag["key"]: tag["value"] for tag in body["tags"]}
        self.runs[run_id] = {"info": info, "tags": tags, "metrics": set(), "params": {}, "datasets": []}
        return self.runs[run_id]

    def _shown(self, run: dict[str, Any]) -> dict[str, Any]:
        data = {name: [{"key": key, "value": text} for key, text in run[name].items()] for name in ("tags", "params")}
        return {"info": run["info"], "data": data, "inputs": {"dataset_inputs": run["datasets"]}}


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(dict(part.split("=", 1) for part in urlparse(self.path).query.split("&") if part))

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: dict[str, Any]) -> None:
            call = urlparse(self.path).path.partition("/mlflow/")[2]
            stub.requests.append(call)
            time.sleep(stub.hang)
            if stub.server is None or stub.hang or stub.drop(call, body):
                return
            if stub.speak:
                stub.speak(self)
                return
            if stub.refuse(call, body):
                self._send(400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "refused on purpose"})
                return
            answer = stub.answer(call, body)
            if stub.lose(call, body):
                return
            if answer is None:
                self._send(404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not here"})
            else:
                self._send(200, answer)

        def _send(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
