"""Records written by the sharing Functions: owner ids, retention, and exact limits."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from support import embedder_fixtures
from support.embedder_fixtures import Team

from memory_core.records.codec import unpack
from memory_core.records.ids import new_id
from memory_core.store import functions

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team
KEPT_SECONDS = 30 * 86_400
SECONDS = 3600.0


class Sharing:
    """Shares of memory types in a namespace with alice, who has memories, and other registered agents."""

    def __init__(self, team: Team) -> None:
        self.team, self.client, self.names = team, team.client, team.names

    async def register(self, *names: str) -> None:
        """Register agents."""
        for name in names:
            await self.client.hset(self.names.agent(name), "registered_at", 1)

    async def share(self, by: str, to: str, values: list[str], **other: Any) -> dict[str, Any]:
        """Share memories of some types; `other` overrides fields of the request."""
        asked = {
            "prefix": self.names.prefix,
            "id": new_id(),
            "offer": None,
            "candidates": [new_id(), new_id()],
            "from": by,
            "to": to,
            "kind": "y",
            "values": values,
            "shown": values,
            "selector": " ".join(values),
            "permission": "read",
            "seconds": None,
            "offer_seconds": KEPT_SECONDS,
            "note": "",
            "audit": {"who": by, "op": "share_context_with_agent"},
        }
        held = [self.names.audit, self.names.counters, self.names.agent(by), self.names.agent(to)]
        return await functions.call(self.client, "rm1_share", held, **asked | other)

    async def revoke(self, by: str, grant: str) -> dict[str, Any]:
        """Revoke a grant."""
        asked = {"prefix": self.names.prefix, "id": grant, "who": by, "admin": False}
        audit = {"who": by, "op": "revoke_shared_context"}
        return await functions.call(
            self.client, "rm1_revoke", [self.names.audit, self.names.counters], audit=audit, **asked
        )

    async def kept_seconds(self, grant: str) -> float:
        """Remaining time to live of a grant's record; -.001 means no expiry."""
        return await self.client.pttl(self.names.grant(grant)) / 1000

    async def state(self, grant: str) -> bytes:
        """State of a grant."""
        return await self.client.hget(self.names.grant(grant), "state")


@pytest.fixture
async def sharing(team: Team) -> Sharing:
    """alice, bob and carol; only alice has an owner id."""
    made = Sharing(team)
    await made.register("alice", "bob", "carol")
    return made


async def test_sharing_gives_both_agents_an_owner_id(sharing: Sharing) -> None:
    ids = [new_id(), new_id()]
    answer = await sharing.share("bob", "carol", ["code"], candidates=ids)
    assert answer["status"] == "shared"
    for name, issued in zip(("bob", "carol"), ids, strict=True):
        row = await sharing.client.hmget(sharing.names.agent(name), "owner", "owners")
        assert row == [issued.encode(), issued.encode()]
        assert await sharing.client.hget(sharing.names.owner(issued), "agent") == name.encode()
    entry = unpack(await sharing.client.hget(sharing.names.granted("carol"), answer["id"]))
    assert (entry["by_owner"], entry["owner"], entry["own"]) == (ids[0], ids[1], [f"y:{ids[0]}:code"])


async def test_existing_owner_id_is_kept(sharing: Sharing) -> None:
    before = await sharing.client.hgetall(sharing.names.agent("alice"))
    await sharing.share("alice", "bob", ["code"])
    assert await sharing.client.hgetall(sharing.names.agent("alice")) == before


async def test_returning_agent_gets_a_new_owner_id_and_keeps_its_old_ones(sharing: Sharing) -> None:
    agent, earlier, issued = sharing.names.agent("alice"), sharing.team.owner, new_id()
    await sharing.client.hdel(agent, "owner")
    await sharing.share("alice", "bob", ["code"], candidates=[issued, new_id()])
    assert await sharing.client.hmget(agent, "owner", "owners") == [issued.encode(), f"{earlier}\x1f{issued}".encode()]
    assert await sharing.client.hget(sharing.names.owner(issued), "agent") == b"alice"


async def test_revoke_names_the_affected_agents_even_when_repeated(sharing: Sharing) -> None:
    above = await sharing.share("alice", "bob", ["code"], permission="write")
    await sharing.share("bob", "carol", ["code"])
    answers = [await sharing.revoke("alice", above["id"]) for _ in range(2)]
    assert [answer["grants"] for answer in answers] == [1, 0]
    assert sorted(set(answers[0]["touched"])) == ["bob", "carol"]
    assert answers[1]["touched"] == ["bob"]


async def test_reshared_tokens_count_toward_the_limit(sharing: Sharing) -> None:
    types = [f"t{number}" for number in range(256)]
    assert (await sharing.share("alice", "bob", types, permission="write"))["status"] == "shared"
    assert (await sharing.share("bob", "carol", types))["status"] == "shared", "256 of bob's and 256 of alice's"
    assert (await sharing.share("bob", "carol", ["more"]))["status"] == "too_many_of_pair"
    assert (await sharing.share("alice", "carol", ["more"]))["status"] == "shared"


async def test_ended_grant_record_is_kept_for_thirty_days(sharing: Sharing) -> None:
    limited = (await sharing.share("alice", "bob", ["code"], seconds=SECONDS))["id"]
    assert await sharing.kept_seconds(limited) == pytest.approx(SECONDS + KEPT_SECONDS, abs=10)
    endless = (await sharing.share("alice", "bob", ["document"]))["id"]
    assert await sharing.kept_seconds(endless) == pytest.approx(-0.001)
    assert (await sharing.share("alice", "bob", ["code"]))["id"] == limited
    assert await sharing.kept_seconds(limited) == pytest.approx(-0.001)
    await sharing.revoke("alice", endless)
    assert await sharing.kept_seconds(endless) == pytest.approx(KEPT_SECONDS, abs=10)


async def test_offer_lasts_thirty_days_or_as_long_as_its_grant(sharing: Sharing) -> None:
    for seconds, waits in ((None, KEPT_SECONDS), (SECONDS, SECONDS)):
        offer = (await sharing.share("alice", "bob", [f"{seconds}"], offer=new_id(), seconds=seconds))["offer"]
        until = float(await sharing.client.hget(sharing.names.grant(offer), "until"))
        assert until - time.time() == pytest.approx(waits, abs=10)
        assert await sharing.client.zscore(sharing.names.grants_due, offer) == pytest.approx(until, abs=0.01)


async def test_next_share_removes_ended_grants(sharing: Sharing) -> None:
    over = await sharing.share("alice", "bob", ["code"], seconds=0.001, offer=new_id())
    lasting = await sharing.share("alice", "bob", ["context"], seconds=SECONDS)
    await asyncio.sleep(0.002)
    await sharing.share("alice", "bob", ["document"])
    assert [await sharing.state(over[which]) for which in ("id", "offer")] == [b"expired", b"expired"]
    assert await sharing.state(lasting["id"]) == b"active"
    assert await sharing.client.hexists(sharing.names.granted("bob"), over["id"]) is False
    assert await sharing.client.hlen(sharing.names.granted("bob")) == 2
    assert await sharing.client.hlen(sharing.names.offers("bob")) == 0


@pytest.mark.parametrize(("earlier", "later"), [(511, 1), (512, 0), (1, 511)])
async def test_tokens_from_one_agent_to_another_are_bounded_exactly(sharing: Sharing, earlier: int, later: int) -> None:
    def types(first: int, number: int) -> list[str]:
        return [f"t{first + position}" for position in range(number)]

    assert (await sharing.share("alice", "bob", types(0, earlier)))["status"] == "shared"
    if later:
        assert (await sharing.share("alice", "bob", types(earlier, later)))["status"] == "shared"
    assert (await sharing.share("alice", "bob", ["more"]))["status"] == "too_many_of_pair"
    assert (await sharing.share("alice", "bob", types(0, earlier)))["status"] == "shared"
    assert (await sharing.share("alice", "carol", ["more"]))["status"] == "shared"
    assert (await sharing.share("carol", "bob", types(0, 512)))["status"] == "shared"


async def test_number_of_granted_tokens_is_bounded_exactly(sharing: Sharing) -> None:
    grantors = [f"grantor{number}" for number in range(8)]
    await sharing.register(*grantors, "last")
    types = [f"t{number}" for number in range(512)]
    for grantor in grantors:
        assert (await sharing.share(grantor, "bob", types))["status"] == "shared"
    assert (await sharing.share("last", "bob", ["more"]))["status"] == "too_many_tokens"
    assert (await sharing.share("grantor0", "bob", types))["status"] == "shared"


async def test_numbers_of_grants_and_offers_are_bounded_exactly(sharing: Sharing) -> None:
    grantors = ["alice", "carol", "grantor1", "grantor2"]
    await sharing.register("grantor1", "grantor2", "last")
    answers = {
        grantor: [await sharing.share(grantor, "bob", [f"t{number}"], offer=new_id()) for number in range(64)]
        for grantor in grantors
    }
    assert {answer["status"] for given in answers.values() for answer in given} == {"shared"}
    assert (await sharing.share("alice", "bob", ["more"]))["status"] == "too_many_of_pair"
    assert (await sharing.share("last", "bob", ["more"]))["status"] == "too_many_grants"
    assert (await sharing.revoke("alice", answers["alice"][-1]["id"]))["grants"] == 1
    assert (await sharing.share("last", "bob", ["more"], offer=new_id()))["status"] == "too_many_offers"
    assert (await sharing.share("alice", "bob", ["t7"], offer=new_id()))["status"] == "shared"
    assert (await sharing.share("last", "bob", ["more"]))["status"] == "shared"


async def test_offers_from_one_agent_to_another_are_bounded_exactly(sharing: Sharing) -> None:
    for number in range(64):
        answer = await sharing.share("alice", "bob", [f"t{number}"], offer=new_id())
        await sharing.revoke("alice", answer["id"])
    assert (await sharing.share("alice", "bob", ["more"], offer=new_id()))["status"] == "too_many_of_pair"
    assert (await sharing.share("carol", "bob", ["more"], offer=new_id()))["status"] == "shared"
