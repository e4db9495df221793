"""The settings object. Errors never quote a value, which may be a password."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from memory_core.errors import InvalidArgument, plain_line
from memory_core.records.names import NAME_PATTERN, canonical_name
from memory_core.settings.auth import AuthSettings, Names
from memory_core.settings.choices import AnswerForm, ToolSet
from memory_core.settings.groups import (
    AuditSettings,
    BulkSettings,
    CacheSettings,
    DurabilitySettings,
    GpuSettings,
    LifetimeSettings,
    LimitSettings,
    ObserveSettings,
    QuotaSettings,
    RedisSettings,
    TaskSettings,
    VectorStoreSettings,
)

SettingPath = tuple[str, ...]
ENV_PREFIX = "MEMORY_"
NESTED = "__"
_MAX_CONFIG_BYTES = 1 << 20
_MISSPELT = 0.85  # similarity to a setting from which an unknown variable counts as misspelt


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
    namespace: str = Field(default="default", pattern=f"^{NAME_PATTERN}$", description="team or project of the memory")
    agent: str | None = Field(
        default=None,
        pattern=f"^{NAME_PATTERN}$",
        description="agent name for clients that give none; null takes the client's name",
    )
    data_dir: Path | None = Field(
        default=None, description="folder of the embedded Redis; null is redis-memory in the user's data folder"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="HTTP address; loopback without authentication")
    port: int = Field(default=8765, ge=0, le=65535, description="HTTP port; 0 picks a free one")
    allowed_hosts: Names = Field(default=(), description="allowed Host headers in addition to loopback")
    allowed_origins: Names = Field(default=(), description="allowed Origin headers in addition to loopback")
    tls_cert: Path | None = Field(default=None, description="PEM file with the certificate chain, for HTTPS")
    tls_key: Path | None = Field(default=None, description="PEM file with its private key")
    behind_proxy: bool = Field(default=False, description="whether a proxy in front handles TLS")
    token: SecretStr | None = Field(default=None, description="token that authenticates an agent on stdio")
    master_key: SecretStr | None = Field(
        default=None, description="32 random bytes in base64 or hex; after a comma, older keys for old data"
    )
    master_key_file: Path | None = Field(default=None, description="file that holds the master key instead")
    master_key_command: str | None = Field(default=None, description="command that prints the master key instead")
    transport_key: SecretStr | None = Field(
        default=None, description="key of a sidecar, from `redis-memory keys transport`; not for servers"
    )
    transport_key_file: Path | None = Field(default=None, description="file that holds the transport key instead")
    answers: AnswerForm | None = Field(
        default=None,
        description="form of MCP answers; null is text for chat clients that hide it behind the structure, else both",
    )
    tools: ToolSet = Field(
        default="all", description="tools that are listed; team leaves out monitoring and batches, memory teamwork too"
    )
    secrets: Literal["warn", "redact", "seal", "refuse"] = Field(
        default="warn",
        description="what happens to memories that look like a credential; `seal` encrypts and needs a master key",
    )
    similar_from: float = Field(
        default=0.6, ge=0, le=1, description="cosine from which a new memory's answer shows another as similar"
    )
    embed_wait_seconds: float = Field(default=2.0, gt=0, le=30, description="seconds that a call waits for a vector")
    search_timeout_ms: int = Field(default=2000, ge=10, le=60_000, description="deadline of a search in Redis")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="lowest level logged")
    log_format: Literal["text", "json"] = Field(default="text", description="lines for people, or one object each")

    _given_names: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @model_validator(mode="wrap")
    @classmethod
    def _make_names_canonical(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Accept an agent and a namespace in any case and with spaces, unless a token says who calls."""
        given = dict[str, str]()
        if isinstance(data, dict) and not _uses_tokens(data):
            data = dict(data)
            for what in ("agent", "namespace"):
                if isinstance(data.get(what), str):
                    given[what], data[what] = data[what], _canonical(data[what])
        settings = handler(data)
        settings._given_names = given
        return settings

    @property
    def given_names(self) -> dict[str, str]:
        """The agent and the namespace as they were given."""
        return self._given_names

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
        """Read `config` and the environment; flags that are not None win. Raises InvalidArgument for a bad one."""
        if config is not None:
            _check_is_file(config)
        _refuse_misspelt_variables()
        loader = type("Settings", (cls,), {"model_config": SettingsConfigDict(json_file=config)})
        try:
            return loader(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            problems, hints = zip(*(_problem(e["type"], e["loc"], e["msg"]) for e in error.errors()), strict=True)
            hint = "; ".join(dict.fromkeys(filter(None, hints))) or "`redis-memory settings` describes each"
            raise InvalidArgument(f"settings are not valid: {'; '.join(problems)}", hint=hint) from None
        except (SettingsError, RecursionError):
            names = ", ".join(_unreadable_variables()) or "an environment variable"
            raise InvalidArgument(f"settings are not valid: {names} is not JSON", hint="quote it as JSON") from None

    @property
    def has_master_key(self) -> bool:
        """Whether a master key is set, so that memories can be sensitive."""
        return any((self.master_key, self.master_key_file, self.master_key_command))

    @property
    def uses_config_default_redis(self) -> bool:
        """Whether the only Redis named is the stock `localhost:6379` of a config file."""
        redis = self.redis
        stock = (redis.host in {"localhost", "127.0.0.1"} and redis.port == 6379 and redis.db == 0) and (
            redis.username is None and redis.password is None and redis.password_file is None
        )
        return self.redis_url is None and redis.url is None and stock


def _uses_tokens(data: dict[str, Any]) -> bool:
    auth = data.get("auth")
    mode = auth.get("mode", "off") if isinstance(auth, dict) else getattr(auth, "mode", "off")
    return data.get("token") is not None or mode != "off"


def _canonical(name: str) -> str:
    """Return the canonical name, or a bad name as it is: the field refuses it."""
    try:
        return canonical_name(name)
    except InvalidArgument:
        return name


def _check_is_file(path: Path) -> None:
    """Refuse a pipe or a device, which might never end."""
    if not path.is_file():
        raise InvalidArgument(f"there is no config file {path}")


class _ConfigFile(JsonConfigSettingsSource):
    def _read_file(self, file_path: Any) -> dict[str, Any]:
        return read_config(file_path)


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file without validation. Raises InvalidArgument unless it is one JSON object."""
    _check_is_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        if len(data) > _MAX_CONFIG_BYTES:
            raise InvalidArgument(f"the config file {path} is longer than {_MAX_CONFIG_BYTES} bytes")
        content = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"the config file {path} is not JSON: {error.msg} in {where}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"cannot read the config file {path}: {type(error).__name__}") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"the config file {path} is not a JSON object", hint='such as {"namespace": "team"}')
    return content


def leaves(model: type[BaseModel] = Settings, path: SettingPath = ()) -> Iterator[tuple[SettingPath, FieldInfo]]:
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
    path = [str(part) for part in loc]
    name = plain_line(".".join(path))[:200]
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
    """Refuse a misspelt variable. Other programs may use `MEMORY_` too, as systemd does."""
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
    groups = {variable(path[:depth]) for path, _ in leaves() for depth in range(1, len(path))}
    for name, value in os.environ.items():
        if name.upper() in groups:
            try:
                json.loads(value)
            except (ValueError, RecursionError):
                yield name
