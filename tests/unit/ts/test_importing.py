from __future__ import annotations

import collections
import os
from pathlib import Path
from types import ModuleType

import pytest

import ts
from ts.importing import defined_classes, import_class, import_path, list_classes_from_module, require

PACKAGE = Path(ts.__file__).parent
HOME = str(PACKAGE.parent)


def module() -> ModuleType:
    made = ModuleType("made")
    exec(  # what a file with these lines would define
        "from collections import OrderedDict\nclass Zebra: pass\nclass Ape(Zebra): pass\nalias = Zebra", vars(made)
    )
    return made


def test_classes_are_listed_alphabetically_without_imported_ones() -> None:
    assert [cls.__name__ for cls in list_classes_from_module(module())] == ["Ape", "Zebra", "Zebra"]


def test_classes_are_filtered_by_their_parent() -> None:
    made = module()
    assert list_classes_from_module(made, made.Ape) == [made.Ape]


def test_defined_classes_come_once_in_the_order_of_the_file() -> None:
    assert [cls.__name__ for cls in defined_classes(module())] == ["Zebra", "Ape"]


def test_a_class_belongs_where_its_module_attribute_says() -> None:
    made = ModuleType("made")
    cls = type("Factory", (), {"__module__": "made"})
    made.handler = cls  # type: ignore[attr-defined]
    assert defined_classes(made) == list_classes_from_module(made) == [cls]


@pytest.mark.parametrize(
    ("name", "prefix"), [("collections.OrderedDict", None), ("OrderedDict", "collections"), ("abc.Set", "collections")]
)
def test_a_class_is_imported_by_name(name: str, prefix: str | None) -> None:
    assert import_class(name, prefix) in {collections.OrderedDict, collections.abc.Set}


@pytest.mark.parametrize("name", ["", "OrderedDict", "collections.Missing", "collections.namedtuple", "no_such.Thing"])
def test_a_name_that_is_no_class_is_an_import_error(name: str) -> None:
    with pytest.raises(ImportError):
        import_class(name)


def test_the_model_comes_after_the_inherited_path_and_before_the_rest(tmp_path: Path) -> None:
    path, inherited = import_path(
        ["/usr/lib/python3", "/mine"], inherited="/mine:/other", model_dir=str(tmp_path), handler="handler.py"
    )
    assert path == ["/mine", "/other", str(tmp_path), HOME, "/usr/lib/python3"]
    assert inherited == os.pathsep.join(path[:-1])


def test_the_directory_of_a_handler_with_a_function_comes_first(tmp_path: Path) -> None:
    path, _ = import_path([], inherited="/mine", model_dir=str(tmp_path), handler="code/handler.py:run")
    assert path[:3] == [str(tmp_path / "code"), "/mine", str(tmp_path)]


def test_a_linked_model_brings_the_directory_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "net"
    link.symlink_to(tmp_path / "real")
    path, _ = import_path([], inherited="", model_dir=str(link), handler="handler.py")
    assert path[:2] == [str(tmp_path / "real"), str(tmp_path / "links")]


def test_the_folder_of_the_package_is_never_on_the_path(tmp_path: Path) -> None:
    path, inherited = import_path(
        [str(PACKAGE), "/lib"], inherited=str(PACKAGE), model_dir=str(tmp_path), handler="handler.py"
    )
    assert path == [str(tmp_path), HOME, "/lib"]
    assert str(PACKAGE) not in inherited.split(os.pathsep)


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ImportError, match=r"^Cats need a package that is missing: pip install cats-package$") as caught:
        require("no_such_cats.attr", "cats-package", "Cats need")
    assert caught.value.name == "no_such_cats"


def test_a_package_without_the_module_is_another_version() -> None:
    with pytest.raises(ImportError, match=r"pip install cats\. What is installed has no module json\.cats"):
        require("json.cats", "cats", "Cats need")


def test_what_a_package_itself_lacks_is_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_cats.py").write_text("import whiskers_of_cats")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'whiskers_of_cats'"):
        require("broken_cats", "cats", "Cats need")
