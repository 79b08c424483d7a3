from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mariner.archive.manifest import Manifest
from mariner.archive.model_config import ModelConfig
from mariner.archive.read import Archive
from mariner.errors import DependenciesFailed
from mariner.package_cache import cache_directory
from mariner.requirements import install_requirements, interpreter, read_plan


def wheel(folder: Path, version: str, *, name: str = "tincture", requires: str = "") -> Path:
    """A package with one module that says its version."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": metadata + (f"Requires-Dist: {requires}\n" if requires else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, content)
    return path


def archive(place: Path, requirements: str, **config: bool) -> Archive:
    place.mkdir(parents=True)
    (place / "requirements.txt").write_text(requirements)
    return Archive(
        url="m.mar",
        model_dir=place,
        manifest=Manifest(requirements_file="requirements.txt"),
        config=ModelConfig(**config),  # type: ignore[arg-type]
        has_config_file=bool(config),
        warnings=(),
        holder=place,
    )


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of pip: without the network, so that a mistake cannot reach for it."""
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    for version in ("1.0", "2.0"):
        wheel(folder, version)
    return folder


def install(
    found: Archive,
    environment: Mapping[str, str],
    tmp_path: Path,
    *,
    enabled: bool = True,
    cache_size: int = 1 << 30,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    with found.held:
        install_requirements(
            "m",
            found,
            enabled=enabled,
            temp_dir=tmp_path,
            cache_size=cache_size,
            environment=environment,
            cancelled=cancelled,
        )


def version_seen(python: str, place: Path) -> str:
    code = "import tincture; print(tincture.VERSION)"
    done = subprocess.run([python, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.slow
def test_packages_lie_in_the_model_directory(wheels: Path, environment: dict[str, str], tmp_path: Path) -> None:
    found = archive(tmp_path / "m", f"--find-links {wheels}\ntincture==1.0\n")
    install(found, environment, tmp_path)
    assert version_seen(sys.executable, found.model_dir) == "1.0"


@pytest.mark.slow
def test_a_second_start_installs_nothing(
    wheels: Path, environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"--find-links {wheels}\ntincture\n"
    install(archive(tmp_path / "one", text), environment, tmp_path)
    for path in wheels.iterdir():
        path.unlink()  # pip could not install them again
    second = archive(tmp_path / "two", text)
    with caplog.at_level("INFO"):
        install(second, environment, tmp_path)
    assert version_seen(sys.executable, second.model_dir) == "2.0"
    assert "Packages of model m are in the cache already." in caplog.text


@pytest.mark.slow
def test_a_wheel_in_the_archive_is_found_and_its_content_counts(environment: dict[str, str], tmp_path: Path) -> None:
    seen = []
    for version in ("1.0", "3.0"):
        found = archive(tmp_path / version, "--find-links packed\ntincture\n")
        wheel(found.model_dir / "packed", version)
        install(found, environment, tmp_path)
        seen.append(version_seen(sys.executable, found.model_dir))
    assert seen == ["1.0", "3.0"]


@pytest.mark.slow
def test_a_requirements_file_may_include_another(wheels: Path, environment: dict[str, str], tmp_path: Path) -> None:
    found = archive(tmp_path / "m", "# what it needs\n-r more/base.txt\n")
    (found.model_dir / "more").mkdir()
    (found.model_dir / "more" / "base.txt").write_text(f"--find-links \\\n  {wheels}\ntincture==1.0  # not 2\n")
    install(found, environment, tmp_path)
    assert version_seen(sys.executable, found.model_dir) == "1.0"


@pytest.mark.slow
def test_hashes_are_checked(wheels: Path, environment: dict[str, str], tmp_path: Path) -> None:
    digest = hashlib.sha256((wheels / "tincture-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    good = archive(tmp_path / "good", f"--find-links {wheels}\ntincture==1.0 --hash=sha256:{digest}\n")
    install(good, environment, tmp_path)
    assert version_seen(sys.executable, good.model_dir) == "1.0"
    bad = archive(tmp_path / "bad", f"--find-links {wheels}\ntincture==2.0 --hash=sha256:{digest}\n")
    with pytest.raises(DependenciesFailed):
        install(bad, environment, tmp_path)


@pytest.mark.slow
def test_what_the_server_has_is_not_installed_again(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    wheel(folder, "1.0", requires="torch")
    wheel(folder, "999.0", name="torch")
    found = archive(tmp_path / "m", f"--find-links {folder}\ntincture\ntorch\n")
    install(found, environment, tmp_path)
    assert {path.name for path in found.model_dir.iterdir()} == {
        "requirements.txt",
        "tincture.py",
        "tincture-1.0.dist-info",
    }


@pytest.mark.slow
@pytest.mark.torch
def test_another_pytorch_is_refused_with_a_way_out(environment: dict[str, str], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "999.0", name="torch")
    found = archive(tmp_path / "m", f"--find-links {tmp_path / 'wheels'}\ntorch==999.0\n")
    with pytest.raises(DependenciesFailed, match="Custom pip package installation failed for model m") as raised:
        install(found, environment, tmp_path)
    assert "useVenv: true" in raised.value.hint


@pytest.mark.slow
def test_a_package_that_does_not_exist_leaves_nothing_behind(
    environment: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = archive(tmp_path / "m", "no-such-package-anywhere==1\n")
    with pytest.raises(DependenciesFailed) as raised:
        install(found, environment, tmp_path)
    assert "No matching distribution found for no-such-package-anywhere==1" in raised.value.hint
    assert str(tmp_path) not in raised.value.hint
    assert "pip failed for model m" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache/mariner/packages").iterdir()] == [".lock"]


@pytest.mark.slow
def test_pip_ends_when_nobody_wants_its_packages(environment: dict[str, str], tmp_path: Path) -> None:
    found = archive(tmp_path / "m", "-r endless.txt\n")
    os.mkfifo(found.model_dir / "endless.txt")  # pip waits for its content for ever
    with pytest.raises(DependenciesFailed):
        install(found, environment, tmp_path, cancelled=lambda: True)


@pytest.mark.slow
def test_a_file_of_the_archive_wins_over_a_package(wheels: Path, environment: dict[str, str], tmp_path: Path) -> None:
    found = archive(tmp_path / "m", f"--find-links {wheels}\ntincture\n")
    (found.model_dir / "tincture.py").write_text("VERSION = 'own'\n")
    install(found, environment, tmp_path)
    assert version_seen(sys.executable, found.model_dir) == "own"


def test_nothing_is_installed_unless_it_is_allowed(environment: dict[str, str], tmp_path: Path) -> None:
    found = archive(tmp_path / "m", "no-such-package-anywhere\n")
    install(found, environment, tmp_path, enabled=False)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_virtual_environment_sees_its_packages_and_those_of_the_server(
    wheels: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    found = archive(tmp_path / "m", f"--find-links {wheels}\ntincture==1.0\n", use_venv=True)
    install(found, environment, tmp_path)
    python = interpreter(found)
    assert python == str(tmp_path / "m" / "venv" / "bin" / "python")
    assert version_seen(python, Path("/")) == "1.0"
    code = "import sys, pytest; print(sys.prefix)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "m" / "venv")


def test_a_model_without_an_environment_of_its_own_runs_in_the_servers(tmp_path: Path) -> None:
    assert interpreter(archive(tmp_path / "m", "")) == sys.executable


def test_the_cache_is_refused_where_others_can_write(tmp_path: Path) -> None:
    place = cache_directory({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path)
    assert place == tmp_path / "mariner" / "packages"
    place.chmod(0o777)
    with pytest.raises(PermissionError, match="somebody else"):
        cache_directory({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path)


def test_without_a_place_for_caches_the_temporary_directory_is_taken(tmp_path: Path) -> None:
    assert cache_directory({}, tmp_path).parent == tmp_path / f"mariner-cache-{os.geteuid()}"


def test_the_plan_names_exact_versions_addresses_and_commits() -> None:
    def item(name: str, **rest: object) -> dict[str, object]:
        return {"metadata": {"name": name, "version": "1.2"}, "download_info": {"url": "file:///x"}, **rest}

    commit = {"url": "https://host/repo", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "python"}
    report = {
        "install": [
            item("plain"),
            item("direct", is_direct=True),
            item("repo", is_direct=True, download_info=commit),
            item("TorchServe"),
            item("hashed", download_info={"url": "x", "archive_info": {"hashes": {"sha256": "00"}}}),
        ]
    }
    assert read_plan(report, hashes=True) == [
        "plain==1.2",
        "direct @ file:///x",
        "repo @ git+https://host/repo@abc#subdirectory=python",
        "hashed==1.2 --hash=sha256:00",
    ]
