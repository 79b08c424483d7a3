"""A small Kubernetes API server that speaks real HTTP: KServe's two kinds, pods, and the service of a model.

It refuses what KServe's schema refuses, counts generations, and lets a service be ready after a number of looks at it.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema
import yaml

__all__ = ["TOKEN", "FakeCluster", "errors_of", "running_cluster"]

SCHEMA = json.loads((Path(__file__).parents[3] / "compat" / "kserve_schema" / "kserve.json").read_text())
TOKEN = "secret-of-the-cluster"
OBJECT = re.compile(r"/apis/serving\.kserve\.io/(v1beta1|v1alpha1)/namespaces/([\w-]+)/(\w+)(?:/([\w-]+))?")
POD = re.compile(r"/api/v1/namespaces/([\w-]+)/pods(?:/([\w-]+)(?::8082)?/(log|proxy/metrics))?")
KINDS = {("v1beta1", "inferenceservices"): "InferenceService", ("v1alpha1", "servingruntimes"): "ServingRuntime"}


def errors_of(manifest: dict[str, Any]) -> list[str]:
    """What KServe's schema says against a manifest."""
    schema = {**SCHEMA["kinds"][manifest["kind"]], "$defs": SCHEMA["$defs"]}
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


class FakeCluster:
    """What is in the cluster, and how it behaves.

    Attributes:
        objects: by namespace, plural and name.
        looks: how often a service is asked for before it is ready.
        message: why it is not ready.
        posted: bodies that predictions were asked with.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.looks = 1
        self.message = "Revision is not ready"
        self.posted: list[Any] = []
        self.url = ""
        self._seen: dict[str, int] = {}

    def spec(self, name: str, plural: str = "inferenceservices") -> dict[str, Any]:
        found: dict[str, Any] = self.objects["default", plural, name]["spec"]
        return found

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        path, query = unquote(urlsplit(target).path), parse_qs(urlsplit(target).query)
        if path.startswith("/v1/models/"):
            self.posted.append(body)
            return 200, {"predictions": [path.rpartition(":")[2]]}
        if match := POD.fullmatch(path):
            return self._pods(match, query)
        match = OBJECT.fullmatch(path)
        if match is None or (match[1], match[3]) not in KINDS:
            return 404, {"message": f"no such path: {path}"}
        return self._object(match, method, body)

    def _object(self, match: re.Match[str], method: str, body: Any) -> tuple[int, Any]:
        version, namespace, plural, name = match.groups()
        if method == "POST":
            return self._create(KINDS[version, plural], namespace, plural, body)
        key = (namespace, plural, name)
        if key not in self.objects:
            return 404, {"message": f'{plural}.serving.kserve.io "{name}" not found'}
        if method == "PUT":
            return self._replace(key, body)
        if method == "DELETE":
            return 200, self.objects.pop(key)
        return 200, self._look(key)

    def _create(self, kind: str, namespace: str, plural: str, body: Any) -> tuple[int, Any]:
        errors = errors_of(body) if body.get("kind") == kind else [f"kind is {body.get('kind')}"]
        if errors:
            return 422, {"message": "; ".join(errors)}
        body["metadata"] |= {"generation": 1, "resourceVersion": "1"}
        self.objects[namespace, plural, body["metadata"]["name"]] = body
        return 201, body

    def _replace(self, key: tuple[str, str, str], body: Any) -> tuple[int, Any]:
        there = self.objects[key]
        if errors := errors_of(body):
            return 422, {"message": "; ".join(errors)}
        if body["metadata"].get("resourceVersion") != there["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        changed = body["spec"] != there["spec"]
        generation = there["metadata"]["generation"] + changed
        body["metadata"] |= {
            "generation": generation,
            "resourceVersion": str(int(there["metadata"]["resourceVersion"]) + 1),
        }
        self.objects[key] = body
        if changed:
            self._seen.pop(key[2], None)
        return 200, body

    def _look(self, key: tuple[str, str, str]) -> dict[str, Any]:
        found = self.objects[key]
        if key[1] == "inferenceservices":
            seen = self._seen[key[2]] = self._seen.get(key[2], 0) + 1
            ready = seen > self.looks
            condition = {"type": "Ready", "status": str(ready), **({} if ready else {"message": self.message})}
            generation = found["metadata"]["generation"] - (not ready)
            found["status"] = {"conditions": [condition], "observedGeneration": generation, "url": self.url}
        return found

    def _pods(self, match: re.Match[str], query: dict[str, list[str]]) -> tuple[int, Any]:
        _, pod, what = match.groups()
        if pod is None:
            (selector,) = query["labelSelector"]
            name = selector.removeprefix("serving.kserve.io/inferenceservice=")
            return 200, {"items": [{"metadata": {"name": f"{name}-{letter}"}} for letter in "ab"]}
        if what == "log":
            return 200, f"{query['container'][0]} of {pod}, {query['tailLines'][0]} lines\n"
        sample = 'ts_inference_requests_total{model_name="%s",pod="%s"} 3.0\n'
        return 200, "# TYPE a counter\n" + sample % ("dev-mnist", pod) + sample % ("other", pod)


@contextmanager
def running_cluster(directory: Path) -> Iterator[FakeCluster]:
    """A cluster, and a file ``kubeconfig`` in the directory that leads to it."""
    cluster = FakeCluster()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            if self.path.startswith("/api") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, answer = 401, {"message": "Unauthorized"}
            else:
                status, answer = cluster.answer(self.command, self.path, json.loads(raw) if raw else None)
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        cluster.url = f"http://127.0.0.1:{server.server_port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": cluster.url}}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }
        (directory / "kubeconfig").write_text(yaml.safe_dump(config))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield cluster
        finally:
            server.shutdown()
            thread.join()
