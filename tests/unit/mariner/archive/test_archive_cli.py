from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import model_archiver
from mariner.archive import cli
from mariner.archive.write import ArchiveSpec
from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_packaging import generate_model_archive

NEEDED = ["--model-name", "m", "--version", "1.0", "--handler", "image_classifier"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_flag_has_its_field() -> None:
    values = {
        "--model-name": "m",
        "--version": "1.0",
        "--handler": "h.py",
        "--serialized-file": "s",
        "--model-file": "f",
        "--extra-files": "a,b",
        "--runtime": "python3",
        "--export-path": "e",
        "--model-path": "p",
        "--archive-format": "tgz",
        "--requirements-file": "r",
        "--config-file": "c",
    }
    assert cli.parse_model_arguments([word for pair in values.items() for word in pair] + ["--force"]) == ArchiveSpec(
        "m", "h.py", "1.0", "s", "f", "a,b", "python3", "e", "tgz", True, "r", "c", "p"
    )


def test_flags_have_short_forms_and_unambiguous_prefixes() -> None:
    spec = cli.parse_model_arguments(
        ["--model-n", "m", "-v", "1.0", "--hand", "h.py", "--serial", "s", "-r", "r", "-c", "c", "-f"]
    )
    assert spec == ArchiveSpec("m", "h.py", "1.0", "s", requirements_file="r", config_file="c", force=True)


@pytest.mark.parametrize("missing", ["--model-name", "--version", "--handler"])
def test_a_missing_flag_ends_with_two(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    position = NEEDED.index(missing)
    with pytest.raises(SystemExit) as caught:
        cli.model_archiver(NEEDED[:position] + NEEDED[position + 2 :])
    assert caught.value.code == 2
    assert missing in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--runtime", "foo"], ["--archive-format", "foo"], ["--unknown"]])
def test_a_wrong_flag_ends_with_two(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.model_archiver(NEEDED + words)
    assert caught.value.code == 2


def test_help_ends_with_zero_and_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for command, flags in ((cli.model_archiver, 13), (cli.workflow_archiver, 6)):
        with pytest.raises(SystemExit) as caught:
            command(["--help"])
        assert caught.value.code == 0
        assert len({word for word in capsys.readouterr().out.split() if word.startswith("--")}) >= flags


def test_success_ends_with_zero_and_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.model_archiver(NEEDED) == 0
    assert capsys.readouterr() == ("", "")
    assert Path("m.mar").is_file()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--model-name", "a%b"], "Model name contains special characters."),
        (["--extra-files", "missing"], "File does not exist: missing"),
        (["--serialized-file", "missing.pt"], "[Errno 2] No such file or directory: 'missing.pt'"),
    ],
)
def test_a_mistake_ends_with_one_and_a_text(words: list[str], text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert cli.model_archiver(NEEDED + words) == 1
    assert caplog.records[-1].levelname == "ERROR"
    assert caplog.messages[-1].startswith(text)
    assert caplog.records[-1].exc_info is None


def test_the_workflow_archiver_takes_its_flags(caplog: pytest.LogCaptureFixture) -> None:
    Path("spec.yaml").touch()
    words = ["--workflow-name", "w", "--spec-file", "spec.yaml"]
    assert cli.workflow_archiver(words) == 0
    assert cli.workflow_archiver(words) == 1
    assert caplog.messages[-1].startswith("w.war already exists.")
    assert cli.workflow_archiver([*words, "-f"]) == 0
    assert cli.workflow_archiver([*words, "-f", "--export-path", "nowhere"]) == 1


@pytest.mark.parametrize(("size", "bar"), [(cli.PROGRESS_FROM, True), (1, False)])
def test_a_large_archive_shows_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, size: int, bar: bool) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with cli._progress() as progress:
        assert progress is not None
        progress(size // 2, size)
        progress(size, size)
    assert ("Packaging" in terminal.getvalue()) is bar


def test_no_bar_is_drawn_into_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with cli._progress() as progress:
        assert progress is None


def test_interrupting_ends_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(spec: ArchiveSpec, progress: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "write_model_archive", interrupt)
    assert cli.model_archiver(NEEDED) == 130


# -- the Python interface --------------------------------------------------------------------------------------------


def test_scripts_package_with_a_config_object(work: Path) -> None:
    config = ModelArchiverConfig(
        model_name="m",
        handler="image_classifier",
        version="1.0",
        serialized_file=None,
        model_file=None,
        extra_files=None,
        runtime="python",
        export_path=str(work),
        archive_format="no-archive",
        force=False,
        requirements_file=None,
        config_file=None,
    )
    config.force = True
    assert generate_model_archive(config) == work / "m"
    model_archiver.ModelArchiver.generate_model_archive(config)
    assert (work / "m/MAR-INF/MANIFEST.json").is_file()


def test_scripts_get_an_exception_for_a_mistake() -> None:
    config = model_archiver.ModelArchiverConfig("m", "image_classifier", "1.0", extra_files="missing")
    with pytest.raises(model_archiver.ModelArchiverError, match="File does not exist: missing"):
        model_archiver.generate_model_archive(config)


def test_without_a_config_object_the_command_line_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["torch-model-archiver", *NEEDED])
    assert model_archiver.generate_model_archive() == Path("m.mar")


def test_the_archiver_says_which_release_it_follows() -> None:
    assert model_archiver.__version__ == "0.12.0"
