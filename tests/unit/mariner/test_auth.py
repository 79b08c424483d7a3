from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from mariner.auth import Access, Keys, KeyType, Listener, keys_needed, open_access
from mariner.config import TokenMode
from mariner.errors import BadRequest, ConfigurationError, InternalError, InvalidKey, NotFound

AUTHORIZATION = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
AUTHENTICATION = "Token Authentication failed. Token either incorrect, expired, or not provided correctly"
LOCAL_HOST = {"host": "localhost:8081"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_900_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(tmp_path: Path, clock: Clock) -> Keys:
    return Keys(tmp_path / "key_file.json", lifetime=60.0, clock=clock)


def key_in_file(keys: Keys, name: str) -> str:
    return str(json.loads(keys.path.read_text())[name]["key"])


def bearer(keys: Keys, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_in_file(keys, name)}", "host": "models.example:8081"}


def passes(
    access: Access,
    headers: Mapping[str, str],
    *,
    listener: Listener = Listener.MANAGEMENT,
    peer: str = "10.0.0.7",
    method: str = "GET",
    path: str = "/models",
) -> bool:
    try:
        access.check(listener=listener, peer=peer, headers=headers, method=method, path=path)
    except InvalidKey as error:
        if error.message != AUTHORIZATION:
            raise
        return False
    except BadRequest:
        return False
    return True


# -- key file --------------------------------------------------------------------------------------------------------


def test_the_key_file_has_three_keys_and_two_expiry_times(keys: Keys) -> None:
    content = json.loads(keys.path.read_text())
    assert list(content) == ["management", "inference", "API"]
    assert content["management"]["expiration time"] == "2030-03-17T17:47:40.250000Z"
    assert content["inference"]["expiration time"] == "2030-03-17T17:47:40.250000Z"
    assert list(content["API"]) == ["key"]


def test_the_key_file_is_indented_json(keys: Keys) -> None:
    assert keys.path.read_text().startswith('{\n  "management": {\n    "key": "')


def test_keys_are_long_url_safe_and_differ(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        content = json.loads(Keys(tmp_path / name).path.read_text())
        texts += [entry["key"] for entry in content.values()]
    assert len(set(texts)) == 6
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", text) for text in texts)


def test_the_key_file_is_for_its_owner_only(keys: Keys) -> None:
    assert keys.path.stat().st_mode & 0o777 == 0o600


def test_an_old_key_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    path.write_text("old")
    path.chmod(0o644)
    keys = Keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.opens(KeyType.API, key_in_file(keys, "API"))


def test_a_link_in_the_place_of_the_key_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "key_file.json").symlink_to(victim)
    Keys(tmp_path / "key_file.json")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "key_file.json").is_symlink()


def test_nothing_but_the_key_file_is_left(keys: Keys) -> None:
    keys.renew(KeyType.INFERENCE)
    assert [path.name for path in keys.path.parent.iterdir()] == ["key_file.json"]


def test_a_directory_that_cannot_be_written_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Token Authorization setup unsuccessful: .*No such file"):
        Keys(tmp_path / "none" / "key_file.json")


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").mkdir()
    with pytest.raises(ConfigurationError, match="Token Authorization setup unsuccessful"):
        Keys(tmp_path / "key_file.json")
    assert [path.name for path in tmp_path.iterdir()] == ["key_file.json"]


def test_a_clean_exit_removes_the_key_file(keys: Keys) -> None:
    keys.remove_file()
    keys.remove_file()
    assert not keys.path.exists()


def test_the_key_file_of_another_server_is_not_removed(keys: Keys) -> None:
    other = Keys(keys.path)
    keys.remove_file()
    assert other.opens(KeyType.API, key_in_file(other, "API"))


def test_keys_without_end_still_have_a_time_in_the_file(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "key_file.json", lifetime=float("inf"))
    assert json.loads(keys.path.read_text())["management"]["expiration time"] == "9999-12-31T23:59:59.999999Z"
    assert keys.opens(KeyType.MANAGEMENT, key_in_file(keys, "management"))


def test_given_keys_open_and_stay_out_of_the_file(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "key_file.json", given={KeyType.MANAGEMENT: "from-a-mounted-secret"})
    assert keys.opens(KeyType.MANAGEMENT, "from-a-mounted-secret")
    assert list(json.loads(keys.path.read_text())) == ["inference", "API"]


def test_no_file_is_written_when_all_keys_are_given(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "key_file.json", given=dict.fromkeys(KeyType, "from-a-mounted-secret"))
    assert not keys.path.exists()
    keys.remove_file()


@pytest.mark.parametrize("text", ["short", "sixteen or more but blanks", "sixteen-or-möre-characters", ""])
def test_a_given_key_that_cannot_be_sent_stops_the_server(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigurationError, match="The given inference key cannot be used"):
        Keys(tmp_path / "key_file.json", given={KeyType.INFERENCE: text})


def test_keys_do_not_show_when_printed(keys: Keys) -> None:
    text = key_in_file(keys, "management")
    assert text not in repr(keys)
    assert text not in repr(keys._keys)


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_key_opens_its_own_type_only(keys: Keys) -> None:
    text = key_in_file(keys, "management")
    assert [type_ for type_ in KeyType if keys.opens(type_, text)] == [KeyType.MANAGEMENT]


def test_a_key_that_is_no_ascii_is_wrong(keys: Keys) -> None:
    assert not keys.opens(KeyType.MANAGEMENT, "schlüssel\udcff")


def test_a_key_expires_on_time_and_the_api_key_never(keys: Keys, clock: Clock) -> None:
    management, api = key_in_file(keys, "management"), key_in_file(keys, "API")
    clock.now += 59.9
    assert keys.opens(KeyType.MANAGEMENT, management)
    clock.now += 0.1
    assert not keys.opens(KeyType.MANAGEMENT, management)
    clock.now += 1e9
    assert keys.opens(KeyType.API, api)


def test_an_expired_key_is_mentioned_once_without_its_text(
    keys: Keys, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    text = key_in_file(keys, "management")
    clock.now += 60
    keys.opens(KeyType.MANAGEMENT, "wrong")
    for _ in range(2):
        keys.opens(KeyType.MANAGEMENT, text)
    expected = "The management key expired at 2030-03-17T17:47:40+00:00; /token?type=management renews it."
    assert caplog.messages == [expected]


def test_renewing_replaces_one_key_in_memory_and_file(keys: Keys, clock: Clock) -> None:
    before = json.loads(keys.path.read_text())
    clock.now += 30
    keys.renew(KeyType.INFERENCE)
    after = json.loads(keys.path.read_text())
    assert after["management"] == before["management"]
    assert after["API"] == before["API"]
    assert after["inference"]["expiration time"] > before["inference"]["expiration time"]
    assert not keys.opens(KeyType.INFERENCE, before["inference"]["key"])
    assert keys.opens(KeyType.INFERENCE, after["inference"]["key"])


# -- mode on ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def strict(keys: Keys) -> Access:
    return Access(TokenMode.ON, keys)


def test_mode_on_guards_all_but_metrics(strict: Access) -> None:
    assert [listener for listener in Listener if strict.guards(listener)] == [Listener.INFERENCE, Listener.MANAGEMENT]


def test_mode_on_wants_a_key_from_this_machine_too(strict: Access) -> None:
    assert not passes(strict, LOCAL_HOST, peer="127.0.0.1")
    assert not passes(strict, LOCAL_HOST, peer="127.0.0.1", listener=Listener.INFERENCE, path="/ping")


@pytest.mark.parametrize(
    ("name", "listener", "expected"),
    [
        ("management", Listener.MANAGEMENT, True),
        ("inference", Listener.MANAGEMENT, False),
        ("API", Listener.MANAGEMENT, False),
        ("inference", Listener.INFERENCE, True),
        ("management", Listener.INFERENCE, False),
        ("API", Listener.INFERENCE, False),
    ],
)
def test_each_listener_takes_its_own_key(
    strict: Access, keys: Keys, name: str, listener: Listener, expected: bool
) -> None:
    assert passes(strict, bearer(keys, name), listener=listener) is expected


@pytest.mark.parametrize("form", ["bearer {}", "Bearer{}", "Token {}", "{}", "", "Bearer", "Bearer {} x", " Bearer {}"])
def test_a_malformed_header_is_refused(strict: Access, keys: Keys, form: str) -> None:
    header = form.format(key_in_file(keys, "management"))
    assert not passes(strict, {"authorization": header})


def test_blanks_between_scheme_and_key_do_not_matter(strict: Access, keys: Keys) -> None:
    assert passes(strict, {"authorization": f"Bearer   {key_in_file(keys, 'management')}"})


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("OPTIONS", "/", True),
        ("GET", "/", False),
        ("OPTIONS", "/models", False),
        ("GET", "/api-description", True),
        ("GET", "/api-description/x", False),
        ("GET", "/no-such-path", False),
    ],
)
def test_only_the_api_description_needs_no_key(strict: Access, method: str, path: str, expected: bool) -> None:
    assert passes(strict, {}, method=method, path=path) is expected
    assert passes(strict, {}, method=method, path=path, listener=Listener.INFERENCE) is expected


def test_metrics_need_no_key(strict: Access) -> None:
    assert passes(strict, {}, listener=Listener.METRICS, path="/metrics")


def test_the_token_path_is_left_to_renew_on_the_management_listener_only(strict: Access) -> None:
    assert passes(strict, {}, path="/token")
    assert not passes(strict, {}, path="/token", listener=Listener.INFERENCE)


@pytest.mark.parametrize("path", ["/models/tokenizer", "/models/token", "/token/x", "/tokens"])
def test_paths_that_hold_the_word_token_are_ordinary(strict: Access, path: str) -> None:
    assert not passes(strict, {}, path=path)


def test_a_page_that_has_the_key_may_come_from_anywhere(strict: Access, keys: Keys) -> None:
    assert passes(strict, {**bearer(keys, "management"), "origin": "https://ui.example"})


# -- /token ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["management", "inference"])
def test_the_api_key_renews_the_others(strict: Access, keys: Keys, type_: str) -> None:
    old = key_in_file(keys, type_)
    strict.renew(type_, bearer(keys, "API"))
    assert not keys.opens(KeyType(type_), old)


@pytest.mark.parametrize("type_", ["", "foo", "MANAGEMENT", "API"])
def test_no_other_type_can_be_renewed(strict: Access, keys: Keys, type_: str) -> None:
    before = keys.path.read_text()
    with pytest.raises(InvalidKey, match=AUTHENTICATION):
        strict.renew(type_, bearer(keys, "API"))
    assert keys.path.read_text() == before


@pytest.mark.parametrize("name", ["management", "inference"])
def test_other_keys_renew_nothing(strict: Access, keys: Keys, name: str) -> None:
    with pytest.raises(InvalidKey, match=AUTHENTICATION):
        strict.renew("inference", bearer(keys, name))


def test_renewing_without_a_header_is_refused(strict: Access) -> None:
    with pytest.raises(InvalidKey, match=AUTHENTICATION):
        strict.renew("inference", {})


def test_a_key_that_cannot_be_written_stays_and_the_answer_names_no_path(
    strict: Access, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    headers, old = bearer(keys, "API"), key_in_file(keys, "inference")
    keys.path.unlink()
    keys.path.mkdir()
    with pytest.raises(InternalError) as caught:
        strict.renew("inference", headers)
    assert str(keys.path) not in caught.value.message
    assert str(keys.path) in caplog.text
    assert keys.opens(KeyType.INFERENCE, old)


@pytest.mark.parametrize("mode", [TokenMode.AUTO, TokenMode.OFF])
def test_without_keys_there_is_no_token_path(mode: TokenMode) -> None:
    with pytest.raises(NotFound, match="Requested resource is not found"):
        Access(mode).renew("management", {"authorization": "Bearer x"})


# -- mode auto -------------------------------------------------------------------------------------------------------


@pytest.fixture
def auto(keys: Keys) -> Access:
    return Access(TokenMode.AUTO, keys, names=["Models.Example"], origins=["https://ui.example/"])


def test_mode_auto_guards_management_only(auto: Access) -> None:
    assert [listener for listener in Listener if auto.guards(listener)] == [Listener.MANAGEMENT]
    assert passes(auto, {}, listener=Listener.INFERENCE, path="/predictions/m")
    assert passes(auto, {}, listener=Listener.METRICS, path="/metrics")


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "unix"])
def test_this_machine_needs_no_key(auto: Access, peer: str) -> None:
    assert passes(auto, LOCAL_HOST, peer=peer)


@pytest.mark.parametrize("peer", ["10.0.0.7", "192.168.1.2", "::ffff:10.0.0.7", "2001:db8::1", "fe80::1%eth0", "", "x"])
def test_other_machines_need_the_management_key(auto: Access, keys: Keys, peer: str) -> None:
    assert not passes(auto, LOCAL_HOST, peer=peer)
    assert not passes(auto, bearer(keys, "inference"), peer=peer)
    assert passes(auto, bearer(keys, "management"), peer=peer)


def test_without_keys_other_machines_stay_out() -> None:
    assert not passes(Access(TokenMode.AUTO), {"authorization": "Bearer "})


def test_the_refusal_says_what_to_do(auto: Access) -> None:
    with pytest.raises(InvalidKey) as caught:
        auto.check(listener=Listener.MANAGEMENT, peer="10.0.0.7", headers={}, method="GET", path="/models")
    assert "key_file.json" in caught.value.hint


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8081",
        "localhost.:8081",
        "127.0.0.1:8081",
        "[::1]:8081",
        "192.168.1.2",
        "models.example:8081",
        "",
    ],
)
def test_this_machine_may_use_addresses_and_own_names(auto: Access, host: str) -> None:
    assert passes(auto, {"host": host}, peer="127.0.0.1")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8081", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "a:b:c"]
)
def test_a_rebound_name_is_refused(auto: Access, host: str) -> None:
    assert not passes(auto, {"host": host}, peer="127.0.0.1")


def test_a_unix_socket_may_be_called_by_any_name(auto: Access) -> None:
    assert passes(auto, {"host": "whatever"}, peer="unix")


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("localhost:8081", "http://localhost:8081", True),
        ("LOCALHOST:8081", "http://localhost:8081", True),
        ("localhost", "http://localhost", True),
        ("localhost", "https://localhost:443", True),
        ("127.0.0.1:8081", "http://127.0.0.1:8081", True),
        ("localhost:8081", "https://ui.example", True),
        ("localhost:8081", "https://ui.example:444", False),
        ("localhost:8081", "http://ui.example", False),
        ("localhost:8081", "http://localhost:8888", False),
        ("localhost:8081", "http://127.0.0.1:8081", False),
        ("localhost:8081", "https://evil.example", False),
        ("evil.example:8081", "http://evil.example:8081", False),
        ("localhost:8081", "null", False),
        ("localhost:8081", "", False),
        ("localhost:8081", "localhost:8081", False),
        ("localhost:8081", "file://localhost:8081", False),
        ("localhost:8081", "http://localhost:99999", False),
        ("", "http://localhost:8081", False),
    ],
)
def test_a_page_may_call_if_it_is_ours_or_named(auto: Access, host: str, origin: str, expected: bool) -> None:
    assert passes(auto, {"host": host, "origin": origin}, peer="127.0.0.1", method="POST") is expected


def test_any_origin_does_not_open_mode_auto(keys: Keys) -> None:
    access = Access(TokenMode.AUTO, keys, origins=["*"])
    assert not passes(access, {**LOCAL_HOST, "origin": "https://evil.example"}, peer="127.0.0.1")


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip"])
@pytest.mark.parametrize("peer", ["127.0.0.1", "unix"])
def test_a_forwarded_call_needs_the_key(auto: Access, keys: Keys, peer: str, header: str) -> None:
    assert not passes(auto, {**LOCAL_HOST, header: "203.0.113.9"}, peer=peer)
    assert passes(auto, {**bearer(keys, "management"), header: "203.0.113.9"}, peer=peer)


# -- mode off --------------------------------------------------------------------------------------------------------


def test_mode_off_asks_nobody_for_a_key() -> None:
    access = Access(TokenMode.OFF)
    assert passes(access, {"host": "models.svc"}, peer="10.0.0.7")
    assert passes(access, {"host": "models.svc", "x-forwarded-for": "1.2.3.4"}, peer="127.0.0.1")
    assert passes(access, {}, listener=Listener.INFERENCE, path="/ping")


def test_mode_off_keeps_pages_of_strangers_out_of_management() -> None:
    access = Access(TokenMode.OFF)
    headers = {**LOCAL_HOST, "origin": "https://evil.example"}
    with pytest.raises(BadRequest, match="Web pages of other origins"):
        access.check(listener=Listener.MANAGEMENT, peer="127.0.0.1", headers=headers, method="POST", path="/models")
    assert passes(access, headers, peer="127.0.0.1", listener=Listener.INFERENCE)


def test_mode_off_keeps_rebound_pages_out_of_management() -> None:
    headers = {"host": "evil.example:8081", "origin": "http://evil.example:8081"}
    assert not passes(Access(TokenMode.OFF), headers, peer="127.0.0.1", method="POST")


def test_mode_off_opens_to_any_origin_on_request() -> None:
    access = Access(TokenMode.OFF, origins=["*"])
    assert passes(access, {**LOCAL_HOST, "origin": "https://ui.example"}, peer="127.0.0.1")


# -- model api -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("mode", list(TokenMode))
def test_a_configured_model_api_is_what_it_says(keys: Keys, mode: TokenMode, allowed: bool) -> None:
    access = Access(mode, keys, model_api=allowed)
    assert access.model_api_allowed(peer="10.0.0.7", headers={}) is allowed
    assert access.model_api_allowed(peer="127.0.0.1", headers=LOCAL_HOST) is allowed
    assert access.model_api_allowed(peer="10.0.0.7", headers=bearer(keys, "management")) is allowed


@pytest.mark.parametrize("mode", [TokenMode.AUTO, TokenMode.OFF])
def test_models_are_managed_from_this_machine_by_default(mode: TokenMode) -> None:
    access = Access(mode)
    assert access.model_api_allowed(peer="127.0.0.1", headers=LOCAL_HOST)
    assert access.model_api_allowed(peer="unix", headers={})
    assert not access.model_api_allowed(peer="10.0.0.7", headers=LOCAL_HOST)
    assert not access.model_api_allowed(peer="127.0.0.1", headers={**LOCAL_HOST, "x-forwarded-for": "203.0.113.9"})


@pytest.mark.parametrize("mode", [TokenMode.AUTO, TokenMode.ON])
def test_models_are_managed_with_the_management_key_by_default(keys: Keys, mode: TokenMode) -> None:
    access = Access(mode, keys)
    assert access.model_api_allowed(peer="10.0.0.7", headers=bearer(keys, "management"))
    assert not access.model_api_allowed(peer="10.0.0.7", headers=bearer(keys, "inference"))


# -- start-up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "host", "needed"),
    [
        (TokenMode.ON, "127.0.0.1", True),
        (TokenMode.OFF, "0.0.0.0", False),
        (TokenMode.AUTO, "127.0.0.1", False),
        (TokenMode.AUTO, "localhost", False),
        (TokenMode.AUTO, "::1", False),
        (TokenMode.AUTO, "[::1]", False),
        (TokenMode.AUTO, "unix", False),
        (TokenMode.AUTO, "0.0.0.0", True),
        (TokenMode.AUTO, "::", True),
        (TokenMode.AUTO, "192.168.1.2", True),
        (TokenMode.AUTO, "models.example", True),
    ],
)
def test_keys_are_needed_where_somebody_could_show_one(mode: TokenMode, host: str, needed: bool) -> None:
    assert keys_needed(mode, host) is needed


def test_no_key_file_is_written_where_nobody_needs_it(tmp_path: Path) -> None:
    for mode in (TokenMode.AUTO, TokenMode.OFF):
        open_access(mode, management_host="127.0.0.1", key_file=tmp_path / "key_file.json")
    assert list(tmp_path.iterdir()) == []


def test_mode_off_leaves_an_old_key_file_alone(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("old")
    open_access(TokenMode.OFF, management_host="0.0.0.0", key_file=tmp_path / "key_file.json")
    assert (tmp_path / "key_file.json").read_text() == "old"


def test_mode_on_has_keys_for_an_hour_unless_told_otherwise(tmp_path: Path, clock: Clock) -> None:
    access = open_access(TokenMode.ON, management_host="127.0.0.1", key_file=tmp_path / "key_file.json", clock=clock)
    assert access.keys is not None
    headers = bearer(access.keys, "management")
    clock.now += 3599
    assert passes(access, headers)
    clock.now += 1
    assert not passes(access, headers)


def test_mode_auto_has_keys_for_ever_unless_told_otherwise(tmp_path: Path, clock: Clock) -> None:
    access = open_access(TokenMode.AUTO, management_host="0.0.0.0", key_file=tmp_path / "key_file.json", clock=clock)
    assert access.keys is not None
    headers = bearer(access.keys, "management")
    clock.now += 1e9
    assert passes(access, headers)


def test_a_configured_lifetime_counts_in_mode_auto(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "key_file.json"
    access = open_access(TokenMode.AUTO, management_host="0.0.0.0", key_file=path, lifetime=3.0, clock=clock)
    assert access.keys is not None
    headers = bearer(access.keys, "management")
    clock.now += 3
    assert not passes(access, headers)


def test_a_given_key_opens_a_loopback_listener_behind_a_proxy(tmp_path: Path) -> None:
    given = {KeyType.MANAGEMENT: "from-a-mounted-secret"}
    access = open_access(TokenMode.AUTO, management_host="127.0.0.1", key_file=tmp_path / "k", given=given)
    headers = {"x-forwarded-for": "203.0.113.9", "authorization": "Bearer from-a-mounted-secret"}
    assert passes(access, headers, peer="127.0.0.1")


def test_the_name_the_management_listener_is_bound_to_is_its_own(tmp_path: Path) -> None:
    access = open_access(TokenMode.AUTO, management_host="models.example", key_file=tmp_path / "key_file.json")
    assert passes(access, {"host": "models.example:8081"}, peer="127.0.0.1")


def test_the_log_names_the_key_file_and_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "key_file.json"
    access = open_access(TokenMode.ON, management_host="127.0.0.1", key_file=path)
    assert access.keys is not None
    assert str(path) in caplog.text
    assert key_in_file(access.keys, "management") not in caplog.text


def test_an_open_management_listener_without_keys_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_access(TokenMode.OFF, management_host="0.0.0.0", key_file=tmp_path / "key_file.json")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
