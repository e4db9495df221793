-- The registry of agents. KEYS[1] is the agent's hash.

local PROFILE = {'registered_at', 'type', 'capabilities', 'context_window', 'max_tasks', 'heartbeat_seconds',
  'description', 'profile', 'status', 'load', 'metrics', 'last_seen', 'last_claim', 'last_answer'}

-- rm1_agent_register: register a name, or change its registration. A name without owner id gets the candidate, so the
-- new holder of a name owns nothing that an earlier one left.
-- KEYS: agent. Answer: {status = registered | changed, again, owner}
rm.serve('rm1_agent_register', function(request, keys, names)
  local name, now = request.agent, rm.now()
  local known = rm.read(keys[1], 'owner', 'registered_at')
  if not known.owner and rm.is_outdated(names, name, request.proof) then return {status = 'changed'} end
  if not known.owner then rm.issue_owner(names, name, request.candidate, request.proof) end
  redis.call('HSET', keys[1], 'registered_at', known.registered_at or rm.seconds(now), 'status', 'active',
    unpack(request.fields))
  rm.touch_agent(names, rm.load_agent(names, name), now)
  rm.audit(names, now, request.audit)
  rm.emit(names, 'agent', 'registered', name, name, {})
  return {status = 'registered', again = known.registered_at ~= nil, owner = known.owner or request.candidate}
end)

-- Renew the lease that a token holds.
local function renew(names, token, agent, now)
  local id = string.match(token, '^([^.]*)')
  local task = rm.load_task(names, id)
  if rm.lease_problem(names, task, {agent = agent, token = token}, now) then return nil end
  local ends = rm.seconds(now + tonumber(task.lease_seconds) * 1000000)
  redis.call('HSET', names.task .. id, 'lease_until', ends)
  redis.call('ZADD', names.leases, ends, id)
  return ends
end

-- rm1_agent_heartbeat: record a sign of life and renew the leases of the given tokens.
-- KEYS: agent. Answer: {status = alive | unknown, renewed = [{token, until}], lost = [token], most, hands, held}
rm.serve('rm1_agent_heartbeat', function(request, keys, names)
  local name, now = request.agent, rm.now()
  local agent = rm.load_agent(names, name)
  if not agent then return {status = 'unknown'} end
  rm.touch_agent(names, agent, now)
  if #request.fields > 0 then redis.call('HSET', keys[1], unpack(request.fields)) end
  local renewed, lost = {}, {}
  for _, token in ipairs(request.tokens) do
    local ends = renew(names, token, name, now)
    if ends then renewed[#renewed + 1] = {token, ends} else lost[#lost + 1] = token end
  end
  if request.audit then rm.audit(names, now, request.audit) end
  return {status = 'alive', renewed = renewed, lost = lost, most = agent.most,
    hands = redis.call('XLEN', names.inbox .. name), held = redis.call('SCARD', names.held .. name)}
end)

-- rm1_agent_lost: mark an agent dead whose deadline has passed, and release a slice of its tasks.
-- KEYS: agent. Answer: {status = dead | alive, taken, ended, more}
rm.serve('rm1_agent_lost', function(request, keys, names)
  local name, now = request.agent, rm.now()
  local deadline = tonumber(redis.call('ZSCORE', names.agents, name) or '0')
  if deadline > 0 and deadline * 1000000 > now then return {status = 'alive', more = false} end
  if deadline > 0 then
    redis.call('HSET', keys[1], 'status', 'dead')
    redis.call('ZADD', names.agents, '-' .. rm.seconds(now), name)
    if request.audit then rm.audit(names, now, request.audit) end
    rm.emit(names, 'agent', 'dead', name, '', {})
  end
  local metrics = redis.call('HGET', keys[1], 'metrics')
  request.handoff = metrics and ('last reported metrics: ' .. metrics) or nil
  local taken, ended, more = rm.release_tasks(names, name, now, request)
  return {status = 'dead', taken = taken, ended = ended, more = more}
end)

-- Delete an agent's owner ids, and the data keys with them: sensitive memories cannot be read any more.
local function delete_owners(names, owners, proofs)
  for _, owner in ipairs(owners) do
    redis.call('DEL', names.data_key .. owner)
    redis.call('SREM', names.keyed, owner)
    redis.call('SADD', names.tombstones, owner)
    if proofs then redis.call('HSET', names.owner .. owner, 'deleted', proofs[owner]) end
  end
end

-- Take the owner ids from an agent that leaves. Its memories are deleted, or kept without a reader; the next holder of
-- the name gets neither them nor the tasks and events before `now`. `proofs` has the code of each owner id as a kept one,
-- or of its tombstone.
local function leave_memories(names, name, owners, mode, now, proofs)
  local key = names.agent .. name
  if mode == 'delete' then delete_owners(names, owners, proofs) else rm.keep_owners(names, name, owners, proofs) end
  redis.call('HDEL', key, 'owner', 'owners', 'proofs')
  redis.call('HSET', key, 'since', rm.seconds(now))
end

-- rm1_agent_unregister: remove a name from the registry, and with a target offer its memories to that agent.
-- rm1_agent_release then releases its tasks. The server signed each of the `known` owner ids beforehand, and the offer.
-- KEYS: agent
-- Answer: {status = unregistered | unknown | unknown_agent | offer_waits | too_many_offers | changed, owners, grants}
rm.serve('rm1_agent_unregister', function(request, keys, names)
  local name, now = request.agent, rm.now()
  if not rm.load_agent(names, name) then return {status = 'unknown'} end
  local problem = request.memories == 'transfer' and rm.transfer_problem(names, name, request.target, now)
  if problem then return {status = problem} end
  local owners = rm.proven_owners(rm.split(redis.call('HGET', keys[1], 'owners')), request.known, request.proofs)
  if not owners or (request.memories == 'transfer' and rm.is_other_offer(names, request, owners)) then
    return {status = 'changed'}
  end
  local grants = rm.end_all_grants(names, name)
  leave_memories(names, name, owners, request.memories, now, request.proofs)
  if request.memories == 'transfer' then rm.offer_transfer(names, request, owners) end
  redis.call('HDEL', keys[1], unpack(PROFILE))
  redis.call('ZREM', names.agents, name)
  redis.call('DEL', names.performance .. name, names.did .. name, names.seen .. name, names.avoided .. name)
  redis.call('UNLINK', names.submitted .. name, names.turns_of .. name)
  for rank = 0, 3 do redis.call('HDEL', names.turns, rank .. ':' .. name) end
  rm.audit(names, now, request.audit)
  rm.emit(names, 'agent', 'unregistered', name, name, {})
  return {status = 'unregistered', owners = owners, grants = grants}
end)

-- rm1_agent_release: release a slice of an agent's tasks. KEYS: agent. Answer: {taken, ended, more}
rm.serve('rm1_agent_release', function(request, _, names)
  local taken, ended, more = rm.release_tasks(names, request.agent, rm.now(), request)
  return {taken = taken, ended = ended, more = more}
end)

-- rm1_agent_reserved: end a slice of the queued tasks that are only for an agent that left. KEYS: agent.
-- Answer: {ended, more}
rm.serve('rm1_agent_reserved', function(request, _, names)
  local ended = rm.end_reserved(names, request.agent, rm.now(), request.keep)
  return {ended = ended, more = ended == rm.BATCH}
end)

-- rm1_agent_purged: forget an owner id that has no memories left. KEYS: tombstones, owner. Answer: {status}
rm.serve('rm1_agent_purged', function(request, keys)
  redis.call('SREM', keys[1], request.owner)
  redis.call('DEL', keys[2])
  return {status = 'ok'}
end)
