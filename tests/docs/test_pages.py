"""Pages against the repository: links lead somewhere, named things exist, limits are kept."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from mariner import metrics
from mariner.archive import model_config_page
from mariner.batching import POLICIES
from mariner.causes import Cause
from mariner.lifecycle import DEATHS_BEFORE_PARKING, RESTART_DELAYS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
TARGETS = [
    "setup",
    "demo",
    "serve",
    "test",
    "fuzz",
    "fuzz-http",
    "chaos",
    "fmt",
    "lint",
    "check",
    "bench",
    "oracle",
    "docs",
]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


def page(name: str) -> str:
    return (ROOT / name).read_text()


def prose(text: str) -> str:
    """A page without its blocks of code and output."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def output_of(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_the_readme_shows_code_within_thirty_lines() -> None:
    assert "```" in "\n".join(page("README.md").splitlines()[:30])


def test_the_readme_has_at_most_six_hundred_words() -> None:
    assert len(prose(page("README.md")).split()) <= 600


def test_the_architecture_page_has_at_most_two_hundred_lines() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 200


@pytest.mark.parametrize("package", ["mariner", "ts"])
def test_the_code_map_names_every_module(package: str) -> None:
    code_map = ARCHITECTURE.partition(f"### `src/{package}`")[2].partition("\n#")[0]
    base = ROOT / "src" / package
    paths = [path for path in base.iterdir() if not path.name.startswith(("__", "."))]
    paths += [path for folder in ("http", "archive", "engines", "metrics") for path in (base / folder).glob("[!_]*.py")]
    paths = paths if package == "mariner" else [path for path in paths if path.parent == base]
    names = {str(path.relative_to(base)) for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()}
    missing = [name for name in sorted(names) if f"`{name}" not in code_map]
    assert missing == []


@pytest.mark.parametrize("package", ["mariner", "ts"])
def test_the_code_map_names_no_module_that_is_gone(package: str) -> None:
    code_map = ARCHITECTURE.partition(f"### `src/{package}`")[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in code_map.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
    assert named
    assert [name for name in named if not (ROOT / "src" / package / name).exists()] == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/adr/0*.md")), ids=lambda path: path.stem)
def test_a_decision_has_its_three_parts_and_a_place_in_the_list(path: Path) -> None:
    headings = re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequences"]
    assert f"({path.name})" in page("docs/adr/README.md")


def test_make_lists_its_targets() -> None:
    listed = re.findall(r"^  make ([\w-]+)", output_of("make"), flags=re.MULTILINE)
    assert [name for name in listed if name != "help"] == TARGETS


def test_pages_name_only_targets_that_exist() -> None:
    named = {
        name for path in PAGES for name in re.findall(r"(?:`|^)make ([\w-]+)", path.read_text(), flags=re.MULTILINE)
    }
    assert named - set(TARGETS) == set()


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[<>=;\[ ]", requirement)[0] for requirement in wanted} - {project["name"]}
    pinned = {canonical(name) for name in re.findall(r"^([\w.-]+)==", page("constraints.txt"), flags=re.MULTILINE)}
    assert {canonical(name) for name in names} - pinned == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_pin_pytorch_without_a_local_version() -> None:
    assert "torch==2.13.0\n" in page("constraints.txt")


def test_the_page_on_the_model_config_is_what_the_table_gives() -> None:
    assert page("docs/reference/model-config.md") == model_config_page.reference_page(), (
        "run: mariner config docs --model > docs/reference/model-config.md"
    )


def test_the_page_on_metrics_is_what_the_table_gives() -> None:
    assert page("docs/reference/metrics.md") == metrics.reference_page(), (
        "run: mariner metrics docs > docs/reference/metrics.md"
    )


def test_the_page_on_metrics_has_a_row_for_every_metric() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) \|", page("docs/reference/metrics.md"), re.MULTILINE)
    assert rows == [row.name for row in metrics.METRICS]


@pytest.mark.parametrize(
    "extra", sorted(set(re.findall(r"mariner-serve\[(\w+)\]", "".join(map(Path.read_text, PAGES)))))
)
def test_pages_name_only_extras_that_exist(extra: str) -> None:
    assert extra in tomllib.loads(page("pyproject.toml"))["project"]["optional-dependencies"]


def test_the_batching_page_names_the_policies_that_exist() -> None:
    named = re.findall(r"under the policy `(\w+)`", page("docs/explanation/batching.md"), flags=re.IGNORECASE)
    assert sorted(named) == sorted([*POLICIES, "slo"])


def test_the_page_on_dead_workers_tells_the_restart_schedule() -> None:
    text = " ".join(page("docs/how-to/debug-a-dead-worker.md").split())
    assert ", ".join(f"{delay:g}" for delay in RESTART_DELAYS[:6]) + " …" in text
    assert {10: "ten"}[DEATHS_BEFORE_PARKING] + " deaths" in text


def test_the_page_on_dead_workers_explains_each_cause() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", page("docs/how-to/debug-a-dead-worker.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(cause.value for cause in Cause)


@pytest.mark.slow
def test_the_archive_page_lists_the_archivers_flags() -> None:
    help_text = output_of(sys.executable, "-m", "model_archiver", "--help")
    listed = re.findall(r"^\| `(--[\w-]+)`", page("docs/reference/archive-format.md"), flags=re.MULTILINE)
    assert listed
    assert [flag for flag in listed if flag not in help_text] == []


@pytest.mark.slow
def test_pages_use_only_flags_that_torchserve_has() -> None:
    help_text = output_of(sys.executable, "-c", "import sys, mariner.cli; sys.exit(mariner.cli.torchserve(['--help']))")
    used = set()
    for path in PAGES:
        for line in re.findall(r"^torchserve (.+?)(?<!\\)$", path.read_text(), flags=re.MULTILINE | re.DOTALL):
            used.update(re.findall(r"--[\w-]+", line))
    assert used
    assert {flag for flag in used if flag not in help_text} == set()
