"""The settings object: defaults, then the JSON config file, then environment variables, then flags.

Each description appears in `redis-memory settings` and docs/settings.md. Errors never quote a value, which may be a
password.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from memory_core.errors import InvalidArgument
from memory_core.records.model import Model
from memory_core.records.names import NAME_PATTERN
from memory_core.settings.audit import AuditSettings
from memory_core.settings.auth import AuthSettings, Names
from memory_core.settings.bulk import BulkSettings
from memory_core.settings.durability import DurabilitySettings
from memory_core.settings.group import SettingsGroup
from memory_core.settings.limits import LimitSettings
from memory_core.settings.observe import ObserveSettings
from memory_core.settings.quotas import QuotaSettings

SettingPath = tuple[str, ...]

DAY = 86_400
CENTURY = 100 * 365 * DAY
ENV_PREFIX = "MEMORY_"
NESTED = "__"
_MISSPELT = 0.85
"""Similarity to a setting from which an unknown variable counts as misspelt."""


class RedisSettings(SettingsGroup):
    """Where Redis is. With neither `url` nor `host`, the embedded default is used."""

    url: SecretStr | None = Field(default=None, description="URL of Redis; overrides the other settings of this group")
    host: str | None = Field(
        default=None,
        pattern=r"^([^\s/@\[\]?#:]+|[0-9A-Fa-f:.]+(%\w+)?)$",
        description="name or address of Redis; stock localhost:6379 falls to the embedded one if nothing answers",
    )
    port: int = Field(default=6379, ge=1, le=65535, description="TCP port of Redis")
    db: int = Field(default=0, ge=0, description="only 0 works: the Query Engine indexes no other database")
    username: str | None = Field(default=None, description="user of Redis's ACL; null is its default user")
    password: SecretStr | None = Field(default=None, description="password of that user")
    password_file: Path | None = Field(default=None, description="file that holds that password instead")
    timeout_seconds: float = Field(default=5.0, gt=0, le=300, description="deadline of one read or write")


class GpuSettings(SettingsGroup):
    """Where a sidecar computes embeddings. The starting server passes device and acceleration to the embedded one."""

    enable_acceleration: bool = Field(default=True, description="whether accelerators are used at all")
    preferred_device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|xpu|(cuda|rocm)(:\d+)?)$",
        description="auto, cpu, mps, xpu, cuda[:N] or rocm[:N]",
    )
    fallback_to_cpu: bool = Field(
        default=True,
        description="use the CPU, with a warning, if that device is missing; else refuse to start",
    )


class HnswSettings(SettingsGroup):
    """The graph of the Redis index; used when an index is made."""

    m: int = Field(default=16, ge=4, le=512, description="edges of each node: recall and memory use grow with it")
    ef_construction: int = Field(default=200, ge=16, le=4096, description="candidates examined when a vector is added")
    ef_runtime: int = Field(default=100, ge=10, le=4096, description="candidates examined by a search")


class VectorStoreSettings(SettingsGroup):
    """The embedding model and the indexes over its vectors.

    `index_type` and `rebuild_threshold` are for the FAISS bulk engine; the Redis index is always HNSW.
    """

    embedding_model: str = Field(
        default="all-MiniLM-L6-v2",
        min_length=1,
        max_length=1024,
        description="model of new namespaces; `redis-memory reindex` changes the model of others",
    )
    vector_dimension: int = Field(default=384, ge=8, le=8192, description="numbers in one vector of that model")
    index_type: Literal["Flat", "IVFFlat", "HNSW", "CAGRA"] = Field(
        default="IVFFlat",
        description="FAISS index for many searches at once; Flat compares with all, CAGRA is HNSW without a GPU",
    )
    rebuild_threshold: int = Field(
        default=1000,
        ge=1,
        le=1_000_000_000,
        description="vectors from which a FAISS index is built, and changes after which it is rebuilt",
    )
    hnsw: HnswSettings = HnswSettings()

    @property
    def model(self) -> Model:
        """The model of new namespaces."""
        return Model(self.embedding_model, self.vector_dimension)

    def with_model(self, model: Model) -> VectorStoreSettings:
        """Copy these settings for another model."""
        return self.model_copy(update={"embedding_model": model.name, "vector_dimension": model.dimension})


class LifetimeSettings(SettingsGroup):
    """Seconds that a memory of each priority lives, unless `ttl_seconds` is given; null is forever."""

    critical: int | None = Field(default=None, ge=1, le=CENTURY, description="seconds that critical memories live")
    high: int | None = Field(default=90 * DAY, ge=1, le=CENTURY, description="seconds that high memories live")
    medium: int | None = Field(default=30 * DAY, ge=1, le=CENTURY, description="seconds that medium memories live")
    low: int | None = Field(default=7 * DAY, ge=1, le=CENTURY, description="seconds that low memories live")
    archive: int | None = Field(default=None, ge=1, le=CENTURY, description="seconds that archived memories live")
    grace: int = Field(
        default=3600, ge=1, le=365 * DAY, description="seconds between soft expiry and removal from Redis"
    )


class CacheSettings(SettingsGroup):
    """Vectors of texts seen before, kept in the process and in Redis."""

    entries: int = Field(default=10_000, ge=1, le=10_000_000, description="vectors kept in the process, 1.5 kB each")
    policy: Literal["lru", "lfu", "ttl"] = Field(
        default="lru", description="which entry is evicted first: least recently used, least often used, or oldest"
    )
    ttl_seconds: float = Field(default=3600, gt=0, le=CENTURY, description="lifetime in the process with policy ttl")
    redis_ttl_seconds: int = Field(default=7 * DAY, ge=0, le=CENTURY, description="lifetime in Redis; 0 turns it off")
    sealed_bytes: int = Field(
        default=64 << 20,
        ge=0,
        le=1 << 40,
        description="bytes of decrypted vectors of sensitive memories in the process",
    )


class TaskSettings(SettingsGroup):
    """How tasks are assigned, retried and kept."""

    claim_seconds: float = Field(
        default=60.0, gt=0, le=DAY, description="seconds after which an unclaimed task is assigned to another agent"
    )
    backoff_seconds: float = Field(
        default=1.0, gt=0, le=DAY, description="pause after the first failed attempt; it doubles with each, with jitter"
    )
    backoff_most_seconds: float = Field(default=300.0, gt=0, le=DAY, description="longest pause between two attempts")
    keep_seconds: int = Field(default=7 * DAY, ge=1, le=CENTURY, description="seconds that an ended task is kept")
    open_tasks: int = Field(default=20_000, ge=1, le=10_000_000, description="tasks open at a time in a namespace")
    payload_bytes: int = Field(
        default=65_536, ge=2, le=1 << 24, description="bytes of a payload or of a result, as JSON"
    )
    similar_from: float = Field(
        default=0.85, ge=0, le=1, description="cosine from which another open task is reported as similar"
    )


class Settings(BaseSettings):
    """All settings; set by flag, environment variable or `--config FILE`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=NESTED,
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    redis: RedisSettings = RedisSettings()
    gpu: GpuSettings = GpuSettings()
    vector_store: VectorStoreSettings = VectorStoreSettings()
    lifetimes: LifetimeSettings = LifetimeSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    tasks: TaskSettings = TaskSettings()
    auth: AuthSettings = AuthSettings()
    bulk: BulkSettings = BulkSettings()
    quotas: QuotaSettings = QuotaSettings()
    durability: DurabilitySettings = DurabilitySettings()
    audit: AuditSettings = AuditSettings()
    observe: ObserveSettings = ObserveSettings()
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("REDIS_URL", "redis_url"),
        description="URL of Redis; overrides `redis`",
    )
    namespace: str = Field(
        default="default", pattern=f"^{NAME_PATTERN}$", description="team or project whose memory this is"
    )
    agent: str | None = Field(
        default=None,
        pattern=f"^{NAME_PATTERN}$",
        description="agent name for clients that give none; null takes the client's name",
    )
    data_dir: Path | None = Field(
        default=None, description="folder of the embedded Redis; null is redis-memory in the user's data folder"
    )
    host: str = Field(
        default="127.0.0.1", min_length=1, description="HTTP address; loopback while authentication is off"
    )
    port: int = Field(default=8765, ge=0, le=65535, description="HTTP port; 0 picks a free one")
    allowed_hosts: Names = Field(default=(), description="allowed Host headers in addition to loopback")
    allowed_origins: Names = Field(default=(), description="allowed Origin headers in addition to loopback")
    tls_cert: Path | None = Field(default=None, description="PEM file with the certificate chain, for HTTPS")
    tls_key: Path | None = Field(default=None, description="PEM file with its private key")
    behind_proxy: bool = Field(default=False, description="whether a proxy in front handles TLS")
    token: SecretStr | None = Field(default=None, description="token that authenticates an agent on stdio")
    master_key: SecretStr | None = Field(
        default=None, description="32 random bytes in base64 or hex; after a comma, older ones that only open old data"
    )
    master_key_file: Path | None = Field(default=None, description="file that holds the master key instead")
    master_key_command: str | None = Field(default=None, description="command that prints the master key instead")
    transport_key: SecretStr | None = Field(
        default=None, description="key for a sidecar, from `redis-memory keys transport`; a server does not need it"
    )
    transport_key_file: Path | None = Field(default=None, description="file that holds the transport key instead")
    embed_wait_seconds: float = Field(default=2.0, gt=0, le=30, description="seconds that a call waits for a vector")
    search_timeout_ms: int = Field(
        default=2000, ge=10, le=60_000, description="milliseconds that Redis may spend on a search"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="least level that is logged"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="lines for people, or one object each")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, which wins over the config file."""
        return init_settings, env_settings, _ConfigFile(settings_cls)

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Read `config` and the environment; flags that are not None win over both.

        Raises:
            InvalidArgument: the file is not readable JSON, or a setting is unknown or of a wrong value.
        """
        if config is not None and not config.is_file():
            raise InvalidArgument(f"there is no config file {config}")
        _refuse_misspelt_variables()
        loader = type("Settings", (cls,), {"model_config": SettingsConfigDict(json_file=config)})
        try:
            return loader(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            problems, hints = zip(*(_problem(e["type"], e["loc"], e["msg"]) for e in error.errors()), strict=True)
            hint = "; ".join(dict.fromkeys(filter(None, hints))) or "`redis-memory settings` describes each"
            raise InvalidArgument(f"settings are not valid: {'; '.join(problems)}", hint=hint) from None
        except SettingsError:
            names = ", ".join(_unreadable_variables()) or "an environment variable"
            raise InvalidArgument(f"settings are not valid: {names} is not JSON", hint="quote it as JSON") from None

    @property
    def uses_config_default_redis(self) -> bool:
        """Whether the only Redis named is the stock `localhost:6379` of a config file."""
        redis = self.redis
        stock = (redis.host in {"localhost", "127.0.0.1"} and redis.port == 6379 and redis.db == 0) and (
            redis.username is None and redis.password is None and redis.password_file is None
        )
        return self.redis_url is None and redis.url is None and stock


class _ConfigFile(JsonConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return read_config(file_path)


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file without validation.

    Raises:
        InvalidArgument: not a readable file with one JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"the config file {path} is not JSON: {error.msg} in {where}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"cannot read the config file {path}: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"the config file {path} is not a JSON object", hint='such as {"namespace": "team"}')
    return content


def leaves(
    model: type[BaseModel] = Settings, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Yield each setting with its path; those outside groups come last."""
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, (*path, name))
        else:
            yield (*path, name), info


def variable(path: Sequence[str]) -> str:
    """Return the environment variable of a setting or a group."""
    return "REDIS_URL" if tuple(path) == ("redis_url",) else ENV_PREFIX + NESTED.join(path).upper()


def _problem(kind: str, loc: Sequence[int | str], message: str) -> tuple[str, str]:
    """Describe what is wrong with one setting, with a hint if it is unknown."""
    path = [str(part) for part in loc]
    name = ascii(".".join(path))[1:-1][:200]
    if variable(path) in map(str.upper, os.environ):
        name += f" ({variable(path)})"
    if kind != "extra_forbidden":
        return f"{name}: {message}", ""
    near = _near(".".join(path), [".".join(known) for known, _ in leaves()], 0.6)
    return f"{name} is not a setting", f"did you mean {near}?" if near else "`redis-memory settings` shows all"


def _near(name: str, known: Sequence[str], alike: float) -> str:
    """Return the settings with the most similar names, preferably of the same group."""
    group, _, _ = name.rpartition(".")
    same_group = [other for other in known if other.rpartition(".")[0] == group]
    last = {other: other.rpartition(".")[2] for other in known}
    found = get_close_matches(name, same_group, 3, alike) or [
        other for other in known if last[other] == name.rpartition(".")[2]
    ]
    return " or ".join(found or get_close_matches(name, known, 3, alike))


def _refuse_misspelt_variables() -> None:
    """Refuse a misspelt variable. Other programs may use `MEMORY_` too, as systemd does.

    Raises:
        InvalidArgument: a variable is misspelt.
    """
    for name in map(str.upper, os.environ):
        if name.startswith(ENV_PREFIX) and (meant := _similar_variables(name)):
            raise InvalidArgument(f"settings are not valid: {name} is not a setting", hint=f"did you mean {meant}?")


def _similar_variables(name: str) -> str:
    """Return the variables that an unknown one resembles; variables inside groups are validated with their group."""
    top, nested, _ = name.removeprefix(ENV_PREFIX).partition(NESTED)
    known = {variable(path) for path, _ in leaves()}
    field = Settings.model_fields.get(top.lower())
    if field is not None:
        is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        return variable([top.lower()]) if nested and not is_group else ""
    bare = {other.removeprefix(ENV_PREFIX): other for other in known}
    return " or ".join(bare[other] for other in get_close_matches(name.removeprefix(ENV_PREFIX), bare, 3, _MISSPELT))


def _unreadable_variables() -> Iterator[str]:
    """Yield the group variables that are not JSON."""
    groups = {variable(path[:depth]) for path, _ in leaves() for depth in range(1, len(path))}
    for name, value in os.environ.items():
        if name.upper() in groups:
            try:
                json.loads(value)
            except ValueError:
                yield name
