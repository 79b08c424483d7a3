"""Images and manifests for KServe, and a deployment to a small API server over HTTP."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_cluster import FakeCluster, errors_of, running_cluster
from sdk_project import SERVING, write_project

from mariner.cli import _torchserve_parser
from mariner.config import Config
from mariner.errors import DeploymentError, InvalidModel
from mariner.sdk import Model, cluster

pytestmark = pytest.mark.slow

MODEL = Model(id="dev/mnist", version="1", image_name="registry/mnist:1", serving_config=SERVING)
NEXT = replace(MODEL, version="2", image_name="registry/mnist:2")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setattr(cluster, "POLL", 0.001)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with running_cluster(tmp_path) as fake:
        yield fake


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


# -- the image -------------------------------------------------------------------------------------------------------


def test_the_image_has_the_layout_of_the_mounts_and_the_program(project: Path) -> None:
    model = replace(MODEL, base_image="base:1", main_file="trainer.py", extra_files=["model.py"])
    assert model.image_context("context") == Path("context")
    assert files_in(project / "context") == [
        "Dockerfile", "config/config.properties", "model-store/dev-mnist.mar", "program/model.py", "program/trainer.py",
    ]  # fmt: skip
    command = 'CMD ["torchserve", "--start", "--ncs", "--model-store", "/mnt/models/model-store", '
    assert (project / "context" / "Dockerfile").read_text().splitlines() == [
        "FROM base:1",
        "COPY model-store /mnt/models/model-store",
        "COPY config /mnt/models/config",
        "COPY program /mnt/models/program",
        "ENV PYTHONPATH=/mnt/models/program",
        command + '"--ts-config", "/mnt/models/config/config.properties"]',
    ]
    config = (project / "context" / "config" / "config.properties").read_text()
    assert '"models": {"dev-mnist": {"1": {"defaultVersion": true, "marName": "dev-mnist.mar"' in config
    with zipfile.ZipFile("context/model-store/dev-mnist.mar") as archive:
        assert "state_dict.pt" in archive.namelist()


def test_a_configuration_of_the_users_own_goes_in_as_it_is(project: Path) -> None:
    replace(MODEL, serving_config={**SERVING, "config_properties": "my.properties"}).image_context("context")
    written = (project / "context" / "config" / "config.properties").read_bytes()
    assert written == (project / "my.properties").read_bytes()
    assert not (project / "context" / "program").exists()


def test_a_context_written_again_keeps_nothing_of_the_one_before(project: Path) -> None:
    replace(MODEL, extra_files=["file_a.py"]).image_context("context")
    MODEL.image_context("context")
    assert not (project / "context" / "program").exists()
    assert "PYTHONPATH" not in (project / "context" / "Dockerfile").read_text()


def test_two_files_of_one_name_are_refused(project: Path) -> None:
    (project / "other").mkdir()
    (project / "other" / "model.py").touch()
    with pytest.raises(InvalidModel, match=r"two files are called model\.py"):
        replace(MODEL, extra_files=["model.py", "other/model.py"]).image_context("context")


# -- manifests -------------------------------------------------------------------------------------------------------


def manifests(model: Model = MODEL, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    runtime, service = yaml.safe_load_all(model.manifests(**arguments))
    return runtime, service


@pytest.mark.parametrize("arguments", [{}, {"namespace": "models", "canary_traffic_percentage": 30}])
def test_manifests_are_what_kserves_schema_wants(arguments: dict[str, Any]) -> None:
    assert [errors_of(manifest) for manifest in manifests(**arguments)] == [[], []]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (("spec", "predictor"), "canaryTrafficPercentage", 30),
        (("spec", "predictor"), "canaryTrafficPercent", "30"),
        (("spec", "predictor", "model"), "modelFormat", None),
        (("spec",), "replicas", 1),
    ],
)
def test_the_schema_finds_mistakes(section: tuple[str, ...], key: str, value: Any) -> None:
    _, service = manifests()
    place = service
    for name in section:
        place = place[name]
    place[key] = value
    assert errors_of(service) != []


def test_the_service_runs_the_image_of_the_model_with_the_runtime() -> None:
    runtime, service = manifests(namespace="models")
    predictor = service["spec"]["predictor"]
    assert (service["metadata"]["name"], service["metadata"]["namespace"]) == ("dev-mnist", "models")
    assert service["metadata"]["annotations"] == {"mariner/model-id": "dev/mnist", "mariner/model-version": "1"}
    assert predictor["model"]["image"] == "registry/mnist:1"
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert runtime["metadata"]["namespace"] == "models"
    assert "canaryTrafficPercent" not in predictor
    assert predictor["terminationGracePeriodSeconds"] > Config().drain_timeout
    assert manifests(canary_traffic_percentage=30)[1]["spec"]["predictor"]["canaryTrafficPercent"] == 30


def test_the_runtime_starts_the_server_with_flags_that_exist_at_the_port_of_the_generated_file() -> None:
    runtime, _ = manifests()
    (container,) = runtime["spec"]["containers"]
    _, unknown = _torchserve_parser().parse_known_args(container["args"][1:])
    assert unknown == []
    assert [port["containerPort"] for port in container["ports"]] == [8085]
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/models/{{.Name}}/ready", "port": 8085}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_name": None}, "image_name is missing. Name the image that the cluster pulls"),
        ({"id": "7/up"}, "id: KServe refuses the name '7-up'. Let the id begin with a letter"),
    ],
)
def test_what_kserve_would_refuse_is_said_before(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidModel) as error:
        replace(MODEL, **change).manifests()
    assert message in str(error.value)


# -- the cluster -----------------------------------------------------------------------------------------------------


def test_a_model_is_deployed_to_the_cluster_and_answers(fake: FakeCluster) -> None:
    fake.looks = 3
    deployment = MODEL.deploy(target="kserve", workers=2)
    assert deployment.url == f"{fake.url}/v1/models/dev-mnist:predict"
    predictor = fake.spec("dev-mnist")["predictor"]
    assert (predictor["model"]["image"], predictor["minReplicas"]) == ("registry/mnist:1", 2)
    assert ("default", "servingruntimes", "mariner") in fake.objects
    assert deployment.predict({"instances": [1]}) == {"predictions": ["predict"]}
    assert deployment.explain({"instances": [2]}) == {"predictions": ["explain"]}
    assert fake.posted == [{"instances": [1]}, {"instances": [2]}]
    with pytest.raises(DeploymentError, match="KServe chooses the version that answers"):
        deployment.predict({"instances": [1]}, version="1")
    deployment.undeploy()
    assert ("default", "inferenceservices", "dev-mnist") not in fake.objects


def test_a_service_that_is_there_is_replaced_only_if_asked_for(fake: FakeCluster) -> None:
    MODEL.deploy(target="kserve")
    with pytest.raises(DeploymentError, match="dev-mnist is deployed already in namespace default"):
        NEXT.deploy(target="kserve")
    assert fake.spec("dev-mnist")["predictor"]["model"]["image"] == "registry/mnist:1"
    NEXT.deploy(target="kserve", replace=True)
    assert fake.spec("dev-mnist")["predictor"]["model"]["image"] == "registry/mnist:2"
    assert fake.objects["default", "inferenceservices", "dev-mnist"]["metadata"]["generation"] == 2


def test_a_canary_is_deployed_and_promoted(fake: FakeCluster) -> None:
    deployment = MODEL.deploy(target="kserve", workers=2)
    NEXT.deploy_canary(target="kserve", canary_traffic_percentage=30)
    predictor = fake.spec("dev-mnist")["predictor"]
    assert (predictor["canaryTrafficPercent"], predictor["model"]["image"]) == (30, "registry/mnist:2")
    assert predictor["minReplicas"] == 2
    deployment.deploy_canary(NEXT, canary_traffic_percentage=60)
    assert fake.spec("dev-mnist")["predictor"]["canaryTrafficPercent"] == 60
    NEXT.promote_canary(target="kserve")
    predictor = fake.spec("dev-mnist")["predictor"]
    assert "canaryTrafficPercent" not in predictor
    assert predictor["model"]["image"] == "registry/mnist:2"
    with pytest.raises(DeploymentError, match="dev-mnist has no canary"):
        deployment.promote_canary()


def test_a_canary_is_rolled_back(fake: FakeCluster) -> None:
    deployment = MODEL.deploy(target="kserve")
    deployment.deploy_canary(NEXT)
    NEXT.rollback(target="kserve")
    assert fake.spec("dev-mnist")["predictor"]["canaryTrafficPercent"] == 0
    with pytest.raises(DeploymentError, match="dev-mnist has no canary"):
        deployment.rollback()


def test_a_canary_needs_an_image_and_an_id_that_fit(fake: FakeCluster) -> None:
    deployment = MODEL.deploy(target="kserve")
    with pytest.raises(DeploymentError, match="dev-mnist runs registry/mnist:1 already"):
        deployment.deploy_canary(replace(MODEL, version="2"))
    with pytest.raises(DeploymentError, match="dev/iris is another model than dev-mnist"):
        deployment.deploy_canary(replace(NEXT, id="dev/iris"))


def test_a_service_is_scaled_and_tells_of_itself(fake: FakeCluster) -> None:
    deployment = MODEL.deploy(target="kserve")
    deployment.scale(2, 5)
    predictor = fake.spec("dev-mnist")["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 5)
    assert deployment.logs(7).splitlines() == [
        "kserve-container of dev-mnist-a, 7 lines", "kserve-container of dev-mnist-b, 7 lines",
    ]  # fmt: skip
    assert [(sample.labels["pod"], sample.value) for sample in deployment.metrics()] == [
        ("dev-mnist-a", 3.0), ("dev-mnist-b", 3.0),
    ]  # fmt: skip


def test_a_service_that_does_not_become_ready_gives_kserves_reason(fake: FakeCluster) -> None:
    fake.looks = 1_000_000
    with pytest.raises(
        DeploymentError, match=r"dev-mnist is not ready after 0\.01 s: Revision is not ready\. kubectl describe"
    ):
        MODEL.deploy(target="kserve", timeout=0.01)


def test_what_the_cluster_refuses_is_told_with_its_words(fake: FakeCluster, project: Path) -> None:
    config = (project / "kubeconfig").read_text()
    (project / "kubeconfig").write_text(config.replace("secret-of-the-cluster", "stolen"))
    with pytest.raises(
        DeploymentError, match="The cluster refused reading inferenceservices/dev-mnist: Unauthorized"
    ) as error:
        MODEL.deploy(target="kserve")
    assert error.value.status == 401


def test_a_change_by_somebody_else_meanwhile_is_not_overwritten(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = MODEL.deploy(target="kserve")
    look = fake._look

    def changed_meanwhile(key: tuple[str, str, str]) -> dict[str, Any]:
        found = look(key)
        seen = {**found, "metadata": dict(found["metadata"])}
        found["metadata"]["resourceVersion"] += "0"
        return seen

    monkeypatch.setattr(fake, "_look", changed_meanwhile)
    with pytest.raises(DeploymentError, match="the object has been modified"):
        deployment.scale(2)


def test_without_a_cluster_the_error_says_where_one_would_be_found(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(project / "none"))
    with pytest.raises(DeploymentError, match=r"There is no cluster to talk to.*Set KUBECONFIG"):
        MODEL.deploy(target="kserve")


def test_a_cluster_that_does_not_answer_is_told_apart_from_one_that_refuses(
    fake: FakeCluster, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (project / "kubeconfig").read_text()
    (project / "kubeconfig").write_text(config.replace(fake.url, "http://127.0.0.1:1"))
    with pytest.raises(DeploymentError, match="The cluster does not answer, reading inferenceservices/dev-mnist"):
        MODEL.deploy(target="kserve")


def test_a_model_that_is_not_deployed_is_not_found(fake: FakeCluster) -> None:
    with pytest.raises(DeploymentError, match="dev-mnist is not deployed in namespace default"):
        MODEL.deployment(target="kserve")


def test_a_shadow_is_for_this_machine(fake: FakeCluster) -> None:
    MODEL.deploy(target="kserve")
    with pytest.raises(DeploymentError, match="dev-mnist cannot have a shadow here"):
        NEXT.deploy_shadow(target="kserve")


def test_a_service_is_reached_where_the_user_says(fake: FakeCluster) -> None:
    MODEL.deploy(target="kserve")
    deployment = MODEL.deployment(target="kserve", url="http://gateway:8080/")
    assert deployment.url == "http://gateway:8080/v1/models/dev-mnist:predict"
