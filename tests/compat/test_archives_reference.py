"""What archives, archivers and loading were promised, and where each item is proved.

Items are numbered; a test of this file carries the number of its item in its name. ELSEWHERE names the tests of other
folders that prove an item, alone or together with those here.

====  =======================================================================================================
   1  entries and manifest of an archive with model file, weights and handler
   2  layouts of the formats
   3  missing flags end with exit code 2
   4  names of models
   5  an archive that exists, with and without ``--force``
   6  a built-in handler copies nothing
   7  ``dir/h`` and ``dir/h:fn``
   8  ``dir/h.py:fn`` is accepted, where TorchServe fails
   9  directories among the extra files
  10  missing extra files; wildcards without a match
  11  the export path is made; a file is none
  12  unknown runtimes and formats end with exit code 2
  13  requirements and config are recorded by base name
  14  the workflow archiver
  15  by file name; by a path that means nothing here; not a file outside the store
  16  ``..`` anywhere
  17  a URL that no pattern matches
  18  a remote archive is kept, taken once (409, where TorchServe answers 500) and deleted with its model
  19  ``file://``
  20  an unreachable host
  21  a second start takes the archive that the first one fetched
  22  several patterns, in any case, for the whole URL
  23  ``tar.gz`` with a top directory
  24  directories of the store, with and without a lone directory inside
  25  a directory outside the store, where a ``file://`` pattern allows it (TorchServe asks for none)
  26  entries that lead outside
  27  junk (400 even with a name, where TorchServe registers an empty model)
  28  no manifest, but a name and a default handler
  29  no manifest and no name
  30  unknown runtimes
  31  no version
  32  two versions; the same again
  33  kinds of handlers (the first of two classes with ``handle`` is taken, where TorchServe fails)
  34  a handler that lacks a package
  35  built-in handlers
  36  requirements
  37  ``useVenv``
  38  a module of the user's ``PYTHONPATH`` wins over the archive's
  39  the current directory is the model's
  40  ``load_models=all``
  41  ``name=archive``
  42  ``all`` with two versions of a model
  43  nothing is left after a stop
  44  ``TEMP``
====  =======================================================================================================
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_serving import Answer, Client, names_in

from mariner.archive.cli import model_archiver
from mariner.auth import Listener
from mariner.config import load_config
from mariner.serve import Server
from mariner.testing import running_server

TESTS = Path(__file__).parents[1]
ARCHIVE = "unit/mariner/archive/"
READ, WRITE = f"{ARCHIVE}test_archive_read.py::", f"{ARCHIVE}test_archive_write.py::"
EXTRACT, FAILURES = f"{ARCHIVE}test_archive_extract.py::", "integration/test_loading_failures.py::"
ENTRY, NEEDS = "compat/test_handler_api_entry_points.py::", "integration/test_model_dependencies.py::"

ELSEWHERE = {
    1: (f"{WRITE}test_a_model_archive_has_its_files_flat_and_the_manifest_last",),
    2: (f"{WRITE}test_every_format_has_its_layout", f"{WRITE}test_an_archive_that_is_only_stored_is_larger"),
    4: (f"{WRITE}test_a_bad_name_is_refused", f"{WRITE}test_a_good_name_is_accepted"),
    5: (f"{WRITE}test_an_archive_that_exists_is_replaced_only_on_demand",),
    6: (f"{WRITE}test_a_built_in_handler_copies_nothing",),
    7: (f"{WRITE}test_a_handler_is_found_however_it_is_spelled",),
    8: (f"{WRITE}test_a_handler_is_found_however_it_is_spelled",),
    9: (f"{WRITE}test_the_content_of_an_extra_directory_goes_to_the_root",),
    10: (
        f"{WRITE}test_a_missing_extra_file_is_an_error",
        f"{WRITE}test_a_wildcard_that_matches_nothing_is_a_warning",
    ),
    11: (
        f"{WRITE}test_the_export_path_is_made_with_a_warning",
        f"{WRITE}test_an_export_path_that_is_a_file_is_refused",
    ),
    13: (f"{WRITE}test_a_model_archive_has_its_files_flat_and_the_manifest_last",),
    14: (
        f"{WRITE}test_a_workflow_archive_has_its_files_flat_and_its_manifest_last",
        f"{WRITE}test_a_workflow_archive_is_replaced_only_on_demand",
        f"{WRITE}test_a_workflows_export_path_must_exist",
        "e2e/test_archiver_commands.py::test_the_workflow_command_packages_a_workflow",
    ),
    18: (
        f"{READ}test_a_remote_archive_is_fetched_into_the_store_and_goes_with_the_model",
        f"{READ}test_a_remote_archive_whose_name_is_taken_is_a_conflict_and_not_fetched",
    ),
    19: (
        f"{READ}test_an_allowed_file_url_is_copied_into_the_store_and_the_copy_goes_with_the_model",
        f"{READ}test_a_missing_file_url_is_a_failed_download",
    ),
    20: (
        f"{ARCHIVE}test_archive_download.py::test_a_host_that_does_not_listen_is_a_failure",
        f"{FAILURES}test_a_download_that_goes_wrong_leaves_nothing_and_may_be_repeated",
    ),
    21: (
        f"{READ}test_a_start_may_reuse_what_an_earlier_one_fetched",
        f"{FAILURES}test_a_start_removes_what_a_killed_server_left_and_fetches_again",
    ),
    22: (
        f"{READ}test_any_pattern_matches_in_any_case",
        f"{ARCHIVE}test_archive_download.py::test_a_pattern_matches_the_whole_url_in_any_case",
    ),
    23: (f"{READ}test_a_tar_gz_opens",),
    24: (
        f"{READ}test_a_directory_in_the_store_is_linked_and_survives_removal",
        f"{READ}test_a_lone_directory_in_a_directory_is_the_model",
    ),
    25: (f"{READ}test_an_absolute_directory_outside_the_store_must_be_allowed",),
    26: (f"{READ}test_an_entry_that_leads_outside_is_refused", f"{EXTRACT}test_an_entry_that_leads_outside_is_refused"),
    33: (
        f"{ENTRY}test_1_a_function_is_called_without_data_to_load_and_then_with_lists",
        f"{ENTRY}test_2_a_function_may_be_named_and_wins_over_a_class",
        f"{ENTRY}test_3_a_class_needs_no_base_and_is_initialised_once_before_its_first_batch",
        f"{ENTRY}test_7_of_two_classes_the_one_with_handle_is_the_handler",
    ),
    34: (f"{ENTRY}test_9_a_package_that_the_handler_lacks_is_named",),
    35: ("integration/test_builtin_handlers.py::test_detector_and_text_classifier_answer",),
    36: (
        f"{NEEDS}test_two_models_have_different_versions_of_one_package_at_once",
        f"{NEEDS}test_without_the_setting_nothing_is_installed",
        f"{NEEDS}test_a_model_whose_packages_cannot_be_installed_is_not_registered",
    ),
    37: (f"{NEEDS}test_models_with_virtual_environments_run_in_their_own",),
    43: ("integration/test_serving.py::test_the_server_leaves_nothing_behind",),
}

ITEMS = re.findall(r"^ *(\d+)  ", __doc__ or "", flags=re.MULTILINE)
SAYS_HI = "def handle(data, context):\n    return data and ['hi' for _ in data]\n"
WHERE = """import os
import shadowed

def handle(data, context):
    here = os.path.realpath(os.getcwd()) == os.path.realpath(context.system_properties["model_dir"])
    return data and [{"here": here, "files": sorted(os.listdir()), "shadowed": shadowed.WHOSE} for _ in data]
"""


def names_of(path: Path) -> list[str]:
    return re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), flags=re.MULTILINE)


def test_every_item_is_proved() -> None:
    assert [int(item) for item in ITEMS] == list(range(1, 45))
    numbers = [found[1] for name in names_of(Path(__file__)) if (found := re.match(r"test_((?:\d+_)+)", name))]
    here = {int(number) for found in numbers for number in found.split("_") if number}
    assert sorted(here | set(ELSEWHERE)) == list(range(1, 45))


@pytest.mark.parametrize("item", ELSEWHERE)
def test_the_tests_of_other_folders_exist(item: int) -> None:
    for reference in ELSEWHERE[item]:
        path, _, name = reference.partition("::")
        assert name in names_of(TESTS / path), reference


def mar(path: Path, handler: str = SAYS_HI, *, manifest: bool = True, runtime: str = "python", **model: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("h.py", handler)
        archive.writestr("shadowed.py", "WHOSE = 'the archive'\n")
        if manifest:
            document = {"runtime": runtime, "model": {"handler": "h.py", **model}}
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(document))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    place = tmp_path / "store"
    place.mkdir()
    mar(place / "m.mar", modelName="m", modelVersion="2.0")
    mar(place / "again.mar", modelName="m", modelVersion="3.0")
    mar(place / "nameless.mar")
    mar(place / "bare.mar", manifest=False)
    mar(place / "foreign.mar", modelName="foreign", runtime="foo")
    (place / "junk.mar").write_bytes(b"no archive")
    mar(tmp_path / "outside.mar", modelName="outside")
    return place


@pytest.fixture
async def server(store: Path, tmp_path: Path) -> AsyncIterator[Server]:
    async with running_server(model_store=store, temp_dir=tmp_path, default_service_handler="h.py:handle") as server:
        yield server


@pytest.fixture
async def management(server: Server) -> AsyncIterator[Client]:
    client = await Client.connect(server, Listener.MANAGEMENT)
    yield client
    await client.close()


async def predict(server: Server, path: str) -> Answer:
    client = await Client.connect(server)
    answer = await client.ask("POST", f"/predictions/{path}", b"x", Content_Type="text/plain")
    await client.close()
    return answer


FLAGS = {"--model-name": "m", "--version": "1.0", "--handler": "image_classifier"}


@pytest.mark.parametrize("missing", FLAGS)
def test_3_a_missing_flag_ends_with_2(missing: str, tmp_path: Path) -> None:
    words = [word for flag, value in FLAGS.items() if flag != missing for word in (flag, value)]
    with pytest.raises(SystemExit) as ended:
        model_archiver([*words, "--export-path", str(tmp_path)])
    assert ended.value.code == 2


@pytest.mark.parametrize("flag", ["--runtime", "--archive-format"])
def test_12_an_unknown_choice_ends_with_2(flag: str, tmp_path: Path) -> None:
    words = [word for pair in FLAGS.items() for word in pair]
    with pytest.raises(SystemExit) as ended:
        model_archiver([*words, "--export-path", str(tmp_path), flag, "foo"])
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        pytest.param("url=outside.mar", 404, "Model not found at: outside.mar", id="15"),
        pytest.param("url={outside}", 404, "Model not found at: {outside}", id="15 absolute"),
        pytest.param("url=../m.mar", 404, "Relative path is not allowed in url: ../m.mar", id="16"),
        pytest.param("url=x..y.mar", 404, "Relative path is not allowed in url: x..y.mar", id="16 in a name"),
        pytest.param("url=s3://b/m.mar", 404, "Given URL s3://b/m.mar does not match any allowed URL(s)", id="17"),
        pytest.param("url=junk.mar&model_name=j", 400, "Failed to save model: junk.mar: The file is neither", id="27"),
        pytest.param("url=bare.mar", 400, "Model name is not defined.", id="29"),
        pytest.param("url=nameless.mar", 400, "Model name is not defined.", id="29 with manifest"),
        pytest.param("url=foreign.mar", 400, "Runtime is not defined or invalid.", id="30"),
        pytest.param("url=m.mar&runtime=foo", 400, "Invalid RuntimeType value: foo", id="30 in the request"),
    ],
)
async def test_15_16_17_27_29_30_what_cannot_be_registered_says_why(
    server: Server, management: Client, tmp_path: Path, query: str, status: int, message: str
) -> None:
    outside = str(tmp_path / "outside.mar")
    answer = await management.ask("POST", "/models?" + query.replace("{outside}", outside))
    assert answer.status == status
    assert answer.json["message"].startswith(message.replace("{outside}", outside))
    unpacked = server.temp_dir.path / "models"
    assert not unpacked.exists() or names_in(unpacked) == []


@pytest.mark.slow
@pytest.mark.parametrize("url", ["m.mar", "sub/m.mar", "/elsewhere/m.mar"])
async def test_15_an_archive_of_the_store_is_found_by_its_name(server: Server, management: Client, url: str) -> None:
    assert (await management.ask("POST", f"/models?url={url}&initial_workers=1")).status == 200
    assert (await predict(server, "m")).body == b"hi"


@pytest.mark.slow
async def test_28_without_a_manifest_name_and_default_handler_are_enough(server: Server, management: Client) -> None:
    assert (await management.ask("POST", "/models?url=bare.mar&model_name=b&initial_workers=1")).status == 200
    assert (await predict(server, "b")).body == b"hi"


async def test_31_without_a_version_it_is_1_0(server: Server, management: Client) -> None:
    answer = await management.ask("POST", "/models?url=nameless.mar&model_name=n")
    assert answer.status == 200
    assert [found["modelVersion"] for found in (await management.ask("GET", "/models/n")).json] == ["1.0"]


async def test_32_the_first_of_two_versions_is_the_default_and_none_comes_twice(
    server: Server, management: Client
) -> None:
    for url, status in (("m.mar", 200), ("again.mar", 200), ("m.mar", 409)):
        answer = await management.ask("POST", f"/models?url={url}")
        assert answer.status == status
    assert answer.json["message"] == "Model version 2.0 is already registered for model m"
    assert [found["modelVersion"] for found in (await management.ask("GET", "/models/m")).json] == ["2.0"]
    assert {found["modelVersion"] for found in (await management.ask("GET", "/models/m/all")).json} == {"2.0", "3.0"}


@pytest.mark.slow
async def test_38_39_the_users_modules_come_first_and_the_current_directory_is_the_models(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user/shadowed.py").write_text("WHOSE = 'the user'\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "user"), os.environ.get("PYTHONPATH", "")]))
    mar(store / "where.mar", WHERE, modelName="where")
    async with running_server(model_store=store, temp_dir=tmp_path, load_models=("where.mar",)) as server:
        await server.models.wait_until_ready()
        answer = (await predict(server, "where")).json
    assert answer["here"] is True
    assert {"MAR-INF", "h.py", "shadowed.py"} <= {*answer["files"]}
    assert answer["shadowed"] == "the user"


@pytest.mark.slow
async def test_40_41_42_what_is_loaded_at_start(store: Path, tmp_path: Path) -> None:
    (store / ".hidden.mar").write_bytes((store / "m.mar").read_bytes())
    (store / "notes.txt").touch()
    settings: dict[str, Any] = {"model_store": store, "temp_dir": tmp_path, "default_service_handler": "h.py:handle"}
    async with running_server(load_models=("all",), **settings) as server:
        await server.models.wait_until_ready()
        assert [name for name, _ in server.models.list_models()] == ["bare", "m", "nameless"]
        assert {version.version for version in server.models.registry if version.name == "m"} == {"2.0", "3.0"}
        assert (await predict(server, "bare")).body == b"hi"
    async with running_server(load_models=("other=m.mar",), **settings) as server:
        assert [name for name, _ in server.models.list_models()] == ["other"]


async def test_44_temp_moves_what_is_unpacked(store: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    config = load_config({}, {"TEMP": str(tmp_path / "x")}, tmp_path)
    async with running_server(model_store=store, temp_dir=config.temp_dir) as server:
        await server.models.register("m.mar")
        assert server.temp_dir.path.parent == tmp_path / "x"
        assert len(names_in(server.temp_dir.path / "models")) == 1
    assert names_in(tmp_path / "x") == []
