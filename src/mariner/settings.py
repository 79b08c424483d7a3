"""The table of server settings. How values are found and read is in :mod:`mariner.config`.

A setting is one field of :class:`Config`, named exactly like its key. Its type, default, command line flag,
environment variable and page in the reference all come from that one row.
"""

# ruff: noqa: RUF009 - setting() makes dataclass fields

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum, IntEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Concatenate, Final, ParamSpec, get_args, get_origin, get_type_hints

from mariner import __version__
from mariner.address import Address, Scheme

__all__ = [
    "SETTINGS",
    "VERSION",
    "AccessLogging",
    "BatchingPolicy",
    "Config",
    "Flag",
    "LogFormat",
    "LogLevel",
    "MetricsMode",
    "Origin",
    "Setting",
    "Source",
    "TokenMode",
]

# The TorchServe release whose behaviour is kept, and ours as local version: version checks in scripts go on working.
VERSION: Final = f"0.12.0+mariner.{__version__}"


_Row = ParamSpec("_Row")


class TokenMode(Enum):
    """Which calls need a key."""

    AUTO = "auto"  # management calls from other machines
    ON = "on"  # every call, as in TorchServe
    OFF = "off"  # nobody


class BatchingPolicy(Enum):
    """When a batch that is not full goes to an idle worker."""

    EAGER = "eager"  # at once
    FILL = "fill"  # when the batch delay is over, as in TorchServe


class MetricsMode(Enum):
    """Where metrics go."""

    PROMETHEUS = "prometheus"  # to /metrics
    LOG = "log"  # into logs
    LEGACY = "legacy"  # into logs, but for the three inference counters


class AccessLogging(Enum):
    """Which answers get a line in the access log."""

    AUTO = "auto"  # as many as cost little, and all errors
    ALL = "all"
    ERRORS = "errors"
    OFF = "off"


class LogFormat(Enum):
    """How a line on the console looks."""

    CONSOLE = "console"
    JSON = "json"


class LogLevel(Enum):
    """The least important lines that are shown."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Source(IntEnum):
    """The places a value comes from; the higher wins."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2  # MARINER_<KEY>
    FLAG = 3
    TORCHSERVE_ENVIRONMENT = 4  # TS_<KEY>, where enable_envvars_config=true, and the few that always count


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was found: the source, and the place in it (``config.properties, line 3``, ``--models``)."""

    source: Source
    place: str = "default"

    def __str__(self) -> str:
        return self.place


@dataclass(frozen=True, slots=True)
class Flag:
    """A command line flag of ``torchserve``.

    Attributes:
        names: the flag and its abbreviations.
        metavar: how help calls its argument; "" for a flag without one.
        value: what the flag sets if it has no argument.
        many: takes one or more arguments, which are joined by commas.
        help: what it does, where the setting's own text would not say it.
    """

    names: tuple[str, ...]
    metavar: str = ""
    value: str = ""
    many: bool = False
    help: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table.

    Attributes:
        key: name in ``config.properties``, and of the field in :class:`Config`.
        type: what values are, without ``None``.
        optional: None stands for "unset".
        default: value if nothing is set; a function that makes it where it depends on the machine.
        doc: what the setting does, one or two sentences.
        shown: what the reference shows as default where the value would not say it.
        unit: of a number.
        minimum: of a number.
        heading: starts a section of the reference with this title.
        env: TorchServe's variable, which counts if ``enable_envvars_config=true``; None for none, ``TS_*`` for the key.
        always_env: a variable that always counts.
        always_env_true: for a switch, the one value of ``always_env`` that turns it on.
        flag: of ``torchserve``.
        aliases: other names of the key.
        ports: default ports of an address, http and https.
        same_as: the setting whose value is the default.
        ours: TorchServe has no such key, so nothing is owed to its way of reading values.
        java_only: tuned the Java server; accepted and ignored.
        inert: accepted, and without effect in this version.
        lenient: a bad value is a warning and the default stays, as in TorchServe.
        secret: never shown.
        derived: found out by the server; what a file says is ignored.
    """

    doc: str
    key: str = ""
    type: Any = object
    optional: bool = False
    default: Any = None
    shown: str = ""
    unit: str = ""
    minimum: float | None = None
    heading: str = ""
    env: str | None = "TS_*"
    always_env: str | None = None
    always_env_true: str | None = None
    flag: Flag | None = None
    aliases: tuple[str, ...] = ()
    ports: tuple[int, int] = (80, 443)
    same_as: str | None = None
    ours: bool = False
    java_only: bool = False
    inert: bool = False
    lenient: bool = False
    secret: bool = False
    derived: bool = False

    @property
    def variable(self) -> str:
        """The environment variable that always counts, below flags and above files."""
        return f"MARINER_{self.key.upper()}"

    @property
    def confidential(self) -> bool:
        """A secret that is copied nowhere: it has no flag, as everybody sees those, and snapshots leave it out."""
        return self.secret and self.ours


def _field_of(row: Callable[_Row, Setting]) -> Callable[Concatenate[Any, _Row], Any]:
    def make(default: Any, /, *args: _Row.args, **kwargs: _Row.kwargs) -> Any:
        setting = row(*args, **kwargs)
        if callable(default):
            return field(default_factory=default, metadata={"setting": setting}, repr=not setting.secret)
        return field(default=default, metadata={"setting": setting}, repr=not setting.secret)

    return make


setting = _field_of(Setting)
"""A field of :class:`Config`: its default, then the attributes of :class:`Setting` by name."""


def _urls(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


def _local(port: int) -> Address:
    return Address(Scheme.HTTP, "127.0.0.1", port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings the server runs with.

    Attributes:
        origins: where each value that is not a default was found.
        warnings: what the person who starts the server should know.
        unknown: keys of the file that mean nothing to us, kept as they are.
        as_written: what the file and the command line say, as a file would have to say it again.
    """

    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict, repr=False)
    as_written: Mapping[str, str] = field(default_factory=dict, repr=False)

    inference_address: Address = setting(
        _local(8080), heading="Addresses and protocols", doc="Listener for predictions."
    )
    management_address: Address = setting(
        _local(8081), ports=(8081, 8444), doc="Listener for model management; the same address serves both."
    )
    metrics_address: Address = setting(_local(8082), ports=(8082, 8445), doc="Listener for metrics.")
    enable_metrics_api: bool = setting(True, doc="Whether there is a metrics listener.")
    grpc_inference_address: str = setting("127.0.0.1", inert=True, doc="Host of the gRPC inference listener.")
    grpc_management_address: str = setting("127.0.0.1", inert=True, doc="Host of the gRPC management listener.")
    grpc_inference_port: int = setting(7070, inert=True, minimum=0, doc="Port of the gRPC inference listener.")
    grpc_management_port: int = setting(7071, inert=True, minimum=0, doc="Port of the gRPC management listener.")
    grpc_inference_max_connection_age_ms: int | None = setting(
        None, inert=True, shown="no limit", unit="ms", minimum=1, doc="Age at which a gRPC connection is closed."
    )
    grpc_management_max_connection_age_ms: int | None = setting(
        None, inert=True, shown="no limit", unit="ms", minimum=1, doc="Age at which a gRPC connection is closed."
    )
    grpc_inference_max_connection_age_grace_ms: int | None = setting(
        None, inert=True, shown="no limit", unit="ms", minimum=0, doc="Time for running calls once that age is reached."
    )
    grpc_management_max_connection_age_grace_ms: int | None = setting(
        None, inert=True, shown="no limit", unit="ms", minimum=0, doc="Time for running calls once that age is reached."
    )
    ts_open_inference_protocol: bool = setting(
        False, env=None, always_env="TS_OPEN_INFERENCE_PROTOCOL", always_env_true="oip",
        doc="Accepted: the open inference protocol (v2) is always served. The variable stands for `true` with the "
        "value `oip` alone.",
    )  # fmt: skip

    keystore: Path | None = setting(
        None, heading="TLS", doc="PKCS#12 file with key and certificate of `https` listeners; outranks the PEM files."
    )
    keystore_pass: str = setting(
        "changeit", shown="`changeit`", secret=True, doc="Password of the keystore and its key."
    )
    keystore_type: str = setting("PKCS12", doc="Format of the keystore: `PKCS12`.")
    private_key_file: Path | None = setting(
        None, doc="PEM file with the unencrypted key of `https` listeners, where there is no keystore."
    )
    certificate_file: Path | None = setting(
        None, doc="PEM file with the certificate, followed by those that lead to its authority."
    )
    enable_grpc_ssl: bool = setting(False, inert=True, doc="TLS on both gRPC listeners, from the PEM files.")

    cors_allowed_origin: str | None = setting(
        None, heading="CORS", doc="Sent as `Access-Control-Allow-Origin` with every answer."
    )
    cors_allowed_methods: str | None = setting(None, doc="Sent as `Access-Control-Allow-Methods`.")
    cors_allowed_headers: str | None = setting(None, doc="Sent as `Access-Control-Allow-Headers`.")

    model_store: Path | None = setting(
        None, heading="Models", flag=Flag(("--model-store",), "DIR"),
        doc="Directory of archives; relative names of archives are looked up in it.",
    )  # fmt: skip
    workflow_store: Path | None = setting(
        None, inert=True, same_as="model_store", flag=Flag(("--workflow-store",), "DIR"),
        doc="Directory of workflow archives. Workflows are not served.",
    )  # fmt: skip
    load_models: tuple[str, ...] = setting(
        (), flag=Flag(("--models",), "MODEL", many=True),
        doc="Models to load at start: archives, `name=archive`, or `all` for every archive in the store.",
    )  # fmt: skip
    allowed_urls: tuple[re.Pattern[str], ...] = setting(
        _urls("file://.*", "http(s)?://.*"),
        doc="Regular expressions, one of which must match the whole URL of a remote archive. Addresses inside the "
        "network are refused unless a pattern is set that matches them.",
    )
    use_env_allowed_urls: bool = setting(
        False, env=None, doc="Whether `TS_ALLOWED_URLS` counts, where `enable_envvars_config` is on."
    )
    enable_model_api: bool | None = setting(
        None, shown="from this machine, or with a management key", aliases=("model_api_enabled",),
        flag=Flag(("--enable-model-api",), value="true", help="Let models be registered and unregistered."),
        doc="Whether models can be registered and unregistered.",
    )  # fmt: skip
    install_py_dep_per_model: bool = setting(
        False,
        doc="Installs the requirements file of an archive before its model is loaded, once: what was installed "
        "is kept in `$XDG_CACHE_HOME/mariner`, or below `temp_dir`.",
    )
    package_cache_size: int = setting(
        10 << 30, ours=True, unit="bytes", minimum=0,
        doc="Room for what is kept. Beyond it, packages go that were not used for longest; none that a server uses.",
    )  # fmt: skip
    default_service_handler: str | None = setting(None, doc="Handler of archives that name none.")
    service_envelope: str | None = setting(None, doc="Request envelope of all models, instead of the archive's.")
    models: dict[str, Any] = setting(
        dict, env=None, shown="none", doc="JSON, `{model: {version: {parameter: value}}}`: parameters of models."
    )
    model_snapshot: dict[str, Any] = setting(
        dict, env=None, shown="none", doc="JSON: the models to restore at start, instead of `load_models`."
    )
    config_snapshots: bool = setting(
        True, ours=True,
        flag=Flag(("--no-config-snapshots", "--ncs"), value="false", help="Neither write nor restore snapshots."),
        doc="Whether settings and models are saved at each change, and restored by the next start that names no file.",
    )  # fmt: skip

    default_workers_per_model: int = setting(
        0, heading="Workers, queues and timeouts", minimum=0, shown="one per GPU, else 1", doc="Workers of a model."
    )
    number_of_gpu: int | None = setting(None, minimum=0, shown="all", doc="Most GPUs to use; 0 runs on the CPU.")
    job_queue_size: int = setting(
        100, unit="requests", minimum=1,
        doc="Requests that may wait per model version; the next is answered with 503 and `queue_full`.",
    )  # fmt: skip
    default_response_timeout: float = setting(
        120.0, unit="s", minimum=0, doc="Longest time for an answer of a worker, which is restarted then."
    )
    default_startup_timeout: float = setting(
        120.0, unit="s", minimum=0, doc="Longest time for a worker to load its model."
    )
    unregister_model_timeout: float = setting(
        120.0, unit="s", minimum=0, doc="Longest time for workers to end when models are scaled down or unregistered."
    )
    drain_timeout: float = setting(
        120.0, ours=True, unit="s", minimum=0, same_as="unregister_model_timeout",
        doc="Longest time for running requests to be answered when the server stops.",
    )  # fmt: skip
    batching_policy: BatchingPolicy = setting(
        BatchingPolicy.EAGER, ours=True,
        doc="`eager` hands an idle worker what waits at once; `fill` waits for a full batch or the batch delay.",
    )  # fmt: skip
    isolate_batch_errors: bool = setting(
        True, ours=True,
        doc="Runs a batch that failed, or whose worker died, again in parts, so that only the guilty requests fail.",
    )  # fmt: skip
    quarantine_time: float = setting(
        60.0, ours=True, unit="s", minimum=0,
        doc="How long a request that has killed two workers is refused if it comes again; 0 for not at all.",
    )  # fmt: skip
    autoscale: bool = setting(
        True, ours=True,
        doc="Starts workers when work waits, up to the maximum of the model; stops those above its minimum when idle.",
    )  # fmt: skip
    worker_idle_timeout: float = setting(
        60.0, ours=True, unit="s", minimum=0, doc="Idle time after which a worker above the minimum stops."
    )
    worker_poll_time: float = setting(
        0.00025, ours=True, unit="s", minimum=0,
        doc="How long a busy worker looks for its next request before it sleeps, where processors are to spare.",
    )  # fmt: skip
    warm_start: bool = setting(
        True, ours=True, doc="Forks workers that use PyTorch from a process that has imported it already."
    )
    shared_weights: bool = setting(
        False, ours=True, doc="The workers of a model, on the CPU, have one copy of its weights together."
    )
    max_requests_per_worker: int = setting(
        0, ours=True, minimum=0, doc="Requests after which a worker is replaced, without losing one; 0 for never."
    )
    max_worker_memory_mb: int = setting(
        0, ours=True, unit="MiB", minimum=0, doc="Resident memory beyond which a worker is replaced; 0 for never."
    )
    initial_worker_port: int = setting(9000, minimum=0, doc="Id of the first worker; ids only grow.")
    initial_distribution_port: int = setting(
        29500, inert=True, minimum=0, doc="Id of the first worker with a process per device. There are none yet."
    )
    debug: bool = setting(
        False,
        doc="For debugging handlers: one worker per model, and no time limit for loading and answering. TorchServe "
        "expects a worker that was started by hand; here one is started as always.",
    )

    max_request_size: int = setting(
        6553500, heading="HTTP", unit="bytes", minimum=0, doc="Longest request body; a longer one is answered with 413."
    )
    max_response_size: int = setting(
        6553500, unit="bytes", minimum=0, doc="Longest answer of a worker; a longer one is answered with 500."
    )
    max_header_size: int = setting(
        65536, ours=True, unit="bytes", minimum=1024, doc="Longest head of a request: request line and headers."
    )
    max_connections: int = setting(10000, ours=True, minimum=1, doc="Open connections per listener.")
    client_header_timeout: float = setting(
        30.0, ours=True, unit="s", minimum=0, doc="Longest time for the head of a request to arrive."
    )
    client_body_timeout: float = setting(
        60.0, ours=True, unit="s", minimum=0, doc="Longest pause while a body is received or an answer is sent."
    )
    keep_alive_timeout: float = setting(
        300.0, ours=True, unit="s", minimum=0, doc="Time after which a connection without requests is closed."
    )
    shared_body_threshold: int = setting(
        65536, ours=True, unit="bytes", minimum=0, doc="Bodies of this length and more reach workers in shared memory."
    )
    shared_memory_size: int = setting(
        268435456, ours=True, unit="bytes", minimum=0, doc="Room for those bodies; uses memory only as they arrive."
    )
    server_timing: bool = setting(
        True, ours=True,
        doc="Says in the header `Server-Timing` of predictions where their time went, of 2,000 each second at most.",
    )  # fmt: skip
    pass_query_parameters: bool = setting(
        False,
        ours=True,
        doc="Hands query parameters to the handler on `/predictions`, too, not only on `/invocations` and the like.",
    )

    decode_input_request: bool = setting(
        True, heading="Handlers", doc="Decodes JSON and text bodies before the handler sees them."
    )
    limit_max_image_pixels: bool = setting(True, doc="Keeps Pillow's limit on the size of images in vision handlers.")
    blacklist_env_vars: re.Pattern[str] | None = setting(
        None, doc="Regular expression; variables whose whole name matches are not passed to workers."
    )
    python: str = setting(
        sys.executable, env=None, derived=True, shown="the server's", doc="Python interpreter of workers."
    )
    ipex_enable: bool = setting(False, doc="Passed to handlers as `TS_IPEX_ENABLE`.")
    ipex_gpu_enable: bool = setting(False, doc="Passed to handlers as `TS_IPEX_GPU_ENABLE`.")
    cpu_launcher_enable: bool = setting(
        False, inert=True,
        doc="Starts workers through `torch.backends.xeon.run_cpu`. Workers start without it, as they do in TorchServe "
        "where it is missing: the process it starts would have no connection to the server. They share the processors "
        "evenly instead.",
    )  # fmt: skip
    cpu_launcher_args: str | None = setting(None, inert=True, doc="Arguments of that launcher.")
    cpp_log_config: Path | None = setting(
        None,
        inert=True,
        flag=Flag(("--cpp-log-config",), "FILE"),
        doc="Logging of C++ workers, which do not exist here.",
    )
    ts_header_key_sequence_id: str = setting(
        "ts_request_sequence_id", env="TS_HEADER_KEY_SEQUENCE_ID",
        doc="Header that names the sequence a request belongs to.",
    )  # fmt: skip
    ts_header_key_sequence_start: str = setting(
        "ts_request_sequence_start", env="TS_HEADER_KEY_SEQUENCE_START",
        doc="Header that marks the first request of a sequence whose id the server chose; clients may send it, too.",
    )  # fmt: skip
    ts_header_key_sequence_end: str = setting(
        "ts_request_sequence_end", env="TS_HEADER_KEY_SEQUENCE_END",
        doc="Header that marks the last request of a sequence; in answers, the ids of the sequences that end.",
    )  # fmt: skip

    metrics_mode: MetricsMode = setting(
        MetricsMode.PROMETHEUS, heading="Metrics and logs", lenient=True,
        doc="`prometheus` exposes metrics on the metrics listener, `log` writes them to the metric logs; `legacy` "
        "exposes the three inference counters and logs the others.",
    )  # fmt: skip
    metrics_config: Path | None = setting(None, shown="built in", doc="YAML file that declares metrics.")
    model_metrics_auto_detect: bool = setting(False, doc="Accepts metrics of handlers that the YAML does not declare.")
    disable_system_metrics: bool = setting(False, doc="Leaves out CPU, memory and disk.")
    system_metrics_cmd: str = setting(
        "", env=None,
        doc="Python script and arguments that measure the machine, such as `ts/metrics/metric_collector.py --gpu 0`.",
    )  # fmt: skip
    metric_time_interval: float = setting(
        60.0, env=None, unit="s", minimum=1, doc="Time between two collections of system metrics."
    )
    log_format: LogFormat = setting(
        LogFormat.CONSOLE, ours=True, doc="`console` for people, `json` for one JSON object per line."
    )
    log_level: LogLevel = setting(LogLevel.INFO, ours=True, doc="Least important lines that are shown.")
    log_levels: tuple[str, ...] = setting(
        (), ours=True,
        doc="Levels of single loggers, such as `mariner.worker=debug,MODEL_LOG=error`. A logger is what a line names "
        "in `ts_log.log` or in JSON; it counts for those below it as well.",
    )  # fmt: skip
    log_location: Path = setting(
        Path("logs"), ours=True, always_env="LOG_LOCATION",
        doc="Directory of log files and snapshots. `mariner serve` writes files only where it is set.",
    )  # fmt: skip
    metrics_location: Path = setting(
        Path("logs"), ours=True, always_env="METRICS_LOCATION", doc="Directory of metrics log files."
    )
    access_log: AccessLogging = setting(
        AccessLogging.AUTO, ours=True,
        doc="Which answers get a line in `access_log.log`: `auto` is all of them up to 10,000 in a second, and errors.",
    )  # fmt: skip

    token_authorization: TokenMode = setting(
        TokenMode.AUTO, heading="Access", ours=True,
        doc="`auto` asks other machines for a key when they manage models; `on` asks everybody for every call, as "
        "TorchServe does; `off` asks nobody.",
    )  # fmt: skip
    disable_token_authorization: bool | None = setting(
        None, flag=Flag(("--disable-token-auth", "--dt"), value="true", help="Ask nobody for a token."),
        doc="TorchServe's key: `true` is `token_authorization=off`, `false` is `on`.",
    )  # fmt: skip
    token_expiration_min: float | None = setting(
        None, env="TS_TOKEN_EXPIRATION_TIME_MIN", unit="min", minimum=0, lenient=True,
        shown="60 where `token_authorization` is `on`, else never",
        doc="Life of a key. One that was given expires only if this is set.",
    )  # fmt: skip

    management_key: str | None = setting(
        None, ours=True, secret=True,
        doc="The key of management calls, instead of a random one; meant for the variable.",
    )  # fmt: skip
    management_key_file: Path | None = setting(
        None, ours=True, doc="File that holds that key and nothing else, such as a mounted secret."
    )
    inference_key: str | None = setting(
        None, ours=True, secret=True,
        doc="The key of predictions, instead of a random one. They need one where `token_authorization` is `on`.",
    )  # fmt: skip
    inference_key_file: Path | None = setting(None, ours=True, doc="File that holds that key and nothing else.")

    enable_envvars_config: bool = setting(
        False, heading="Where settings come from", env=None, doc="Whether the `TS_*` variables of this page count."
    )
    tsConfigFile: Path | None = setting(  # noqa: N815 - the key's name
        None, env=None, derived=True, always_env="TS_CONFIG_FILE", flag=Flag(("--ts-config",), "FILE"),
        shown="`config.properties` in the working directory, if there is one", doc="The file settings are read from.",
    )  # fmt: skip
    temp_dir: Path = setting(
        lambda: Path(tempfile.gettempdir()), ours=True, always_env="TEMP", shown="the system's",
        doc="Directory for unpacked archives; it must exist.",
    )  # fmt: skip
    version: str = setting(
        VERSION, env=None, derived=True, shown="the server's", doc="Version that snapshots and descriptions carry."
    )

    vmargs: str | None = setting(
        None, heading="Of the Java server", env=None, java_only=True, doc="Flags of the Java virtual machine."
    )
    number_of_netty_threads: int = setting(0, java_only=True, doc="I/O threads.")
    netty_client_threads: int = setting(0, java_only=True, doc="I/O threads for workers.")
    use_native_io: bool = setting(True, env=None, java_only=True, doc="Choice of the Java I/O library.")
    io_ratio: int = setting(50, env=None, java_only=True, doc="Share of time the event loop spends on I/O.")
    prefer_direct_buffer: bool = setting(False, java_only=True, doc="Buffers outside of the Java heap.")
    async_logging: bool = setting(False, java_only=True, doc="Log appenders with a thread of their own.")
    log_config: Path | None = setting(
        None, env=None, java_only=True, flag=Flag(("--log-config",), "FILE"), doc="Log4j 2 configuration."
    )
    plugins_path: Path | None = setting(
        None, env=None, java_only=True, flag=Flag(("--plugins-path", "--ppath"), "DIR"), doc="Java plugins."
    )
    model_server_home: Path | None = setting(None, env=None, java_only=True, doc="Where TorchServe was installed.")
    NUM_WORKERS: int = setting(0, env=None, java_only=True, doc="Read by a plugin for SageMaker.")

    def origin(self, key: str) -> Origin:
        """Where the value of ``key`` was found."""
        return self.origins.get(key, Origin(Source.DEFAULT))

    def is_set(self, key: str) -> bool:
        """Somebody chose the value of ``key``."""
        return self.origin(key).source is not Source.DEFAULT


def _rows() -> dict[str, Setting]:
    hints = get_type_hints(Config)
    rows = {}
    for spec in fields(Config):
        row: Setting | None = spec.metadata.get("setting")
        if row is None:
            continue
        hint = hints[spec.name]
        optional = get_origin(hint) is UnionType and NoneType in get_args(hint)
        env = row.env
        if env == "TS_*":
            env = None if row.ours else f"TS_{spec.name.upper()}"
        rows[spec.name] = replace(
            row,
            key=spec.name,
            type=get_args(hint)[0] if optional else hint,
            optional=optional,
            default=spec.default if spec.default is not MISSING else spec.default_factory,
            env=env,
        )
    return rows


SETTINGS: Final[Mapping[str, Setting]] = _rows()
