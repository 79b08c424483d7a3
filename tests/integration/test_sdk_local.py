"""Models deployed on this machine from Python: a real server, asked as users ask."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mariner.errors import DeploymentError
from mariner.sdk import Deployment, Model
from mariner.sdk.local import LocalDeployment
from mariner.sdk.local_server import LocalServer

pytestmark = pytest.mark.slow

HANDLER = '''
from pathlib import Path

def handle(data, context):
    """Answers with the content of its weights, its version and its input."""
    if data is None:
        return None
    model = context.manifest["model"]
    weights = Path(context.system_properties["model_dir"], model["serializedFile"]).read_text()
    if weights == "broken":
        raise ValueError("these weights are broken")
    explains = context.get_request_header(0, "explain") == "True"
    answer = {"weights": weights, "version": model["modelVersion"], "explains": explains}
    return [{**answer, "body": row.get("body")} for row in data]
'''
BROKEN = "import nowhere_to_be_found\n"
CLIENTS = 50


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of a model, and a directory of servers that only this test sees."""
    for name, text in {"model.py": "", "handler.py": HANDLER, "one.pt": "one", "two.pt": "two"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("MARINER_DISABLE_SYSTEM_METRICS", "true")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for server in LocalServer.running():
        server.stop()


FIRST = Model(
    id="dev/says",
    version="1",
    serving_config={"model_file": "model.py", "handler": "handler.py", "serialized_file": "one.pt"},
)
SECOND = replace(FIRST, version="2", serving_config={**FIRST.serving_config, "serialized_file": "two.pt"})


def servers(project: Path) -> list[Path]:
    return sorted(path for path in (project / "tmp").glob("mariner-*/*-*") if path.is_dir())


def pid_of(deployment: Deployment) -> int:
    assert isinstance(deployment, LocalDeployment)
    return deployment._server.pid


def weights(deployment: Deployment, **arguments: Any) -> str:
    found: str = deployment.predict({"x": 1}, **arguments)["weights"]
    return found


class Clients:
    """Threads that ask without a pause, until they are stopped or have asked so often."""

    def __init__(self, deployment: Deployment, total: int | None = None) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self._deployment = deployment
        self._left = total
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._some = threading.Semaphore(0)
        self._threads = ThreadPoolExecutor(CLIENTS)
        self._asking = [self._threads.submit(self._ask) for _ in range(CLIENTS)]

    def wait_for(self, count: int) -> None:
        """Until so many more answers have come."""
        for _ in range(count):
            assert self._some.acquire(timeout=60)

    def stop(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for each in self._asking:
            each.result(timeout=120)
        self._threads.shutdown()

    def _take(self) -> bool:
        with self._lock:
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0

    def _ask(self) -> None:
        while not self._stop.is_set() and self._take():
            try:
                answer = weights(self._deployment)
            except Exception as error:  # noqa: BLE001 - the test looks at what it was
                self.errors.append(error)
                return
            with self._lock:
                self.answers[answer] += 1
            self._some.release()


def test_a_model_is_deployed_asked_and_undeployed(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deployment = FIRST.deploy(target="local")
    assert deployment.url.startswith("http://127.0.0.1:")
    assert deployment.url.endswith("/predictions/dev-says")
    assert repr(deployment) == f"<LocalDeployment dev-says at {deployment.url}>"
    answer = {"weights": "one", "version": "1", "explains": False, "body": {"x": [1, 2]}}
    assert deployment.predict({"x": [1, 2]}) == answer
    assert deployment.explain("why") == {**answer, "explains": True, "body": "why"}
    assert deployment.predict("a", version="1")["version"] == "1"
    process = psutil.Process(pid_of(deployment))
    deployment.undeploy()
    assert not process.is_running()
    assert servers(project) == []
    output = capfd.readouterr()
    assert output.out == ""
    steps = [line.removeprefix("dev-says 1: ") for line in output.err.splitlines()]
    assert steps[:3] == ["finding a server", "packaging", "loading"]
    assert steps[3].startswith(f"ready at {deployment.url} after ")


def test_a_service_scales_and_tells_of_itself() -> None:
    deployment = FIRST.deploy(workers=1)
    deployment.scale(2)
    assert isinstance(deployment, LocalDeployment)
    (described,) = deployment.versions().values()
    assert [worker["status"] for worker in described["workers"]] == ["READY", "READY"]
    for _ in range(3):
        deployment.predict("a")
    counts = {
        s.labels["model_version"]: s.value for s in deployment.metrics() if s.name == "ts_inference_requests_total"
    }
    assert counts == {"default": 3}
    assert "is ready after" in deployment.logs()
    assert len(deployment.logs(2).splitlines()) == 2
    assert deployment.logs(0) == ""


def test_a_second_model_shares_the_server_and_goes_alone() -> None:
    first = FIRST.deploy()
    other = replace(FIRST, id="dev/other").deploy()
    assert pid_of(first) == pid_of(other)
    first.undeploy()
    with pytest.raises(DeploymentError, match="Model not found: dev-says"):
        first.predict("a")
    assert weights(other) == "one"


def test_the_service_listens_where_it_is_told_to() -> None:
    probe = FIRST.deploy()
    port = int(probe.url.split("/")[2].partition(":")[2])
    probe.undeploy()
    assert FIRST.deploy(port=port).url == f"http://127.0.0.1:{port}/predictions/dev-says"


def test_a_model_that_is_there_is_not_replaced_unasked() -> None:
    deployment = FIRST.deploy()
    for model in (FIRST, SECOND):
        with pytest.raises(
            DeploymentError, match=r"dev-says is deployed already, in version 1\. deploy\(replace=True\)"
        ):
            model.deploy()
    assert weights(deployment) == "one"


@pytest.mark.parametrize("version", ["2", "1"], ids=["a new version", "the same version"])
def test_a_hot_swap_under_fifty_clients_loses_nothing(version: str) -> None:
    deployment = FIRST.deploy()
    clients = Clients(deployment)
    clients.wait_for(200)
    swapped = replace(SECOND, version=version).deploy(replace=True)
    clients.wait_for(200)
    clients.stop()
    assert clients.errors == []
    assert set(clients.answers) == {"one", "two"}
    assert swapped.predict("a")["version"] == version
    assert isinstance(swapped, LocalDeployment)
    assert list(swapped.versions()) == [version]


@pytest.mark.parametrize("version", ["2", "1"], ids=["a new version", "the same version"])
def test_a_model_that_does_not_load_leaves_the_old_one_in_its_place(version: str, project: Path) -> None:
    deployment = FIRST.deploy()
    (project / "broken.py").write_text(BROKEN)
    broken = replace(SECOND, version=version, serving_config={**SECOND.serving_config, "handler": "broken.py"})
    with pytest.raises(DeploymentError, match=r"Failed to start workers.*nowhere_to_be_found"):
        broken.deploy(replace=True)
    assert weights(deployment) == "one"
    assert replace(SECOND, version=version).deploy(replace=True).predict("a")["weights"] == "two"


def test_a_first_model_that_does_not_load_leaves_no_server(project: Path) -> None:
    (project / "handler.py").write_text(BROKEN)
    with pytest.raises(DeploymentError, match="nowhere_to_be_found"):
        FIRST.deploy()
    assert servers(project) == []


def test_a_canary_under_fifty_clients_loses_nothing_and_gets_its_share() -> None:
    deployment = FIRST.deploy()
    canary = SECOND.deploy_canary(canary_traffic_percentage=30)
    assert pid_of(canary) == pid_of(deployment)
    clients = Clients(deployment, total=10_000)
    clients.join()
    assert clients.errors == []
    assert clients.answers.total() == 10_000
    assert abs(clients.answers["two"] - 3000) <= 60
    assert (weights(deployment, version="1"), weights(deployment, version="2")) == ("one", "two")


def test_a_canary_is_promoted_without_losing_a_request() -> None:
    deployment = FIRST.deploy()
    SECOND.deploy_canary(canary_traffic_percentage=50)
    clients = Clients(deployment)
    clients.wait_for(100)
    SECOND.promote_canary()
    clients.wait_for(100)
    clients.stop()
    assert clients.errors == []
    assert {weights(deployment) for _ in range(10)} == {"two"}
    assert isinstance(deployment, LocalDeployment)
    assert list(deployment.versions()) == ["2"]


def test_a_canary_is_rolled_back_without_losing_a_request() -> None:
    deployment = FIRST.deploy()
    deployment.deploy_canary(SECOND, canary_traffic_percentage=50)
    clients = Clients(deployment)
    clients.wait_for(100)
    deployment.rollback()
    clients.wait_for(100)
    clients.stop()
    assert clients.errors == []
    assert {weights(deployment) for _ in range(10)} == {"one"}
    assert isinstance(deployment, LocalDeployment)
    assert list(deployment.versions()) == ["1"]
    with pytest.raises(DeploymentError, match=r"dev-says has no canary. Start one with deploy_canary"):
        deployment.rollback()


def test_the_share_of_a_canary_can_be_changed() -> None:
    deployment = FIRST.deploy()
    deployment.deploy_canary(SECOND, canary_traffic_percentage=0)
    assert {weights(deployment) for _ in range(10)} == {"one"}
    deployment.deploy_canary(SECOND, canary_traffic_percentage=100)
    assert {weights(deployment) for _ in range(10)} == {"two"}
    for third in (replace(SECOND, version="3"), FIRST):
        with pytest.raises(DeploymentError, match="has version 1 and the canary 2"):
            third.deploy_canary()
    with pytest.raises(DeploymentError, match=r"has a canary\. Call promote_canary"):
        SECOND.deploy(replace=True)


@pytest.mark.parametrize("end", ["promote", "rollback"])
def test_a_shadow_is_asked_the_same_and_answers_nobody(end: str) -> None:
    deployment = FIRST.deploy()
    with pytest.raises(DeploymentError, match=r"dev-says has no shadow\. Start one with deploy_shadow"):
        deployment.shadow()
    SECOND.deploy_shadow(shadow_traffic_percentage=100)
    assert {weights(deployment) for _ in range(10)} == {"one"}
    counts = deployment.shadow()
    assert (counts["mirrored"], counts["same"]) == (10, 0)
    (SECOND.promote_canary if end == "promote" else SECOND.rollback)()
    assert weights(deployment) == ("two" if end == "promote" else "one")
    assert isinstance(deployment, LocalDeployment)
    assert len(deployment.versions()) == 1


def test_a_canary_needs_something_to_stand_beside() -> None:
    with pytest.raises(DeploymentError, match=r"dev-says is not deployed here. Call deploy\(\) first"):
        SECOND.deploy_canary()
    deployment = FIRST.deploy()
    with pytest.raises(DeploymentError, match="dev/other is another model than dev-says"):
        deployment.deploy_canary(replace(SECOND, id="dev/other"))


def test_a_configuration_of_the_users_own_counts(project: Path) -> None:
    (project / "my.properties").write_text(
        "inference_address=http://0.0.0.0:8085\nmodel_store=/mnt/models/model-store\ndefault_workers_per_model=2\n"
        "job_queue_size=7\nservice_envelope=kfserving\n"
        'model_snapshot={"modelCount": 1, "models": {"m": {"1.0": {"marName": "m.mar"}}}}\n'
    )
    config = {**FIRST.serving_config, "config_properties": "my.properties"}
    deployment = replace(FIRST, serving_config=config).deploy()
    assert isinstance(deployment, LocalDeployment)
    (described,) = deployment.versions().values()
    assert (described["minWorkers"], described["jobQueueStatus"]["remainingCapacity"]) == (2, 7)
    assert deployment.url.startswith("http://127.0.0.1:")
    answer = deployment.predict({"instances": [{"body": "a"}]})
    assert answer["predictions"][0]["weights"] == "one"


def test_where_the_server_wants_keys_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARINER_TOKEN_AUTHORIZATION", "on")
    monkeypatch.setenv("MARINER_ENABLE_MODEL_API", "true")
    deployment = FIRST.deploy()
    assert weights(deployment) == "one"
    assert isinstance(deployment, LocalDeployment)
    (deployment._server.directory / "key_file.json").unlink()
    with pytest.raises(DeploymentError, match="Token Authorization failed") as error:
        deployment.predict("a")
    assert error.value.status == 400


SCRIPT = """
import sys
from mariner.sdk import Model
from mariner.sdk.local_server import LocalServer
model = Model(id="dev/says", version="1", serving_config={
    "model_file": "model.py", "handler": "handler.py", "serialized_file": "one.pt"})
deployment = model.deploy(keep=KEEP)
print(deployment.predict("a")["weights"], next(LocalServer.running()).pid, flush=True)
END
"""


def run_script(project: Path, *, keep: bool | None = None, end: str = "") -> tuple[str, psutil.Process | None]:
    """Runs a program to its end; what it was answered, and its server if that is still there."""
    text = SCRIPT.replace("KEEP", repr(keep)).replace("END", end)
    command = [sys.executable, "-W", "error", "-c", text]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr
    answer, pid = done.stdout.split()
    try:
        return answer, psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        return answer, None


def test_the_server_of_a_script_ends_with_it(project: Path) -> None:
    assert run_script(project) == ("one", None)
    assert servers(project) == []


def test_a_server_that_is_kept_ends_with_its_last_model(project: Path) -> None:
    answer, server = run_script(project, keep=True)
    assert (answer, server is not None) == ("one", True)
    deployment = FIRST.deployment()
    assert weights(deployment) == "one"
    assert SECOND.deploy(replace=True, keep=True).url == deployment.url
    deployment.undeploy()
    assert server is not None
    assert not server.is_running()


def test_the_server_of_a_killed_script_ends_when_the_next_one_starts(project: Path) -> None:
    _, server = run_script(project, end="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert server is not None
    deployment = FIRST.deploy()
    server.wait(60)
    assert len(servers(project)) == 1
    assert weights(deployment) == "one"


def test_a_program_that_was_forked_leaves_the_server_alone(project: Path) -> None:
    fork = "import os\nif os.fork() == 0: sys.exit()\nos.wait()\n"
    fork += "print(deployment.predict('a')['weights'], file=sys.stderr)"
    text = SCRIPT.replace("KEEP", "None").replace("END", fork)
    done = subprocess.run([sys.executable, "-c", text], cwd=project, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "one"


def test_a_directory_that_is_open_to_others_is_not_used(project: Path) -> None:
    base = project / "tmp" / f"mariner-{os.getuid()}"
    base.mkdir(mode=0o777)
    base.chmod(0o777)
    with pytest.raises(DeploymentError, match="is open to others"):
        FIRST.deploy()
    base.chmod(0o700)
