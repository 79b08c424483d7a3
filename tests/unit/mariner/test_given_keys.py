"""Keys that the operator gives: where they are read from, how long they last, and that they show nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from mariner import cli
from mariner.auth import Keys, KeyType, open_access, read_given_keys
from mariner.config import Config, TokenMode, load_config
from mariner.errors import ConfigurationError
from mariner.recipe import worker_environment

KEY = "given-by-the-operator"


def load(place: Path, text: str = "", **environ: str) -> Config:
    (place / "config.properties").write_text(text)
    return load_config({}, environ, place)


@pytest.mark.parametrize("content", [KEY, f"{KEY}\n", f"  {KEY}\r\n"])
def test_a_mounted_file_holds_a_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_bytes(content.encode())
    config = load(tmp_path, "inference_key_file=secret", MARINER_MANAGEMENT_KEY_FILE=str(tmp_path / "secret"))
    assert read_given_keys(config) == {KeyType.MANAGEMENT: KEY, KeyType.INFERENCE: KEY}


def test_a_variable_holds_a_key(tmp_path: Path) -> None:
    assert read_given_keys(load(tmp_path, MARINER_MANAGEMENT_KEY=KEY)) == {KeyType.MANAGEMENT: KEY}


def test_without_settings_no_key_is_given(tmp_path: Path) -> None:
    assert read_given_keys(load(tmp_path, MARINER_MANAGEMENT_KEY="")) == {}


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file or directory."), (b"", "holds no key."), (b" \n", "holds no key."),
     (b"\xff" * 20, "holds no key."), (b"x" * 5000, "holds no key.")],
)  # fmt: skip
def test_a_file_without_a_key_stops_the_start(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_given_keys(load(tmp_path, MARINER_INFERENCE_KEY_FILE=str(path)))
    assert caught.value.message == f"inference_key_file={path} (MARINER_INFERENCE_KEY_FILE) {problem}"


def test_a_key_that_is_given_twice_stops_the_start_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_given_keys(load(tmp_path, f"management_key={KEY}", MARINER_MANAGEMENT_KEY_FILE="secret"))
    file = tmp_path.resolve() / "config.properties"
    assert caught.value.message == (
        f"management_key ({file}, line 1) and management_key_file (MARINER_MANAGEMENT_KEY_FILE) are both set."
    )


@pytest.mark.parametrize(("lifetime", "after_a_year"), [(None, True), (60.0, False)])
def test_a_given_key_expires_only_if_somebody_says_so(
    tmp_path: Path, lifetime: float | None, *, after_a_year: bool
) -> None:
    now = [1e9]
    access = open_access(
        TokenMode.ON,
        management_host="127.0.0.1",
        key_file=tmp_path / "key_file.json",
        lifetime=lifetime,
        given={KeyType.INFERENCE: KEY},
        clock=lambda: now[0],
    )
    assert isinstance(access.keys, Keys)
    assert access.keys.opens(KeyType.INFERENCE, KEY)
    now[0] += 365 * 86400
    assert access.keys.opens(KeyType.INFERENCE, KEY) is after_a_year


@pytest.mark.parametrize(
    ("mode", "type_", "warnings"),
    [
        (TokenMode.ON, KeyType.INFERENCE, []),
        (TokenMode.AUTO, KeyType.MANAGEMENT, []),
        (
            TokenMode.AUTO,
            KeyType.INFERENCE,
            ["The inference key is asked of nobody: predictions need one with token_authorization=on."],
        ),
        (
            TokenMode.OFF,
            KeyType.MANAGEMENT,
            ["Keys were given, but token authorization is off: nobody needs one."],
        ),
    ],
)
def test_a_key_that_protects_nothing_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: TokenMode, type_: KeyType, warnings: list[str]
) -> None:
    open_access(mode, management_host="127.0.0.1", key_file=tmp_path / "key_file.json", given={type_: KEY})
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == warnings


def test_snapshots_leave_a_key_out_and_a_warning_says_so(tmp_path: Path) -> None:
    config = load(tmp_path, f"management_key={KEY}\ninference_key=$$NAME$$\njob_queue_size=7", NAME=KEY)
    assert config.as_written == {"inference_key": "$$NAME$$", "job_queue_size": "7"}
    file = tmp_path.resolve() / "config.properties"
    place = f"management_key ({file}, line 1)"
    says = "is left out of snapshots: a start from one makes a new key. management_key_file keeps it."
    assert config.warnings == (f"{place} {says}",)
    assert load(tmp_path, f"management_key={KEY}\nconfig_snapshots=false").warnings == ()


def test_explain_says_that_there_is_a_key_and_not_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARINER_MANAGEMENT_KEY", KEY)
    assert cli.main(["config", "explain", "management_key"]) == 0
    first, _, origin, *more = capsys.readouterr().out.splitlines()
    assert (first, origin) == ("management_key = ********", "  from: MARINER_MANAGEMENT_KEY")
    assert not any("flag" in line for line in more)
    assert cli.main(["config", "explain", "inference_key"]) == 0
    assert capsys.readouterr().out.startswith("inference_key = unset\n")
    assert cli.main(["config", "explain"]) == 0
    assert KEY not in capsys.readouterr().out
    assert KEY not in repr(load_config({}, {"MARINER_MANAGEMENT_KEY": KEY}, tmp_path))


def test_no_command_line_takes_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--management-key", KEY])
    assert "unrecognized arguments" in capsys.readouterr().err


def test_workers_do_not_get_the_keys_of_the_server() -> None:
    base = {"MARINER_MANAGEMENT_KEY": KEY, "MARINER_INFERENCE_KEY": KEY, "MARINER_KEYSTORE_PASS": KEY, "HOME": "/h"}
    environment = worker_environment(base, Config(), 1)
    assert environment["HOME"] == "/h"
    assert KEY not in environment.values()
