"""What agents kept when they left: no agent has it, and an operator can offer it to one."""

from __future__ import annotations

from memory_core.errors import Conflict, Forbidden, NotFound, echo
from memory_core.records import owners
from memory_core.records.names import check_name
from memory_core.records.scope import Principal
from memory_server.agents.registry import offer_of, prove_transfer, raise_for_offer
from memory_server.contract.sharing import OfferedAnswer
from memory_server.engine.principals import SIGNING_ATTEMPTS
from memory_server.engine.request_context import RequestContext
from memory_server.service import Service


async def offer_kept(service: Service, request: RequestContext, name: str, target: str) -> OfferedAnswer:
    """Offer an agent what earlier holders of a name kept.

    Raises:
        NotFound: nothing is kept, or the target is not registered. Conflict: no further offer can wait for it.
        Forbidden: the caller is no admin.
    """
    if not request.caller.admin:
        raise Forbidden("only an admin offers what others kept", hint="ask the operator")
    check_name(name, "name")
    check_name(target, "target")
    keys = (await service.namespaces.get(request.caller.namespace)).keys
    for _ in range(SIGNING_ATTEMPTS):
        row = await service.backend.read(lambda client: client.hmget(keys.agent(name), owners.FIELDS))
        kept = owners.read(service.backend.integrity, keys.namespace, name, row).kept
        if not kept:
            raise NotFound(f"no agent {echo(name)} left memories here", hint="those of a registered agent are its own")
        counted = await service.quotas.count(Principal(keys.namespace, name, kept=kept))
        offer = offer_of(service.settings, counted.memories)
        answer = await service.backend.write(
            "rm1_offer_kept",
            [keys.agent(name)],
            agent=name,
            target=target,
            known=owners.parse(row).kept,
            audited_call=request.call,
            audit=request.caller.audit("offer_kept", [name, target]),
            **offer,
            **await prove_transfer(service.backend, keys.namespace, name, target, kept, offer),
        )
        if answer["status"] != "changed":
            break
    else:
        raise Conflict(f"what {echo(name)} left keeps changing", hint="try again")
    raise_for_offer(answer["status"], name, target)
    return OfferedAnswer(offer_id=offer["id"], from_agent=name, to_agent=target, memories=counted.memories)
