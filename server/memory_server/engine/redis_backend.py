"""The Redis backend: connects in the background, checks the server and runs commands with retries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from redis.exceptions import ResponseError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from memory_core.cancellation import cancel
from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, load_keyring
from memory_core.crypto.sealing import Transports
from memory_core.crypto.signed_entry import sign
from memory_core.errors import (
    MemoryServiceError,
    OutcomeUnknown,
    SignedElsewhere,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    UnsafeStart,
)
from memory_core.observe import tracing
from memory_core.records import redis_time
from memory_core.records.authority_codes import Authority
from memory_core.records.keys import AUDITED, LIBRARY_PROOF, NAMESPACES, namespace_of
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_core.store import functions
from memory_core.store.connection import (
    check_server,
    connect,
    durability,
    is_cluster,
    is_usable,
    on_move,
    on_reconnect,
    redis_url,
    store_errors,
)
from memory_core.store.functions import Library, NewerLibrary
from memory_core.store.signer import check_signer
from memory_server.engine.audited_calls import AuditedCall

log = logging.getLogger(__name__)
T = TypeVar("T")

READY_WAIT_SECONDS = 30.0
RESTART_WAIT_SECONDS = 8.0
"""How long a repeatable call waits while Redis restarts."""
_WATCH_SECONDS = 2.0
LIBRARY_SECONDS = 5.0
"""How often the Functions in Redis are compared with this release's."""


class Backend:
    """Connects in the background, so that a server can answer its client before Redis is up."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = ""
        self.run_id = ""
        self.durability = "none"
        self.keyring = Keyring()
        self.transports = Transports()
        self.integrity = Integrity(self.keyring)
        self.on_authority_failure: Callable[[Authority, str, str], object] = self.integrity.on_authority_failure
        self.on_library_restored: Callable[[], None] = lambda: None
        self.library_problem: MemoryServiceError | None = None
        """Why this process calls no Function: those in Redis are not of this release, nor signed by a newer one."""
        self.on_damage: Callable[[str, list[list[str]]], None] = lambda _namespace, _damaged: None
        """Receives the namespace, and the key, entry and reason of what a Function removed as damaged."""
        self.on_audited: Callable[[str], None] = lambda _: None
        self.on_moved: Callable[[], None] = lambda: None
        self.fatal: asyncio.Future[UnsafeStart] = asyncio.get_running_loop().create_future()
        self._client: Client | None = None
        self._failure: MemoryServiceError | None = None
        self._connected = asyncio.Event()
        self.is_suspect = True
        self._looking = asyncio.Lock()
        self._local: Any = None
        self._audited: set[str] = set()
        self._existing: set[str] = set()
        self._may_sign: set[str] = set()
        self.adopted: set[str] = set()
        """Namespaces where an authorisation record with a code was found."""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Backend]:
        async with asyncio.TaskGroup() as tasks:
            own = [tasks.create_task(self._connect()), tasks.create_task(self._watch())]
            try:
                yield self
            finally:
                await cancel(own)
                await self._close()

    @property
    def is_embedded(self) -> bool:
        """Whether this is the Redis of a data directory."""
        return self._local is not None

    @property
    def is_scattered(self) -> bool:
        """Whether namespaces may be on different Redis nodes, so that no command can read from two."""
        return self._client is not None and is_cluster(self._client)

    async def client(self) -> Client:
        """Wait for Redis. Raises UnsafeStart (its configuration is unsafe) or StoreUnavailable (not up in time)."""
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(READY_WAIT_SECONDS):
                    await self._connected.wait()
            except TimeoutError:
                raise self._failure or StoreUnavailable("Redis is not up yet", retry_after=2.0) from None
        if self._client is None:
            raise self._failure or StoreUnavailable("Redis is not connected")
        return self._client

    async def read(self, command: Callable[[Client], Awaitable[T]]) -> T:
        """Run a command that changes nothing, with retries. Raises StoreUnavailable (no answer, or loading)."""
        client = await self.client()

        async def attempt() -> T:
            async with store_errors(deadline=self.settings.redis.timeout_seconds):
                return await command(client)

        return await AsyncRetrying(
            retry=retry_if_exception_type(StoreUnavailable) & retry_if_not_exception_type(StoreRefused) & _not_loading,
            stop=stop_after_delay(1.0),
            wait=wait_random_exponential(multiplier=0.02, max=0.3),
            reraise=True,
        )(attempt)

    async def write(
        self,
        function: str,
        keys: list[str],
        *,
        repeatable: bool = False,
        audited_call: AuditedCall | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Call a Redis Function with a signed audit entry. Only a `repeatable` one is retried when its answer is lost.

        Raises StoreUnavailable (nothing was changed) or OutcomeUnknown (sent, but not answered).
        """
        client = await self._writer()
        with tracing.span(function):
            if "audit" not in request:
                return await self._write(client, function, keys, repeatable, request)
            namespace = namespace_of(keys[0])
            await self.remember_audited(namespace)
            entry = sign(self.keyring, namespace, request["audit"])
            answer = await self._write(client, function, keys, repeatable, {**request, "audit": entry})
            if answer.get("audited") == entry.get("nonce", ""):
                self.on_audited(namespace)
                if audited_call is not None:
                    audited_call.written = True
            return answer

    async def remember_audited(self, namespace: str) -> None:
        """Register a namespace's audit for the sweeper, even if nothing is stored there. Raises StoreUnavailable.

        A full Redis refuses that; the next write tries again.
        """
        if namespace in self._audited:
            return
        client = await self.client()
        with suppress(StoreFull):
            async with store_errors():
                if not await client.sismember(AUDITED, namespace):
                    await client.sadd(AUDITED, namespace)
            self._audited.add(namespace)

    async def exists(self, namespace: str) -> bool:
        """Whether anything was ever written to a namespace. Raises StoreUnavailable."""
        if namespace in self._audited or namespace in self._existing:
            return True
        for known in (NAMESPACES, AUDITED):
            if await self.read(lambda client, known=known: client.sismember(known, namespace)):
                self._existing.add(namespace)
                break
        return namespace in self._existing

    async def hold_lease(self, key: str, holder: str, seconds: float) -> bool:
        """Take or renew a lease; return False if another process holds it. Raises StoreUnavailable."""
        request = {"holder": holder, "milliseconds": round(seconds * 1000)}
        answer = await self._write(await self._writer(), "rm1_hold_lease", [key], True, request)
        return answer["held"]

    async def check_signer(self, namespace: str) -> None:
        """Check once in a while that this process has the key of a namespace. Raises SignedElsewhere."""
        if namespace not in self._may_sign:
            await self.read(lambda client: check_signer(client, self.keyring, namespace))
            self._may_sign.add(namespace)

    async def _writer(self) -> Client:
        """Wait for a Redis whose Functions may be called. Raises as `client`, and StoreRefused if they may not."""
        client = await self.client()
        if self.library_problem is not None:
            raise StoreRefused(self.library_problem.message, hint=self.library_problem.hint)
        return client

    async def _write(
        self, client: Client, function: str, keys: list[str], repeatable: bool, request: dict[str, Any]
    ) -> dict[str, Any]:
        outcomes = (StoreUnavailable, OutcomeUnknown) if repeatable else StoreUnavailable
        unknown: OutcomeUnknown | None = None

        async def attempt() -> dict[str, Any]:
            nonlocal unknown
            try:
                async with store_errors(writing=True, deadline=self.settings.redis.timeout_seconds):
                    answer = await functions.call(client, function, keys, **request)
                if "damaged" in answer:
                    namespace = namespace_of(keys[0]) if keys[0].startswith("rm:{") else self.settings.namespace
                    self.on_damage(namespace, answer.pop("damaged"))
                return answer
            except OutcomeUnknown as error:
                unknown = error
                raise
            except StoreUnavailable:
                if unknown:
                    raise unknown from None
                raise

        return await AsyncRetrying(
            retry=retry_if_exception_type(outcomes) & retry_if_not_exception_type(StoreRefused),
            stop=stop_after_delay(RESTART_WAIT_SECONDS if repeatable else 1.0),
            wait=wait_random_exponential(multiplier=0.05, max=1.0),
            reraise=True,
        )(attempt)

    def starts_sidecar(self) -> bool:
        """Whether the embedded Redis is about to start its own sidecar."""
        state = self._local.state() if self._local else None
        return state is not None and state.sidecar_error is None and not state.sidecar_restarts

    async def look_again(self) -> None:
        """After a reconnect, check whether it is the same Redis."""
        async with self._looking:
            if not self.is_suspect:
                return
            client = await self.client()
            async with store_errors():
                info = await client.info("server")
                await redis_time.ask(client)
            self.is_suspect = False
            if str(info["run_id"]) != self.run_id:
                self.run_id = str(info["run_id"])
                await self.check_library()
                async with store_errors():
                    self.durability = await durability(client, await client.info("persistence"))

    async def check_library(self) -> None:
        """Load the Functions again if they are missing or were changed, or refuse writes; raises StoreUnavailable.

        A newer release's are used only if that release signed them: a Function receives the keys of memories.
        """
        client = await self.client()
        async with store_errors():
            try:
                restored = await self._load_library(client)
            except NewerLibrary as error:
                self.library_problem = None if await self._is_signed(client, error.library) else error
                return
            except StoreFull as error:
                self.library_problem = error
                return
            except ResponseError as error:  # another library has Functions of the same names
                hint = "look at FUNCTION LIST, delete what is not of this product, and change the passwords of Redis"
                self.library_problem = StoreRefused(f"the Functions cannot be loaded: {error}", hint=hint)
                log.error("%s", self.library_problem.message)
                return
        self.library_problem = None
        if restored:
            log.error("the Functions in Redis were missing or had been changed; those of this release are loaded again")
            self.on_library_restored()

    async def _load_library(self, client: Client) -> bool:
        """Load the library if it is missing or was changed, and sign it for servers of earlier releases."""
        restored = await functions.load_library(client)
        if self.integrity.signs and (restored or not await client.exists(LIBRARY_PROOF)):
            fields = (functions.RELEASE, functions.library_digest())
            code = self.integrity.sign_authority(Authority.LIBRARY, "", functions.LIBRARY, *fields)
            await client.set(LIBRARY_PROOF, " ".join([*fields, code]))
        return restored

    async def _is_signed(self, client: Client, library: Library) -> bool:
        """Whether a server with the signing key loaded a library. Without a key no Function receives one."""
        raw = await client.get(LIBRARY_PROOF)
        code = (raw or b"").decode(errors="replace").rpartition(" ")[2]
        named = (functions.LIBRARY, code, library.release, library.digest)
        return self.integrity.inspect_authority(Authority.LIBRARY, "", *named) is None

    async def _watch(self) -> None:
        await self._connected.wait()
        checked = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self.read(redis_time.ask)
                self._may_sign.clear()
                await self.check_signer(self.settings.namespace)
                if time.monotonic() - checked >= LIBRARY_SECONDS:
                    checked = time.monotonic()
                    await self.check_library()
            except SignedElsewhere as error:
                self._fail(error)
            except MemoryServiceError:
                continue
            except Exception:  # such as a key of another type: it must not end the server
                log.exception("checking Redis failed; the next check is in %s s", _WATCH_SECONDS)

    def _fail(self, error: UnsafeStart) -> None:
        self._failure = error
        if not self.fatal.done():
            self.fatal.set_result(error)

    async def _connect(self) -> None:
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(StoreUnavailable),
                wait=wait_random_exponential(multiplier=0.1, max=2.0),
                before_sleep=self._remember,
            ):
                with attempt:
                    await self._connect_once()
        except UnsafeStart as error:
            self._fail(error)
        except MemoryServiceError as error:
            self._failure = error
        except Exception as error:
            log.exception("connecting to Redis failed")
            self._failure = StoreUnavailable(f"Redis cannot be used: {type(error).__name__}", hint="see the log")
        self._connected.set()
        if self._local is not None:
            await self._local.watch()

    def _remember(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, MemoryServiceError):
            self._failure = error
            log.warning("%s", error.message)
        if isinstance(error, StoreRefused):
            self._connected.set()

    async def _connect_once(self) -> None:
        keyring = await asyncio.to_thread(load_keyring, self.settings)
        self.transports = Transports(keyring.transports)
        self.url, client = await self._find(keyring)
        self.keyring = keyring.with_own(self._local.paths.integrity_key) if self._local else keyring
        self.integrity = Integrity(self.keyring)
        self.integrity.on_authority_failure = self.on_authority_failure
        on_reconnect(client, self._mark_suspect)
        on_move(client, self._doubt_coverage)
        try:
            info = await check_server(client)
            async with store_errors():
                await self._load_library(client)
                await redis_time.ask(client)
                await check_signer(client, self.keyring, self.settings.namespace)
            self.durability = await durability(client, info)
            if self._local is not None:
                await self._local.share_keys()
        except BaseException:
            await client.aclose()
            raise
        self.run_id = str(info["run_id"])
        self._client = client
        log.info("connected to Redis %s", info["redis_version"])

    async def _find(self, keyring: Keyring) -> tuple[str, Client]:
        url = redis_url(self.settings)
        if url is not None and self.settings.uses_config_default_redis and not await is_usable(url):
            log.warning("no usable Redis at localhost:6379; using the embedded Redis instead")
            url = None
        if url is None:
            from memory_server.local.attach import attach  # only the embedded Redis needs these imports

            if self._local is None:
                gpu, model = self.settings.gpu, self.settings.vector_store.embedding_model
                device = gpu.preferred_device if gpu.enable_acceleration else "cpu"
                keys = ",".join(secret.encoded for secret in keyring.transports)
                self._local = await attach(self.settings.data_dir, model=model, device=device, transport_keys=keys)
            url = str(self._local.url)
        return url, connect(url)

    def _mark_suspect(self) -> None:
        self.is_suspect = True

    def _doubt_coverage(self) -> None:
        self.is_suspect = True
        self.on_moved()

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
        if self._local is not None:
            self._local.close()


def _not_loading(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return not (isinstance(error, StoreUnavailable) and "loading" in error.message)
