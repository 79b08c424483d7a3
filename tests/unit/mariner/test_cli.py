"""The commands, in front of a stand-in for the server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from mariner import __version__, cli, metrics
from mariner.config import VERSION, Config, reference_page
from mariner.errors import ConfigurationError
from ts.version import __version__ as ts_version

SOURCES = Path(__file__).parents[3] / "src"

# Python imports it at start; it takes the place of the server in the processes that the tests start.
STAND_IN = """
import os, signal, sys, types

def run(config, *, on_ready, on_models_ready, log_files=None):
    from mariner.errors import ConfigurationError
    behaviour = os.environ.get("BEHAVIOUR", "")
    if behaviour == "refuse":
        raise ConfigurationError("Failed to bind to address: http://127.0.0.1:8080", hint="Another program uses it.")
    if behaviour == "fail":
        raise RuntimeError("boom")
    if behaviour == "hang":
        print("hanging", flush=True)
        signal.pause()
    if behaviour == "die":
        os._exit(7)
    if behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print("queue", config.job_queue_size, "models", *config.load_models, flush=True)
    on_ready(["Inference API bind to: http://127.0.0.1:8080", "Management API bind to: http://127.0.0.1:8081"])
    if behaviour == "die after listening":
        os._exit(7)
    print("Model m loaded.", flush=True)
    on_models_ready()
    signal.sigwait({signal.SIGTERM})
    return 3 if behaviour == "end badly" else 0

sys.modules["mariner.serve"] = module = types.ModuleType("mariner.serve")
module.run = run
"""


class Shell:
    """Runs the commands in a directory, with a temporary directory, of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pid_file = path / "tmp" / ".model_server.pid"
        self.log = path / "log"
        self.processes: list[subprocess.Popen[str]] = []
        for name in ("tmp", "stand-in", "store", "bin"):
            (path / name).mkdir()
        (path / "stand-in" / "sitecustomize.py").write_text(STAND_IN)
        for name, function in (("torchserve", "torchserve"), ("mariner", "main")):
            script = f"import sys\nfrom mariner.cli import {function}\nsys.exit({function}())\n"
            (path / "bin" / name).write_text(script)

    def start(self, *words: str, behaviour: str = "", piped: bool = False) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.path / "bin" / words[0]), *words[1:]],
                cwd=self.path,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": f"{self.path / 'stand-in'}:{SOURCES}",
                    "TMPDIR": str(self.path / "tmp"),
                    "BEHAVIOUR": behaviour,
                },
                stdin=subprocess.DEVNULL,
                # Else a file: a server in the background keeps it open after the command has returned.
                stdout=subprocess.PIPE if piped else log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.processes.append(process)
        return process

    def torchserve(self, *words: str, behaviour: str = "") -> int:
        return self.start("torchserve", *words, behaviour=behaviour).wait(30)

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(int(self.pid_file.read_text()))

    def stop(self) -> None:
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            self.server.kill()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working and temporary directory for commands that run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TS_CONFIG_FILE", "TEMP", "LOG_LOCATION", "METRICS_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "store").mkdir()
    return tmp_path


# -- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_start_returns_when_the_listeners_answer_and_the_server_goes_on(shell: Shell) -> None:
    assert shell.torchserve("--start", "--model-store", "store", "--models", "a.mar", "b=c.mar", "--ncs") == 0
    assert "queue 100 models a.mar b=c.mar\n" in shell.output
    lines = [line.rpartition(" - ")[2] for line in shell.output.splitlines()]
    started = lines.index("Model server started.")
    assert lines[started - 2 : started] == [
        "Inference API bind to: http://127.0.0.1:8080",
        "Management API bind to: http://127.0.0.1:8081",
    ]
    assert shell.server.is_running()
    assert os.getsid(shell.server.pid) == shell.server.pid, "a Ctrl-C in the caller's terminal must not reach it"


@pytest.mark.slow
def test_the_listener_lines_appear_once(shell: Shell) -> None:
    shell.torchserve("--start", "--model-store", "store")
    assert shell.output.count("Inference API bind to: http://127.0.0.1:8080") == 1


@pytest.mark.slow
def test_starting_is_the_default(shell: Shell) -> None:
    assert shell.torchserve("--model-store=store") == 0
    assert shell.server.is_running()


@pytest.mark.slow
def test_a_second_server_is_refused(shell: Shell) -> None:
    shell.torchserve("--start", "--model-store", "store")
    first = shell.server.pid
    assert shell.torchserve("--start", "--model-store", "store") == 1
    assert "TorchServe is already running, please use torchserve --stop to stop TorchServe.\n" in shell.output
    assert shell.server.pid == first


@pytest.mark.slow
def test_of_two_starts_at_the_same_instant_one_is_refused(shell: Shell) -> None:
    starts = [shell.start("torchserve", "--start", "--model-store", "store", "--ncs") for _ in range(2)]
    assert sorted(process.wait(30) for process in starts) == [0, 1]
    assert shell.output.count("queue 100 models") == 1
    assert "TorchServe is already running, please use torchserve --stop to stop TorchServe.\n" in shell.output
    assert shell.server.is_running()


@pytest.mark.slow
def test_stop_ends_the_server_and_a_second_stop_finds_none(shell: Shell) -> None:
    shell.torchserve("--start", "--model-store", "store")
    server = shell.server
    assert shell.torchserve("--stop") == 0
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    assert shell.output.endswith("TorchServe has stopped.\n")
    assert not shell.pid_file.exists()
    assert shell.torchserve("--stop") == 0
    assert shell.output.endswith("TorchServe is not currently running.\n")


@pytest.mark.slow
def test_a_server_that_refuses_to_start_says_why(shell: Shell) -> None:
    assert shell.torchserve("--start", "--model-store", "store", behaviour="refuse") == 1
    assert shell.output == "Failed to bind to address: http://127.0.0.1:8080\nAnother program uses it.\n"
    assert not shell.pid_file.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "text"),
    [
        ("fail", "The server has failed: RuntimeError('boom')."),
        ("die", "the server process ended with exit status 7."),
        ("killed", "the server process was killed by SIGKILL."),
    ],
)
def test_a_server_that_ends_while_it_starts_is_noticed(shell: Shell, behaviour: str, text: str) -> None:
    assert shell.torchserve("--start", "--model-store", "store", behaviour=behaviour) == 1
    assert text in shell.output
    assert not shell.pid_file.exists()


@pytest.mark.slow
def test_wait_waits_for_the_models(shell: Shell) -> None:
    assert shell.torchserve("--start", "--wait", "--model-store", "store") == 0
    assert "Model m loaded." in shell.output


@pytest.mark.slow
def test_only_wait_cares_about_what_happens_after_the_listeners_answer(shell: Shell) -> None:
    words = ("--start", "--model-store", "store")
    assert shell.torchserve(*words, "--wait", behaviour="die after listening") == 1
    assert shell.torchserve(*words, behaviour="die after listening") == 0


@pytest.mark.slow
def test_a_stale_pid_file_is_removed(shell: Shell) -> None:
    shell.pid_file.write_text("999999999")
    assert shell.torchserve("--start", "--model-store", "store") == 0
    assert shell.output.startswith("Removing orphan pid file.\n")
    assert shell.server.is_running()


@pytest.mark.slow
def test_files_in_the_working_directory_take_no_module_s_place(shell: Shell) -> None:
    for name in ("mariner", "logging", "json", "ts"):
        (shell.path / f"{name}.py").write_text("raise SystemExit('wrong module')")
    assert shell.torchserve("--start", "--model-store", "store") == 0


@pytest.mark.slow
def test_settings_reach_the_server(shell: Shell) -> None:
    (shell.path / "my.properties").write_text("model_store=store\njob_queue_size=7\nio_ratio=50\n")
    assert shell.torchserve("--start", "--ts-config", "my.properties") == 0
    assert "queue 7" in shell.output
    assert "WARNING serve - Settings of the Java server are accepted and ignored: io_ratio." in shell.output


@pytest.mark.slow
def test_foreground_runs_in_the_same_process(shell: Shell) -> None:
    process = shell.start("torchserve", "--foreground", "--model-store", "store", behaviour="end badly", piped=True)
    assert process.stdout is not None
    assert "Model m loaded.\n" in iter(process.stdout.readline, "")
    assert int(shell.pid_file.read_text()) == process.pid
    assert shell.torchserve("--stop", "--foreground") == 0
    assert shell.output == "", "stopping with --foreground is quiet"
    process.communicate()
    assert process.returncode == 3
    assert not shell.pid_file.exists()


@pytest.mark.slow
def test_foreground_reports_a_refusal(shell: Shell) -> None:
    assert shell.torchserve("--foreground", "--model-store", "store", behaviour="refuse") == 1
    assert shell.output.startswith("Failed to bind to address: http://127.0.0.1:8080\n")
    assert not shell.pid_file.exists()


@pytest.mark.slow
def test_mariner_serve_needs_no_store_and_leaves_no_files(shell: Shell) -> None:
    before = set(shell.path.rglob("*"))
    process = shell.start("mariner", "serve", "--job-queue-size", "5", piped=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "queue 5 models\n"
    assert "Model m loaded.\n" in iter(process.stdout.readline, "")
    process.terminate()
    process.communicate()
    assert process.returncode == 0
    assert {path.name for path in set(shell.path.rglob("*")) - before if "__pycache__" not in path.parts} == {"log"}


@pytest.mark.slow
def test_ctrl_c_while_waiting_for_the_listeners_ends_the_server(shell: Shell) -> None:
    process = shell.start("torchserve", "--start", "--model-store", "store", behaviour="hang", piped=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    server = shell.server
    process.send_signal(signal.SIGINT)
    process.communicate()  # until the server has closed its end too
    assert process.returncode == 130
    assert not server.is_running()
    assert not shell.pid_file.exists()


# -- what is checked before ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "Missing mandatory parameter --model-store\n"),
        (["--model-store", "nowhere"], "--model-store directory not found: nowhere\n"),
        (["--ts-config", "nowhere", "--model-store", "store"], "--ts-config file not found: nowhere\n"),
        (["--model-store", "store", "--workflow-store", "nowhere"], "--workflow-store directory not found: nowhere\n"),
        (["--model-store", "store", "--log-config", "no.xml"], "--log-config file not found: {here}/no.xml\n"),
        (["--model-store", "store", "--cpp-log-config", "no"], "--cpp-log-config file not found: {here}/no\n"),
    ],
)
def test_what_is_missing_is_named(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    assert cli.torchserve(["--start", *words]) == 1
    assert capsys.readouterr().out.startswith(text.format(here=here))


def test_a_store_named_in_a_file_will_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my.properties").write_text("model_store=missing")
    assert cli.torchserve(["--ts-config", "my.properties"]) == 1
    assert capsys.readouterr().out == f"--model-store directory not found: {here / 'missing'}\n"


def test_a_bad_setting_stops_the_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.properties").write_text("job_queue_size=many")
    assert cli.torchserve(["--model-store", "store"]) == 1
    assert capsys.readouterr().out.startswith("Invalid configuration: job_queue_size=many")


def test_a_bad_setting_does_not_stop_the_stop(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.properties").write_text("job_queue_size=many")
    assert cli.torchserve(["--stop"]) == 0
    assert capsys.readouterr().out == "TorchServe is not currently running.\n"


def test_the_temp_directory_must_exist(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMP", "/nowhere")
    assert cli.torchserve(["--model-store", "store"]) == 1
    assert "Invalid temp directory: /nowhere, please check TEMP environment variable.\n" in capsys.readouterr().out


# -- the command lines -----------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_release_we_are_compatible_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.torchserve(["--version"]) == 0
    assert capsys.readouterr().out == f"TorchServe Version is {VERSION}\n"
    assert ts_version == VERSION


@pytest.mark.parametrize(
    "words", [["--start", "--stop"], ["-v", "--start"], ["--nonsense"], ["positional"], ["--model", "a"]]
)
def test_a_wrong_command_line_exits_with_2(here: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.torchserve(words)
    assert caught.value.code == 2


def test_help_names_every_flag_of_torchserve(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.torchserve(["--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    assert not {
        "-h", "--help", "-v", "--version", "--start", "--stop", "--foreground", "--ts-config", "--model-store",
        "--workflow-store", "--models", "--log-config", "--cpp-log-config", "--no-config-snapshots", "--ncs",
        "--plugins-path", "--ppath", "--disable-token-auth", "--dt", "--enable-model-api",
    } - set(words)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "split"),
    [
        (["--start", "--models m=a.mar"], ["--start", "--models", "m=a.mar"]),
        (["--models a.mar b.mar", "c"], ["--models", "a.mar", "b.mar", "c"]),
        (["--model-store", "my store"], ["--model-store", "my store"]),
        (["--model-store=my store"], ["--model-store=my store"]),
    ],
)
def test_a_flag_and_its_values_may_come_in_one_word(words: list[str], split: list[str]) -> None:
    assert cli._split_words(words) == split


def test_flags_survive_the_way_to_the_server() -> None:
    words = [
        "--ts-config",
        "a b",
        "--models",
        "a.mar",
        "m=b.mar",
        "--ncs",
        "--dt",
        "--enable-model-api",
        "--log-config=-x",
    ]
    flags = cli._flags(cli._torchserve_parser().parse_args(words))
    assert cli._flags(cli._torchserve_parser().parse_args(cli._words(flags))) == flags
    assert flags == {
        "tsConfigFile": "a b",
        "load_models": "a.mar,m=b.mar",
        "config_snapshots": "false",
        "disable_token_authorization": "true",
        "enable_model_api": "true",
        "log_config": "-x",
    }


@pytest.fixture
def rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old distribution is installed too."""
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.12.0" if name == "torchserve" else installed(name))


def test_a_torchserve_beside_us_is_mentioned_by_every_command(
    here: Path, rival: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.torchserve(["--version"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "torchserve 0.12.0" in line
    assert "pip uninstall -y torchserve" in line


def test_no_server_starts_beside_a_torchserve(here: Path, rival: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.torchserve(["--model-store", "store"]) == 1
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err.count("pip uninstall -y torchserve") == 2


# -- mariner ---------------------------------------------------------------------------------------------------------


def test_mariner_has_its_own_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"mariner {__version__}\n"


def test_docs_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "docs"]) == 0
    assert capsys.readouterr().out == reference_page()


def test_docs_prints_the_reference_of_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["metrics", "docs"]) == 0
    assert capsys.readouterr().out == metrics.reference_page()


def test_explain_shows_a_value_and_where_it_comes_from(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARINER_JOB_QUEUE_SIZE", "7")
    assert cli.main(["config", "explain", "job_queue_size"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "job_queue_size = 7"
    assert "  from: MARINER_JOB_QUEUE_SIZE" in lines
    assert "  default: 100" in lines


def test_explain_lists_all_settings_and_the_warnings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.properties").write_text("job_queue_siz=5\nkeystore_pass=hunter2")
    assert cli.main(["config", "explain", "--max-connections", "11"]) == 0
    out, err = capsys.readouterr()
    assert "hunter2" not in out
    assert [line.split() for line in out.splitlines() if line.startswith("max_connections")] == [
        ["max_connections", "11", "--max-connections"]
    ]
    assert "Did you mean job_queue_size?" in err


def test_explain_helps_with_a_misspelt_key(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "explain", "modl_store"]) == 1
    assert capsys.readouterr().err == "There is no setting modl_store.\nDid you mean model_store?\n"


def test_ctrl_c_is_an_exit_status(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_flags: object, _environ: object, _cwd: object) -> Config:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_config", interrupted)
    assert cli.main(["serve"]) == 130
    assert cli.torchserve(["--model-store", "store"]) == 130


def test_a_refusal_of_mariner_goes_to_stderr(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_config: Config, _report: object = None, *, with_files: bool) -> int:
        raise ConfigurationError("Failed to bind.", hint="Stop the other one.")

    monkeypatch.setattr(cli, "_run", refused)
    assert cli.main(["serve"]) == 1
    assert capsys.readouterr().err == "Failed to bind.\nStop the other one.\n"
