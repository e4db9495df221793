"""The one settings object: defaults, then the JSON config file, then environment variables, then flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    JsonConfigSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from memory_core.errors import InvalidArgument
from memory_core.names import NAME_PATTERN

DAY = 86_400


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RedisSettings(_Group):
    """Where Redis is. With neither `url` nor `host`, the embedded default is used."""

    url: SecretStr | None = None
    host: str | None = None
    port: int = Field(default=6379, ge=1, le=65535)
    db: int = Field(default=0, ge=0, description="only 0 works: the Query Engine indexes no other database")
    username: str | None = None
    password: SecretStr | None = None
    timeout_seconds: float = Field(default=5.0, gt=0, description="deadline of one command")


class GpuSettings(_Group):
    """Where embeddings are computed."""

    enable_acceleration: bool = True
    preferred_device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|xpu|(cuda|rocm)(:\d+)?)$")
    fallback_to_cpu: bool = True


class HnswSettings(_Group):
    """The Redis index's graph."""

    m: int = Field(default=16, ge=4, le=512)
    ef_construction: int = Field(default=200, ge=16, le=4096)
    ef_runtime: int = Field(default=100, ge=10, le=4096)


class VectorStoreSettings(_Group):
    """The embedding model and the indexes over its vectors.

    `index_type` and `rebuild_threshold` govern the FAISS bulk engine; the Redis index is always HNSW.
    """

    embedding_model: str = "all-MiniLM-L6-v2"
    vector_dimension: int = Field(default=384, ge=8, le=8192)
    index_type: Literal["Flat", "IVFFlat", "HNSW", "CAGRA"] = "IVFFlat"
    rebuild_threshold: int = Field(default=1000, ge=1)
    hnsw: HnswSettings = HnswSettings()


class LifetimeSettings(_Group):
    """Seconds that a memory of each priority lives unless `ttl_seconds` says otherwise; null is for ever."""

    critical: int | None = None
    high: int | None = 90 * DAY
    medium: int | None = 30 * DAY
    low: int | None = 7 * DAY
    archive: int | None = None
    grace: int = Field(default=3600, ge=1, description="seconds between soft expiry and removal from Redis")


class CacheSettings(_Group):
    """Vectors of texts seen before, kept in the process and in Redis."""

    entries: int = Field(default=10_000, ge=1, description="vectors kept in the process, 1.5 kB each")
    policy: Literal["lru", "lfu", "ttl"] = "lru"
    ttl_seconds: float = Field(default=3600, gt=0, description="lifetime in the process with policy ttl")
    redis_ttl_seconds: int = Field(default=7 * DAY, ge=0, description="lifetime in Redis; 0 keeps none there")


class LimitSettings(_Group):
    """Caps that are checked before anything reaches Redis."""

    content_bytes: int = 1 << 20
    metadata_bytes: int = 16_384
    query_bytes: int = 16_384
    tags: int = 32
    results: int = 100
    ids: int = 100
    operations: int = Field(default=1000, description="operations of one batch")
    clear: int = Field(default=100_000, description="memories removed by one clear_memory call")
    body_bytes: int = Field(default=4 << 20, description="bytes of one HTTP request")


class Settings(BaseSettings):
    """Everything that can be set, by flag, environment variable or `--config FILE`."""

    model_config = SettingsConfigDict(
        env_prefix="MEMORY_", env_nested_delimiter="__", extra="forbid", frozen=True, populate_by_name=True
    )

    redis: RedisSettings = RedisSettings()
    gpu: GpuSettings = GpuSettings()
    vector_store: VectorStoreSettings = VectorStoreSettings()
    lifetimes: LifetimeSettings = LifetimeSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    redis_url: SecretStr | None = Field(
        None, validation_alias=AliasChoices("REDIS_URL", "redis_url"), description="overrides `redis`"
    )
    namespace: str = Field(default="default", pattern=f"^{NAME_PATTERN}$")
    agent: str | None = Field(default=None, pattern=f"^{NAME_PATTERN}$")
    data_dir: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    embed_wait_seconds: float = Field(default=2.0, gt=0, le=30, description="how long a call waits for a vector")
    search_timeout_ms: int = Field(default=2000, ge=10, le=60_000)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

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
        return init_settings, env_settings, JsonConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, config: Path | None = None, **flags: Any) -> Settings:
        """Read `config` and the environment; flags that are not None win over both.

        Raises:
            InvalidArgument: the file is not readable JSON or holds an unknown or ill-typed setting.
        """
        if config is not None and not config.is_file():
            raise InvalidArgument(f"there is no config file {config}")
        loader = type("Settings", (cls,), {"model_config": SettingsConfigDict(json_file=config)})
        try:
            return loader(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise InvalidArgument(f"settings are not valid: {problems}") from error
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"cannot read the config file {config}: {error}") from error

    @property
    def uses_config_default_redis(self) -> bool:
        """Whether Redis is only named by the stock `localhost:6379` of a config file."""
        redis = self.redis
        stock = redis.host in {"localhost", "127.0.0.1"} and redis.port == 6379 and redis.password is None
        return self.redis_url is None and redis.url is None and stock
