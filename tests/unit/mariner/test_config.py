from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from mariner.config import (
    SETTINGS,
    VERSION,
    Address,
    BatchingPolicy,
    Config,
    MetricsMode,
    Source,
    TokenMode,
    find_setting,
    format_value,
    load_config,
    reference_page,
)
from mariner.errors import ConfigurationError

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a configuration from the text of a file, flags and environment."""

    def load(text: str = "", flags: Mapping[str, str] | None = None, **environ: str) -> Config:
        (tmp_path / "config.properties").write_text(text, encoding="utf-8")
        return load_config(flags or {}, environ, tmp_path)

    return load


# -- the table -------------------------------------------------------------------------------------------------------


def test_without_any_setting_the_defaults_of_torchserve_hold(load: Load) -> None:
    config = load()
    assert str(config.inference_address) == "http://127.0.0.1:8080"
    assert str(config.management_address) == "http://127.0.0.1:8081"
    assert str(config.metrics_address) == "http://127.0.0.1:8082"
    assert (config.job_queue_size, config.max_request_size, config.default_response_timeout) == (100, 6553500, 120)
    assert (config.model_store, config.load_models, config.models) == (None, (), {})


def test_defaults_that_differ_from_torchserve(load: Load) -> None:
    config = load()
    assert config.metrics_mode is MetricsMode.PROMETHEUS
    assert config.token_authorization is TokenMode.AUTO
    assert config.enable_model_api is None
    assert config.batching_policy is BatchingPolicy.EAGER


def test_a_config_can_be_made_without_a_file() -> None:
    config = Config(inference_address=Address.parse("http://127.0.0.1:0"), job_queue_size=3)
    assert (config.job_queue_size, config.origin("job_queue_size").source) == (3, Source.DEFAULT)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().job_queue_size = 1  # type: ignore[misc]


def test_every_setting_is_a_field_with_a_text_and_a_readable_default() -> None:
    assert list(SETTINGS) == [spec.name for spec in fields(Config) if "setting" in spec.metadata]
    for setting in SETTINGS.values():
        assert setting.doc.endswith("."), setting.key
        assert not (callable(setting.default) and not setting.shown), setting.key


def test_no_two_settings_share_a_flag_or_variable() -> None:
    flags = [name for setting in SETTINGS.values() if setting.flag for name in setting.flag.names]
    variables = [setting.env for setting in SETTINGS.values() if setting.env]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


@pytest.mark.parametrize(
    ("key", "variable"),
    [
        ("job_queue_size", "TS_JOB_QUEUE_SIZE"),
        ("token_expiration_min", "TS_TOKEN_EXPIRATION_TIME_MIN"),
        ("ts_header_key_sequence_id", "TS_HEADER_KEY_SEQUENCE_ID"),
        ("models", None),
        ("model_snapshot", None),
        ("enable_envvars_config", None),
        ("use_env_allowed_urls", None),
        ("metric_time_interval", None),
        ("io_ratio", None),
        ("vmargs", None),
        ("batching_policy", None),
    ],
)
def test_torchserve_variables_have_torchserve_names(key: str, variable: str | None) -> None:
    assert SETTINGS[key].env == variable


def test_the_reference_page_is_the_committed_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "run: mariner config docs > docs/reference/configuration.md"
    )


def test_the_reference_page_has_a_row_for_every_setting() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", reference_page(), re.MULTILINE)
    assert rows == list(SETTINGS)


# -- which value counts ----------------------------------------------------------------------------------------------


def test_the_file_in_the_working_directory_is_read(load: Load, tmp_path: Path) -> None:
    config = load("job_queue_size=7")
    assert config.job_queue_size == 7
    assert str(config.origin("job_queue_size")) == f"{tmp_path / 'config.properties'}, line 1"
    assert config.tsConfigFile == tmp_path / "config.properties"


def test_the_file_of_the_flag_is_read_instead(load: Load, tmp_path: Path) -> None:
    (tmp_path / "other.properties").write_text("max_connections=5")
    config = load("job_queue_size=7", {"tsConfigFile": "other.properties"})
    assert (config.job_queue_size, config.max_connections) == (100, 5)


def test_the_file_of_the_variable_wins_over_that_of_the_flag(load: Load, tmp_path: Path) -> None:
    (tmp_path / "flag.properties").write_text("job_queue_size=1")
    (tmp_path / "variable.properties").write_text("job_queue_size=2")
    config = load("", {"tsConfigFile": "flag.properties"}, TS_CONFIG_FILE=str(tmp_path / "variable.properties"))
    assert config.job_queue_size == 2


@pytest.mark.parametrize("environ", [{}, {"TS_CONFIG_FILE": "missing"}])
def test_a_file_that_does_not_exist_is_an_error(load: Load, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^--ts-config file not found: missing$"):
        load("", {} if environ else {"tsConfigFile": "missing"}, **environ)


def test_a_flag_wins_over_our_variable_and_the_file(load: Load) -> None:
    config = load("model_store=/file", {"model_store": "/flag"}, MARINER_MODEL_STORE="/variable")
    assert config.model_store == Path("/flag")
    assert str(config.origin("model_store")) == "--model-store"


def test_our_variable_wins_over_the_file(load: Load) -> None:
    config = load("job_queue_size=1", MARINER_JOB_QUEUE_SIZE="2")
    assert config.job_queue_size == 2
    assert str(config.origin("job_queue_size")) == "MARINER_JOB_QUEUE_SIZE"


def test_torchserve_variables_win_over_flags_where_they_are_enabled(load: Load) -> None:
    config = load("enable_envvars_config=TRUE", {"model_store": "/flag"}, TS_MODEL_STORE="/ts")
    assert config.model_store == Path("/ts")
    assert config.origin("model_store").source is Source.TORCHSERVE_ENVIRONMENT


def test_torchserve_variables_do_not_count_otherwise(load: Load) -> None:
    assert load("", TS_JOB_QUEUE_SIZE="7").job_queue_size == 100


def test_a_torchserve_variable_can_turn_off_what_a_flag_turned_on(load: Load) -> None:
    config = load(
        "enable_envvars_config=true",
        {"disable_token_authorization": "true"},
        TS_DISABLE_TOKEN_AUTHORIZATION="false",
    )
    assert config.token_authorization is TokenMode.ON


def test_allowed_urls_of_the_environment_need_a_second_permission(load: Load) -> None:
    refused = load("enable_envvars_config=true", TS_ALLOWED_URLS="https://a/.*")
    allowed = load("enable_envvars_config=true\nuse_env_allowed_urls=TRUE", TS_ALLOWED_URLS="https://a/.*")
    assert not refused.is_set("allowed_urls")
    assert [pattern.pattern for pattern in allowed.allowed_urls] == ["https://a/.*"]


def test_the_variable_of_the_open_inference_protocol_always_counts(load: Load) -> None:
    assert load("", TS_OPEN_INFERENCE_PROTOCOL="oip").ts_open_inference_protocol
    assert not load("ts_open_inference_protocol=true", TS_OPEN_INFERENCE_PROTOCOL="v2").ts_open_inference_protocol


def test_log_directories_come_from_their_variables(load: Load, tmp_path: Path) -> None:
    config = load("", LOG_LOCATION="/var/log/models")
    assert (config.log_location, config.metrics_location) == (Path("/var/log/models"), tmp_path / "logs")


def test_the_workflow_store_is_the_model_store_unless_it_is_set(load: Load) -> None:
    assert load("model_store=/models").workflow_store == Path("/models")
    assert load("model_store=/models\nworkflow_store=/flows").workflow_store == Path("/flows")


def test_the_drain_timeout_follows_the_unregister_timeout(load: Load) -> None:
    assert load("unregister_model_timeout=5").drain_timeout == 5
    assert load("unregister_model_timeout=5\ndrain_timeout=7").drain_timeout == 7


def test_what_the_server_finds_out_itself_cannot_be_set_by_a_file(load: Load) -> None:
    config = load("version=0.9\npython=/usr/bin/python2\ntsConfigFile=/elsewhere")
    assert (config.version, config.python) == (VERSION, sys.executable)
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", TokenMode.AUTO),
        ("disable_token_authorization=true", TokenMode.OFF),
        ("disable_token_authorization=false", TokenMode.ON),
        ("token_authorization=on", TokenMode.ON),
        ("token_authorization=auto\ndisable_token_authorization=true", TokenMode.AUTO),
    ],
)
def test_the_token_switch_of_torchserve_chooses_the_mode(load: Load, text: str, mode: TokenMode) -> None:
    assert load(text).token_authorization is mode


def test_the_flag_that_turns_tokens_off_wins_over_the_mode_in_the_file(load: Load) -> None:
    config = load("token_authorization=on", {"disable_token_authorization": "true"})
    assert config.token_authorization is TokenMode.OFF


# -- how values are read ---------------------------------------------------------------------------------------------


def test_variables_in_values_are_replaced(load: Load) -> None:
    config = load("model_store=$$ROOT$$/$$NAME$$", ROOT="/data", NAME=r"a\1$x")
    assert config.model_store == Path(r"/data/a\1$x")


def test_a_variable_that_is_not_set_is_an_error(load: Load) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Invalid configuration: Invalid Environment Variable NOWHERE$"
    ) as caught:
        load("\nmodel_store=$$NOWHERE$$")
    assert "line 2" in caught.value.hint


def test_values_of_variables_are_not_replaced_again(load: Load) -> None:
    assert load("", MARINER_SERVICE_ENVELOPE="$$HOME$$").service_envelope == "$$HOME$$"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("TRUE ", True), ("false", False), ("2", False)])
def test_switches_of_torchserve_are_on_with_true_alone(load: Load, text: str, value: bool) -> None:
    assert load(f"disable_system_metrics={text}").disable_system_metrics is value


def test_a_switch_of_torchserve_that_reads_neither_true_nor_false_is_pointed_out(load: Load) -> None:
    assert "disable_system_metrics=yes" in load("disable_system_metrics=yes").warnings[0]


def test_our_own_switches_take_more_words_and_refuse_the_rest(load: Load) -> None:
    assert load("pass_query_parameters=yes").pass_query_parameters
    assert not load("pass_query_parameters=0").pass_query_parameters
    with pytest.raises(ConfigurationError, match="Expected true or false"):
        load("pass_query_parameters=maybe")


def test_blanks_around_values_do_not_count(load: Load) -> None:
    assert load("job_queue_size=5 \t\nenable_metrics_api = false ").job_queue_size == 5


@pytest.mark.parametrize("value", ["abc", "1.5", "1_000", "0x10", "٣", "9" * 30, "0", "-1"])
def test_a_bad_number_is_refused_and_named(load: Load, tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(f"# comment\njob_queue_size={value}")
    assert caught.value.message == (
        f"Invalid configuration: job_queue_size={value} ({tmp_path / 'config.properties'}, line 2): "
        "Expected a whole number of at least 1 (requests)."
    )


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-1", "1,5"])
def test_a_bad_time_is_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigurationError, match="Expected a number of at least 0"):
        load(f"default_response_timeout={value}")


def test_times_may_be_fractions(load: Load) -> None:
    assert load("default_response_timeout=0.25").default_response_timeout == 0.25


def test_an_empty_value_leaves_the_default_and_nobody_has_set_it(load: Load) -> None:
    config = load("allowed_urls=https://a/.*", MARINER_ALLOWED_URLS="", MARINER_JOB_QUEUE_SIZE="")
    assert config.job_queue_size == 100
    assert not config.is_set("allowed_urls")
    assert config.allowed_urls == SETTINGS["allowed_urls"].default


def test_items_of_lists_are_trimmed(load: Load) -> None:
    assert load("load_models=a.mar, b=c.mar ,").load_models == ("a.mar", "b=c.mar")


def test_paths_start_at_the_working_directory(load: Load, tmp_path: Path) -> None:
    assert load("model_store=models/../store").model_store == tmp_path / "store"


def test_addresses_get_the_ports_of_their_listener(load: Load) -> None:
    config = load("inference_address=http://127.0.0.1\nmanagement_address=https://127.0.0.1")
    assert (config.inference_address.port, config.management_address.port) == (80, 8444)


def test_a_bad_address_is_refused(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"inference_address=ftp://x .*Invalid binding address: ftp://x"):
        load("inference_address=ftp://x")


def test_url_patterns_ignore_case_and_match_as_a_whole(load: Load) -> None:
    pattern = load("allowed_urls=https://example.org/.*").allowed_urls[0]
    assert pattern.fullmatch("HTTPS://example.org/a.mar")


def test_a_bad_pattern_is_refused(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"blacklist_env_vars=.* Expected a regular expression"):
        load("blacklist_env_vars=*SECRET")


def test_models_are_read_from_several_lines(load: Load) -> None:
    config = load('models={\\\n  "m": {\\\n    "1.0": {"batchSize": 4}\\\n  }\\\n}')
    assert config.models == {"m": {"1.0": {"batchSize": 4}}}


@pytest.mark.parametrize("value", ['{"m"', "[]", '{"m": 1}', '{"m": {"1.0": 3}}', "[" * 100_000])
def test_malformed_models_are_refused(load: Load, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^Invalid configuration: models"):
        load(f"models={value}")


def test_an_unknown_mode_names_the_modes(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"batching_policy=lazy .*Expected eager or fill"):
        load("batching_policy=lazy")


@pytest.mark.parametrize(
    ("line", "key"), [("metrics_mode=bogus", "metrics_mode"), ("token_expiration_min=abc", "token_expiration_min")]
)
def test_what_torchserve_lets_pass_is_a_warning(load: Load, line: str, key: str) -> None:
    config = load(line)
    assert not config.is_set(key)
    assert line in config.warnings[0]


def test_secrets_are_not_shown(load: Load) -> None:
    config = load("keystore_pass=hunter2")
    assert config.keystore_pass == "hunter2"
    assert "hunter2" not in repr(config)
    assert format_value(SETTINGS["keystore_pass"], config.keystore_pass) == "********"


def test_the_other_name_of_a_key_sets_it_too(load: Load) -> None:
    assert load("model_api_enabled=true").enable_model_api is True
    assert find_setting("model_api_enabled") is SETTINGS["enable_model_api"]


READABLE = [key for key, row in SETTINGS.items() if not (row.derived or row.secret or row.type is Path)]


@pytest.mark.parametrize("key", READABLE)
def test_a_default_can_be_written_and_read_back(load: Load, key: str) -> None:
    default = getattr(Config(), key)
    assert getattr(load(f"{key}={format_value(SETTINGS[key], default)}"), key) == default


# -- warnings --------------------------------------------------------------------------------------------------------


def test_settings_of_the_java_server_get_one_warning_together(load: Load) -> None:
    config = load("vmargs=-Xmx4g\nio_ratio=50\nnetty_client_threads=abc\nasync_logging=true\nNUM_WORKERS=1")
    texts = [text for text in config.warnings if text.startswith("Settings of the Java server")]
    assert texts == [
        "Settings of the Java server are accepted and ignored: NUM_WORKERS, async_logging, io_ratio, vmargs."
    ]


def test_unknown_keys_are_kept_and_pointed_out(load: Load) -> None:
    config = load("job_queue_siz=5\nfavourite_colour=blue")
    assert config.unknown == {"job_queue_siz": "5", "favourite_colour": "blue"}
    assert "Did you mean job_queue_size?" in config.warnings[0]
    assert config.warnings[1].endswith("line 2) is ignored.")


def test_a_misspelt_variable_is_pointed_out(load: Load) -> None:
    assert load("", MARINER_JOB_QUEUE_SIZ="5").warnings == (
        "Unknown variable MARINER_JOB_QUEUE_SIZ is ignored. Did you mean MARINER_JOB_QUEUE_SIZE?",
    )


def test_variables_that_kubernetes_sets_for_a_service_are_not_mentioned(load: Load) -> None:
    config = load(
        "", MARINER_PORT="tcp://10.0.0.1:80", MARINER_SERVICE_HOST="10.0.0.1", MARINER_PORT_80_TCP_ADDR="10.0.0.1"
    )
    assert config.warnings == ()


def test_settings_that_do_nothing_yet_are_named(load: Load) -> None:
    assert load("grpc_inference_port=7070").warnings == (
        "Settings without effect in this version: grpc_inference_port.",
    )


def test_a_temp_directory_must_exist(load: Load) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Invalid temp directory: /nowhere, please check TEMP environment variable.$"
    ):
        load("", TEMP="/nowhere")


def test_a_file_in_latin1_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.properties").write_bytes("model_store=/modèles".encode("latin-1"))
    assert load_config({}, {}, tmp_path).model_store == Path("/modèles")


def test_a_damaged_file_is_refused_with_its_line(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.properties, line 1: .*four hexadecimal digits"):
        load("model_store=C:\\users")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/proc/[0-9]+/mem cannot be read"):
        load_config({"tsConfigFile": "/proc/self/mem"}, {}, tmp_path)


def test_what_can_be_no_path_is_refused(load: Load) -> None:
    with pytest.raises(ConfigurationError, match="Expected a path"):
        load("model_store=a\0b")


@pytest.mark.parametrize("text", ["log_config=log4j2.xml", "vmargs=-Dlog4j.configurationFile=file:///etc/log4j2.xml"])
def test_a_log4j_configuration_gets_one_warning_that_names_what_to_use(load: Load, text: str) -> None:
    (warning,) = (text for text in load(text).warnings if "og4j" in text or "log_config" in text)
    assert warning.startswith("The Log4j configuration is not read. log_level and log_levels choose")


def test_levels_of_loggers_come_as_a_list(load: Load) -> None:
    assert load("log_levels=mariner.pool=debug, MODEL_LOG=error").log_levels == (
        "mariner.pool=debug",
        "MODEL_LOG=error",
    )
