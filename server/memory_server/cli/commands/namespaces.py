"""`redis-memory namespaces`: lists the namespaces."""

from __future__ import annotations

from memory_core.records.keys import NAMESPACES
from memory_core.records.names import only_names
from memory_core.redis_client import Client
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options, group

namespaces = group("namespaces", "List namespaces.")


@namespaces.command("list")
@common_options("as_json", "config", "data_dir")
def list_namespaces(console: Console) -> None:
    """List the namespaces that hold something, by name. `status` also counts their contents."""

    async def read(client: Client) -> list[str]:
        async with lazy.connection.store_errors():
            return only_names(await client.smembers(NAMESPACES))

    names = console.on_redis(read)
    text = "\n".join(names) or "There is no namespace yet."
    console.show([{"namespace": name} for name in names], lambda: lazy.printing.page(text))
