from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mariner.errors import ConfigurationError
from mariner.launch import ALREADY_RUNNING, PidFile, StartReport, stop

Run = Callable[..., "subprocess.Popen[str]"]

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"
OBEDIENT = "import signal; print('up', flush=True); signal.pause()"


@pytest.fixture
def pid_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PidFile:
    monkeypatch.chdir(tmp_path)
    return PidFile(tmp_path / ".model_server.pid")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs Python code under the name of a program."""
    processes = []

    def run(name: str, code: str) -> subprocess.Popen[str]:
        script = tmp_path / name
        script.write_text(code)
        process = subprocess.Popen([sys.executable, "-S", str(script)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_running_server_is_found(pid_file: PidFile, run: Run) -> None:
    process = run("mariner", OBEDIENT)
    pid_file.write(process.pid)
    server = pid_file.server()
    assert server is not None
    assert server.pid == process.pid


def test_another_program_with_that_number_is_no_server_and_no_orphan(pid_file: PidFile, run: Run) -> None:
    pid_file.write(run("something", OBEDIENT).pid)
    assert pid_file.server() is None
    assert not pid_file.remove_orphan()


def test_a_process_younger_than_the_file_is_no_server(pid_file: PidFile, run: Run) -> None:
    pid_file.write(run("mariner", OBEDIENT).pid)
    os.utime(pid_file.path, (0, 0))
    assert pid_file.server() is None


def test_the_command_itself_is_no_server(pid_file: PidFile) -> None:
    pid_file.write(os.getpid())
    assert pid_file.server() is None


@pytest.mark.parametrize("content", ["", "many", "99999999999999999999", "-1"])
def test_a_damaged_file_is_an_orphan(pid_file: PidFile, content: str) -> None:
    pid_file.path.write_text(content)
    assert pid_file.remove_orphan()
    assert not pid_file.path.exists()


def test_the_file_of_a_process_that_has_ended_is_an_orphan(pid_file: PidFile) -> None:
    pid_file.write(gone_pid())
    assert pid_file.remove_orphan()


def test_where_there_is_no_file_there_is_no_orphan(pid_file: PidFile) -> None:
    assert not pid_file.remove_orphan()


def test_writing_follows_no_link(pid_file: PidFile, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    pid_file.path.symlink_to(victim)
    pid_file.write(5)
    assert victim.read_text() == "precious"
    assert pid_file.path.read_text() == "5"


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        PidFile(tmp_path / "missing" / "pid").write(5)


def test_a_server_removes_only_its_own_record(pid_file: PidFile) -> None:
    pid_file.write(5)
    pid_file.remove(6)
    assert pid_file.path.exists()
    pid_file.remove(5)
    assert not pid_file.path.exists()


def test_stop_waits_until_the_server_is_gone(pid_file: PidFile, run: Run, tmp_path: Path) -> None:
    process = run("mariner", OBEDIENT)
    pid_file.write(process.pid)
    (tmp_path / "key_file.json").touch()
    said: list[str] = []
    assert stop(pid_file, timeout=20, quiet=False, say=said.append, complain=said.append) == 0
    assert said == ["TorchServe has stopped."]
    assert process.poll() is not None
    assert not pid_file.path.exists()
    assert not (tmp_path / "key_file.json").exists()


def test_a_quiet_stop_says_nothing(pid_file: PidFile, run: Run) -> None:
    pid_file.write(run("mariner", OBEDIENT).pid)
    said: list[str] = []
    assert stop(pid_file, timeout=20, quiet=True, say=said.append, complain=said.append) == 0
    assert said == []


def test_stop_does_not_claim_what_is_not_true(pid_file: PidFile, run: Run) -> None:
    process = run("mariner", STUBBORN)
    pid_file.write(process.pid)
    said: list[str] = []
    complaints: list[str] = []
    assert stop(pid_file, timeout=0, quiet=False, say=said.append, complain=complaints.append) == 0
    assert said == ["Stopping TorchServe took too long."]
    assert complaints[0].startswith(f"Process {process.pid} still answers requests. It ends by itself")
    assert complaints[0].endswith(f"kill -9 {process.pid} ends it now.")
    assert process.poll() is None
    assert pid_file.path.exists()


def test_there_may_be_nothing_to_stop(pid_file: PidFile, tmp_path: Path) -> None:
    (tmp_path / "key_file.json").touch()
    said: list[str] = []
    assert stop(pid_file, timeout=0, quiet=False, say=said.append, complain=said.append) == 0
    assert said == ["TorchServe is not currently running."]
    assert (tmp_path / "key_file.json").exists()


def test_a_report_that_nobody_reads_does_no_harm() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    report = StartReport(writer)
    report.ready()
    report.models_ready()
    report.failed("too late")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)


def test_workers_do_not_inherit_the_report() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    StartReport(writer).close()
    reader2, writer2 = os.pipe()
    os.set_inheritable(writer2, True)
    report = StartReport(writer2)
    assert not os.get_inheritable(writer2)
    report.close()
    os.close(reader)
    os.close(reader2)


def test_of_two_starts_at_once_one_waits_and_is_refused(pid_file: PidFile, run: Run) -> None:
    process = run("mariner", OBEDIENT)
    results: list[str] = []
    entered, may_record = threading.Event(), threading.Event()

    def first() -> None:
        with pid_file.claim():
            entered.set()
            may_record.wait(20)
            pid_file.write(process.pid)
            results.append("started")

    def second() -> None:
        try:
            with PidFile(pid_file.path).claim():
                results.append("started too")
        except ConfigurationError as error:
            results.append(error.message)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert entered.wait(20)
    threads[1].start()
    may_record.set()
    for thread in threads:
        thread.join(20)
    assert results == ["started", ALREADY_RUNNING]
    assert [path.name for path in pid_file.path.parent.iterdir() if "pid" in path.name] == [pid_file.path.name]


def test_a_record_that_replaces_that_of_an_orphan_is_not_taken_for_it(pid_file: PidFile, run: Run) -> None:
    process = run("mariner", OBEDIENT)
    pid_file.write(gone_pid())
    removed: list[bool] = []
    with pid_file.claim():  # another command looks for an orphan, which this one is about to replace
        thread = threading.Thread(target=lambda: removed.append(PidFile(pid_file.path).remove_orphan()))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        pid_file.write(process.pid)
    thread.join(20)
    assert removed == [False]
    assert pid_file.server() is not None


def test_stop_leaves_the_record_of_a_server_that_has_been_started_meanwhile(pid_file: PidFile, run: Run) -> None:
    following = run("mariner", OBEDIENT)
    record = f"open({str(pid_file.path)!r}, 'w').write('{following.pid}')"
    ends = f"lambda *_: ({record}, sys.exit())"
    server = run(
        "torchserve",
        f"import signal, sys; signal.signal(signal.SIGTERM, {ends}); print('up', flush=True); signal.pause()",
    )
    pid_file.write(server.pid)
    said: list[str] = []
    assert stop(pid_file, timeout=20, quiet=False, say=said.append, complain=said.append) == 0
    assert said == ["TorchServe has stopped."]
    assert pid_file.path.read_text() == str(following.pid)


def test_a_claim_is_over_with_its_holder(pid_file: PidFile) -> None:
    with pytest.raises(RuntimeError, match="boom"), pid_file.claim():
        raise RuntimeError("boom")
    with pid_file.claim():
        pass
