"""The container image without a container engine: what the Dockerfile promises, its steps below a temporary directory,
and the entry point as the container would run it. Items 10 to 16 and 19 of the deployment checklist.
"""

from __future__ import annotations

import fnmatch
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import tomllib
from test_log_layout import free_ports
from test_serving import names_in, put_model

from mariner.properties import parse_properties

ROOT = Path(__file__).parents[2]
COMMANDS = Path(sys.executable).parent
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
HOME = "/home/model-server"
READY = "is ready after"  # said of a worker
SECONDS = 30.0  # until something that should happen counts as missing
SHARE = ["unshare", "--map-root-user", "--fork", "--pid", "--mount-proc", "--kill-child"]


# -- the Dockerfile ---------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """An instruction, and the stage it belongs to."""

    stage: str
    name: str
    text: str


def read_steps() -> list[Step]:
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", "")
    steps, stage = [], ""
    for line in filter(str.strip, text.splitlines()):
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            stage = rest.partition(" AS ")[2] or "final"
        steps.append(Step(stage, name, rest.strip()))
    return steps


STEPS = read_steps()


def texts(name: str, stage: str = "final") -> list[str]:
    return [step.text for step in STEPS if step.name == name and step.stage == stage]


def environment_of(stage: str = "final") -> dict[str, str]:
    return dict(word.split("=", 1) for text in texts("ENV", stage) for word in shlex.split(text))


def arguments(stage: str) -> dict[str, str]:
    return {name: value.strip('"') for name, _, value in (text.partition("=") for text in texts("ARG", stage))}


def test_the_image_runs_as_user_1000_in_the_home_of_model_server() -> None:
    assert texts("USER") == ["1000"]
    assert texts("WORKDIR") == [HOME]
    assert any("useradd --uid 1000 --create-home" in text and "model-server" in text for text in texts("RUN"))


def test_the_image_has_the_environment_of_torchserves() -> None:
    assert environment_of() == {
        "PATH": "/home/venv/bin:$PATH", "PYTHONUNBUFFERED": "TRUE", "TEMP": f"{HOME}/tmp",
    }  # fmt: skip


def test_the_image_names_the_five_ports_of_torchserves() -> None:
    assert texts("EXPOSE") == ["8080 8081 8082 7070 7071"]


def test_the_image_starts_the_entry_point_with_serve() -> None:
    assert json.loads(texts("ENTRYPOINT")[0]) == ["/usr/local/bin/dockerd-entrypoint.sh"]
    assert json.loads(texts("CMD")[0]) == ["serve"]
    assert os.access(ENTRYPOINT, os.X_OK)  # COPY keeps the mode


def test_the_default_configuration_binds_every_listener_to_every_interface_at_torchserves_ports() -> None:
    file = parse_properties((ROOT / "docker" / "config.properties").read_text())
    assert {key: found.value for key, found in file.items()} == {
        "inference_address": "http://0.0.0.0:8080",
        "management_address": "http://0.0.0.0:8081",
        "metrics_address": "http://0.0.0.0:8082",
        "grpc_inference_address": "0.0.0.0",
        "grpc_management_address": "0.0.0.0",
        "model_store": f"{HOME}/model-store",
        "workflow_store": f"{HOME}/wf-store",
        "job_queue_size": "1000",
    }


def test_the_base_image_and_pytorch_can_be_chosen() -> None:
    assert arguments("") == {"BASE_IMAGE": "python:3.11-slim"}
    assert {step.text.split()[0] for step in STEPS if step.name == "FROM"} == {"${BASE_IMAGE}"}
    pinned = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert arguments("venv") == {"VARIANT": "cpu", "TORCH_VERSION": pinned[1], "TORCH_INDEX": ""}


@pytest.mark.parametrize(
    ("variant", "index", "expected"),
    [
        ("cpu", "", "--index-url https://download.pytorch.org/whl/cpu torch==2.13.0 torchvision"),
        ("gpu", "", "torch==2.13.0 torchvision"),
        ("gpu", "https://index.example/cu130", "--index-url https://index.example/cu130 torch==2.13.0 torchvision"),
    ],
)
def test_pytorch_comes_from_the_index_of_the_variant(tmp_path: Path, variant: str, index: str, expected: str) -> None:
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    (step,) = (text for text in texts("RUN", "venv") if "torchvision" in text)
    environment = {"VARIANT": variant, "TORCH_INDEX": index, "TORCH_VERSION": "2.13.0", "PATH": f"{tmp_path}:/bin"}
    done = subprocess.run(["/bin/sh", "-c", step], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"install --no-cache-dir {expected}\n"


def test_an_unknown_variant_stops_the_build() -> None:
    (step,) = (text for text in texts("RUN", "venv") if "torchvision" in text)
    done = subprocess.run(
        ["/bin/sh", "-c", step], env={"VARIANT": "tpu", "TORCH_INDEX": ""}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "VARIANT is cpu or gpu, not tpu.\n")


def test_what_is_copied_is_part_of_the_build_context() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line and line[0] != "#"]
    copied = [word for step in STEPS if step.name == "COPY" and "--from" not in step.text for word in sources(step)]
    assert len(copied) >= 6
    for word in copied:
        parents = [word, *map(str, Path(word).parents)]
        verdicts = [
            pattern.startswith("!")
            for pattern in patterns
            if any(fnmatch.fnmatch(path, pattern.lstrip("!")) for path in parents)
        ]
        assert verdicts[-1], word
        assert (ROOT / word).exists()


def sources(step: Step) -> list[str]:
    return [word for word in step.text.split() if not word.startswith("--")][:-1]


def test_the_examples_of_the_dockerfile_carry_the_current_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    named = re.findall(r"-t mariner:([\w.]+)-", (ROOT / "docker" / "Dockerfile").read_text())
    assert named == [version, version]


def test_the_dockerfile_has_no_findings() -> None:
    done = subprocess.run(
        [COMMANDS / "hadolint", "--no-color", ROOT / "docker" / "Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_the_shell_scripts_have_no_findings() -> None:
    scripts = [ENTRYPOINT, *sorted(ROOT.glob("examples/**/*.sh"))]
    done = subprocess.run([COMMANDS / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# -- the image --------------------------------------------------------------------------------------------------------


class Image(NamedTuple):
    """A directory in the place of the image's file system."""

    root: Path
    log: str

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    @property
    def home(self) -> Path:
        return self.path(HOME)

    def inside(self, text: str) -> str:
        """A command whose paths lead below the root."""
        return re.sub(r"(?<![\w./])/(?=(?:src|wheels|home|usr/local/bin)\b)", f"{self.root}/", text)

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the container sees; nothing of ours."""
        environment = {name: self.inside(value) for name, value in environment_of().items()}
        environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
        return {**environment, "HOME": str(self.home), "MODEL_SERVER_HOME": str(self.home)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The steps of the Dockerfile, but for the download of PyTorch; users and owners are noted, not made."""
    root = tmp_path_factory.mktemp("image")
    image = Image(root, "")
    tools = root / "tools"
    tools.mkdir()
    for name, deed in {"useradd": f"mkdir -p {image.home}", "chown": ":"}.items():
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {root}/log\n{deed}\n')
        (tools / name).chmod(0o755)
    needed = root / "needed"
    needed.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():  # all that is installed here, except the project
        if "mariner" not in entry.name.lower() and entry.suffix != ".pth" and not entry.name.startswith("pip"):
            (needed / entry.name).symlink_to(entry)
    environment = {
        **os.environ,
        **{name: value for stage in ("", "venv", "final") for name, value in arguments(stage).items()},
        "PATH": f"{tools}:{root}/home/venv/bin:{COMMANDS}:/usr/bin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: build with what is there
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for step in STEPS:
        if step.name == "COPY":
            copy(image, step)
        elif step.name == "RUN" and "torchvision" not in step.text:
            subprocess.run(["/bin/sh", "-c", image.inside(step.text)], cwd=root, env=environment, check=True)
            if "-m venv" in step.text:
                lend(needed, root / "home/venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix))
    return Image(root, (root / "log").read_text())


def lend(packages: Path, place: Path) -> None:
    """Makes packages visible in an environment, in place of those it began with; pip stays its own."""
    for entry in place.iterdir():
        if entry.is_file():
            entry.unlink()
        elif not entry.name.startswith("pip"):
            shutil.rmtree(entry)
    (place / "needed.pth").write_text(f"{packages}\n")


def copy(image: Image, step: Step) -> None:
    options = [word for word in step.text.split() if word.startswith("--")]
    *names, target = (word for word in step.text.split() if not word.startswith("--"))
    for name in names:
        if any(option.startswith("--from=") for option in options):
            assert name == target  # all stages are below one root here
            assert image.path(name).exists()
            continue
        source, place = ROOT / name, image.path(target)
        place = place / source.name if target.endswith("/") else place
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)


@pytest.fixture
def container(image: Image) -> Iterator[Container]:
    """A fresh home in the image, with free ports in its configuration."""
    for name in names_in(image.home):
        if name not in {"config.properties", "model-store", "wf-store", "tmp"}:
            shutil.rmtree(image.home / name)
    original = (ROOT / "docker" / "config.properties").read_text()
    ports = free_ports(3)
    text = image.inside(original).replace("0.0.0.0", "127.0.0.1")
    for old, new in zip((8080, 8081, 8082), ports, strict=True):
        text = text.replace(f":{old}", f":{new}")
    (image.home / "config.properties").write_text(text)
    yield Container(image, *ports)
    for name in names_in(image.home / "model-store"):
        shutil.rmtree(image.home / "model-store" / name)


class Container(NamedTuple):
    """Runs the entry point."""

    image: Image
    inference: int
    management: int
    metrics: int

    @contextmanager
    def run(self, *words: str, before: tuple[str, ...] = (), **variables: str) -> Iterator[Running]:
        entrypoint = self.image.path("/usr/local/bin/dockerd-entrypoint.sh")
        process = subprocess.Popen(
            [*before, str(entrypoint), *words],
            cwd=self.image.home,
            env={**self.image.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running = Running(process, self, [])
        try:
            yield running
        finally:
            running.end()

    def output(self, *words: str, **variables: str) -> tuple[int, str]:
        with self.run(*words, **variables) as running:
            said, _ = running.process.communicate(timeout=SECONDS)
            return running.process.returncode, said


class Running(NamedTuple):
    """A container that runs."""

    process: subprocess.Popen[str]
    container: Container
    lines: list[str]

    def wait_for(self, text: str) -> str:
        assert self.process.stdout is not None
        watchdog = threading.Timer(SECONDS, os.killpg, (self.process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            for line in self.process.stdout:
                self.lines.append(line)
                if text in line:
                    return line
        finally:
            watchdog.cancel()
        raise AssertionError(f"{text!r} was not said, but: {''.join(self.lines)}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=SECONDS)
        self.lines.append(said)
        return self.process.returncode

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def ask(self, method: str, port: int, path: str, body: str | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "text/plain", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


@pytest.mark.slow
def test_the_user_owns_what_the_server_writes_to(image: Image) -> None:
    assert image.log.splitlines() == [
        "useradd --uid 1000 --create-home --shell /bin/bash model-server",
        f"chown model-server: {image.home}/model-store {image.home}/wf-store {image.home}/tmp",
    ]
    assert names_in(image.home) == ["config.properties", "model-store", "tmp", "wf-store"]
    owners = [text for text in texts("COPY") if "/home/" in text]
    assert all("--chown=model-server:model-server" in text for text in owners)


@pytest.mark.slow
def test_the_environment_of_the_image_has_the_whole_server_and_its_commands(image: Image) -> None:
    (wheel,) = image.path("/wheels").glob("*.whl")
    commands = set(names_in(image.path("/home/venv/bin")))
    assert commands >= {"torchserve", "mariner", "torch-model-archiver", "torch-workflow-archiver", "pip", "pip3"}
    code = "import json, mariner.logs, pathlib; print(mariner.logs.__file__)"
    python = image.path("/home/venv/bin/python")
    done = subprocess.run(
        [python, "-c", code], cwd="/", env=image.environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(image.path("/home/venv"))
    installed = {path.name for path in Path(done.stdout.strip()).parents[1].iterdir()}
    packages = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    site = Path(done.stdout.strip()).parents[2]
    assert [name for name in sorted(packages) if not (site / name).is_file()] == []
    assert "mariner_serve" in wheel.name
    assert "serve.py" in installed


# -- the entry point --------------------------------------------------------------------------------------------------


def tutorial_words(home: Path) -> list[str]:
    """The tutorial's, two of them with a blank inside."""
    return ["torchserve", "--start", "--models my_model=echo", f"--ts-config {home}/config.properties"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["default", "serve", "tutorial", "text", "equals"])
def test_a_server_answers_until_the_container_is_stopped(container: Container, form: str) -> None:
    home = container.image.home
    put_model(home / "model-store", "echo", "echo")
    words = {
        "default": [],
        "serve": ["serve", "--models", "my_model=echo"],
        "tutorial": tutorial_words(home),
        "text": [" ".join(tutorial_words(home))],
        "equals": ["torchserve", "--start", f"--model-store={home}/model-store/", "--models=my_model=echo",
                   f"--ts-config={home}/config.properties"],
    }[form]  # fmt: skip
    with container.run(*words) as running:
        running.wait_for("Model server started")
        if form != "default":
            running.wait_for(READY)
            assert running.ask("POST", container.inference, "/predictions/my_model", "hello") == (200, "hello")
        status, body = running.ask("GET", container.inference, "/ping")
        assert (status, json.loads(body)) == (200, {"status": "Healthy"})
        assert running.ask("GET", container.management, "/models")[0] == 200
        assert running.ask("GET", container.metrics, "/metrics")[0] == 200
        assert running.stop() == 0
    assert "Torchserve stopped." in "".join(running.lines)


@pytest.mark.slow
def test_a_running_request_is_answered_before_the_container_ends(container: Container) -> None:
    home = container.image.home
    running_sign, go_sign = home / "tmp" / "running", home / "tmp" / "go"
    os.mkfifo(running_sign)
    os.mkfifo(go_sign)
    source = f"""
from pathlib import Path
def handle(data, context):
    if data:
        Path({str(running_sign)!r}).write_text("yes")
        Path({str(go_sign)!r}).read_text()
        return ["done"] * len(data)
"""
    put_model(home / "model-store", "waits", source)
    with container.run("serve", "--models", "waits") as running:
        running.wait_for(READY)
        connection = http.client.HTTPConnection("127.0.0.1", container.inference, timeout=SECONDS)
        connection.request("POST", "/predictions/waits", "x")
        assert running_sign.read_text() == "yes"
        running.process.send_signal(signal.SIGTERM)
        running.wait_for("Stopping")
        go_sign.write_text("now")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"done")
        connection.close()
        assert running.process.wait(SECONDS) == 0
    running_sign.unlink()
    go_sign.unlink()


@pytest.mark.slow
def test_words_with_variables_and_quotes_are_read_by_the_shell_and_others_are_left_alone(
    container: Container, tmp_path: Path
) -> None:
    (tmp_path / "torchserve").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (tmp_path / "torchserve").chmod(0o755)
    path = f"{tmp_path}:/bin"
    words = ["torchserve", "--start", "--models $NAME=$NAME.mar", "--ts-config 'a b'", "m=http://host/a.mar?b&c;d"]
    assert container.output(*words, PATH=path, NAME="m") == (
        0, "<--foreground><--start><--models><m=m.mar><--ts-config><a b><m=http://host/a.mar?b&c;d>",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "variables", "expected"),
    [
        ("", {}, "<--foreground><--ts-config><{config}><--disable-token-auth><--ncs>"),
        ("token_authorization = on\n", {}, "<--foreground><--ts-config><{config}><--ncs>"),
        ("disable_token_authorization=false\n", {}, "<--foreground><--ts-config><{config}><--ncs>"),
        ("# token_authorization=on\n", {}, "<--foreground><--ts-config><{config}><--disable-token-auth><--ncs>"),
        ("", {"MARINER_TOKEN_AUTHORIZATION": "auto"}, "<--foreground><--ts-config><{config}><--ncs>"),
    ],
)
def test_serve_asks_nobody_for_a_key_unless_the_configuration_says_who_needs_one(
    container: Container, tmp_path: Path, settings: str, variables: Mapping[str, str], expected: str
) -> None:
    (tmp_path / "torchserve").write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    (tmp_path / "torchserve").chmod(0o755)
    (tmp_path / "config.properties").write_text(settings)
    config = {"MODEL_SERVER_HOME": str(tmp_path), "PATH": f"{tmp_path}:/bin"}
    assert container.output("serve", "--ncs", **config, **variables) == (
        0, expected.format(config=tmp_path / "config.properties"),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["CONFIG_PATH", "TS_CONFIG_FILE"])
def test_a_variable_names_another_configuration(container: Container, tmp_path: Path, variable: str) -> None:
    (port,) = free_ports(1)
    text = (container.image.home / "config.properties").read_text()
    (tmp_path / "config.properties").write_text(text.replace(f":{container.inference}", f":{port}"))
    with container.run("serve", **{variable: str(tmp_path / "config.properties")}) as running:
        running.wait_for("Model server started")
        assert running.ask("GET", port, "/ping")[0] == 200
        assert running.stop() == 0


@pytest.mark.slow
def test_serve_makes_no_keys_and_lets_nobody_elsewhere_register_models(container: Container) -> None:
    put_model(container.image.home / "model-store", "echo", "echo")
    with container.run("serve") as running:
        running.wait_for("Model server started")
        assert "key_file.json" not in names_in(container.image.home)
        elsewhere = {"X-Forwarded-For": "192.0.2.1"}
        assert running.ask("GET", container.management, "/models", **elsewhere)[0] == 200
        assert running.ask("POST", container.management, "/models?url=echo", **elsewhere)[0] == 405
        assert running.ask("POST", container.management, "/models?url=echo")[0] == 200
        assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "-c", "print('a  b')"], (0, "a  b\n")),
        (["sh", "-c", "exit 7"], (7, "")),
        (["echo one && echo two"], (0, "one\ntwo\n")),
        (["echo $WHO is here"], (0, "me is here\n")),
        (["torchserve --version; echo done"], (0, "TorchServe Version is {version}\ndone\n")),
        (["torchserve", "--version"], (0, "TorchServe Version is {version}\n")),
    ],
)
def test_any_other_command_runs_as_it_is_given(
    container: Container, words: list[str], expected: tuple[int, str]
) -> None:
    from mariner.config import VERSION  # noqa: PLC0415 - the version of the checkout is the one installed

    status, said = container.output(*words, WHO="me")
    assert (status, said) == (expected[0], expected[1].format(version=VERSION))


@pytest.mark.slow
def test_the_archiver_writes_into_the_model_store(container: Container) -> None:
    store = container.image.home / "model-store"
    (container.image.home / "tmp" / "handler.py").write_text("def handle(data, context):\n    return data\n")
    words = f"--model-name m --version 1.0 --handler tmp/handler.py --export-path {store}"
    status, said = container.output("torch-model-archiver", *words.split())
    assert (status, said) == (0, "")
    assert names_in(store) == ["m.mar"]
    (store / "m.mar").unlink()
    (container.image.home / "tmp" / "handler.py").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["serve", "--model-store", "/absent"], "--model-store directory not found: /absent"),
        (["torchserve", "--start", "--ts-config /absent.properties"], "--ts-config file not found: /absent.properties"),
        (["torchserve", "--start", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["no-such-command"], "not found"),
    ],
)
def test_a_container_that_cannot_start_ends_with_the_reason(
    container: Container, words: list[str], reason: str
) -> None:
    status, said = container.output(*words)
    assert status != 0
    assert reason in said


@pytest.mark.slow
def test_a_port_that_is_taken_ends_the_container(container: Container) -> None:
    with container.run("serve") as first:
        first.wait_for("Model server started")
        own_place = {"TEMP": str(container.image.root)}  # else it would be refused for its pid file
        status, said = container.output("serve", **own_place)
        assert status == 1
        assert f"127.0.0.1:{container.inference}" in said
        assert first.stop() == 0


def can_share() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*SHARE, "true"], check=False, capture_output=True).returncode
    )


@pytest.mark.slow
def test_the_server_as_first_process_ends_when_told_and_collects_what_handlers_leave(container: Container) -> None:
    if not can_share():
        pytest.skip("this machine lets nobody make a process the first one")
    source = """
import subprocess
def handle(data, context):
    if data:
        subprocess.run(["/bin/sh", "-c", "exec 1>&- 2>&-; sleep 1 & true"], check=True)
        return ["left"] * len(data)
"""
    put_model(container.image.home / "model-store", "leaves", source)
    with container.run("serve", "--models", "leaves", before=tuple(SHARE)) as running:
        running.wait_for(READY)
        for _ in range(5):
            assert running.ask("POST", container.inference, "/predictions/leaves", "x")[0] == 200
        (server,) = psutil.Process(running.process.pid).children()
        assert server.name() in {"torchserve", "python", "python3"}
        left = [child for child in server.children() if child.name() == "sleep"]
        _, forgotten = psutil.wait_procs(left, timeout=SECONDS)
        assert forgotten == []
        server.terminate()
        assert running.process.wait(SECONDS) == 0
    assert left, "the handler left nothing behind"


@pytest.mark.slow
def test_on_a_read_only_file_system_logs_go_to_the_console_and_keys_to_the_temporary_directory(
    container: Container,
) -> None:
    if not can_share():
        pytest.skip("this machine lets nobody mount a file system")
    home = container.image.home
    put_model(home / "model-store", "echo", "echo")
    mount = (
        'mount --bind "$PWD" "$PWD" && mount -o remount,ro,bind "$PWD" && mount -t tmpfs tmpfs tmp && cd "$PWD" && '
        'exec "$0" "$@"'
    )
    before = (*SHARE, "--mount", "/bin/sh", "-c", mount)
    with container.run(*tutorial_words(home), before=before, MARINER_TOKEN_AUTHORIZATION="on") as running:
        place = running.wait_for("need a key: see").split()[-1].rstrip(".")
        assert place == f"{home}/tmp/key_file.json"
        running.wait_for(READY)
        (server,) = psutil.Process(running.process.pid).children()
        keys = json.loads(Path(f"/proc/{server.pid}/root{place}").read_text())
        key = {"Authorization": f"Bearer {keys['inference']['key']}"}
        assert running.ask("POST", container.inference, "/predictions/my_model", "hello", **key) == (200, "hello")
        server.terminate()
        assert running.process.wait(SECONDS) == 0
    assert names_in(home) == ["config.properties", "model-store", "tmp", "wf-store"]
    assert any("logs" in line and "cannot be written" in line for line in running.lines)
