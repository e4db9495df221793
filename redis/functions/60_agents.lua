-- The registry of agents. KEYS[1] is the agent's hash.

local CONTEXTS_READ = 4000
local UNUSED_SECONDS = 86400
local PROFILE = {'registered_at', 'type', 'capabilities', 'context_window', 'max_tasks', 'heartbeat_seconds',
  'description', 'profile', 'status', 'load', 'last_seen', 'last_claim', 'last_answer', 'able_at'}
local REGISTERED = {'type', 'capabilities', 'context_window', 'max_tasks', 'heartbeat_seconds', 'description', 'status'}
local REPORTED = {'metrics', 'metrics_at'}
local LEASE = {'state', 'assigned', 'lease_token', 'lease_until', 'lease_seconds', 'leased_at', 'session', 'progress_at',
  'deadline'}
local UNATTENDED_SECONDS = 8 * 3600  -- for so long after the last progress calls renew a lease
local RENEWED_MOST, RECORDED_EVERY = 250, 10

-- Whether two sets of fields of a registration differ.
local function has_changed(before, after)
  for _, field in ipairs(REGISTERED) do
    if before[field] ~= after[field] then return true end
  end
  return false
end

-- rm1_agent_register: register a name, or change its registration: then `fields` are those to change, and the answer has
-- what was `before`. A first registration, and one that repairs a damaged record, gets the `defaults` too. A name without
-- owner id gets the candidate, so the new holder of a name owns nothing that an earlier one left. Announces a change.
-- KEYS: agent. Answer: {status = registered | changed, again, owner, before}
rm.serve('rm1_agent_register', function(request, keys, names)
  local name, now = request.agent, rm.team_now(names)
  local known = rm.read(keys[1], 'owner', 'registered_at')
  if not known.owner and rm.is_outdated(names, name, request.proof) then return {status = 'changed'} end
  if not known.owner then rm.issue_owner(names, name, request.candidate, request.proof) end
  local before = rm.load_agent(names, name) and rm.read(keys[1], unpack(REGISTERED))
  if not before then redis.call('HDEL', keys[1], unpack(REPORTED)) end
  redis.call('HSET', keys[1], 'registered_at', known.registered_at or rm.seconds(now), 'status', 'active',
    unpack(before and request.fields or rm.append({unpack(request.defaults or {})}, unpack(request.fields))))
  local agent = rm.load_agent(names, name)
  rm.touch_agent(names, agent, now)
  rm.becomes_able(names, name, now)
  rm.touch_session(names, agent, request.session, now)
  rm.audit(names, now, request.audit)
  if not before or has_changed(before, rm.read(keys[1], unpack(REGISTERED))) then
    rm.emit(names, 'agent', 'registered', name, name, {})
  end
  return {status = 'registered', again = before ~= nil, owner = known.owner or request.candidate, before = before}
end)

-- When the lease that a token holds ends if it is renewed now, and its task; nil if the token does not hold it. Reads
-- little, because an agent may hold a thousand leases.
local function renewed_lease(names, token, agent, since, now)
  local id = string.match(token, '^([^.]*)')
  local task = rm.read(names.task .. id, unpack(LEASE))
  if not rm.holds_lease(task, agent, token, now) then return nil end
  if since and tonumber(task.leased_at) < tonumber(since) then return nil end
  return rm.seconds(rm.lease_end(task, now)), id
end

-- Record that a session of an agent reported progress of what it holds.
local function note_progress(names, agent, session, now)
  for _, id in ipairs(redis.call('SRANDMEMBER', names.held .. agent, RENEWED_MOST)) do
    if redis.call('HGET', names.task .. id, 'session') == session then
      redis.call('HSET', names.task .. id, 'progress_at', rm.seconds(now))
    end
  end
end

-- Renew the leases whose tokens a session of an agent presents: it holds them from now on. Returns those, and the tokens
-- of the others.
local function renew(names, tokens, agent, session, now)
  local renewed, lost, ends_of = {}, {}, {}
  local since = redis.call('HGET', names.agent .. agent, 'since')
  for _, token in ipairs(tokens) do
    local ends, id = renewed_lease(names, token, agent, since, now)
    if ends then
      redis.call('HSET', names.task .. id, 'lease_until', ends, 'progress_at', rm.seconds(now))
      if session then redis.call('HSET', names.task .. id, 'session', session) end
      rm.append(ends_of, ends, id)
      renewed[#renewed + 1] = {token, ends}
    else
      lost[#lost + 1] = token
    end
  end
  if #ends_of > 0 then redis.call('ZADD', names.leases, unpack(ends_of)) end
  return renewed, lost
end

-- When calls of the session that holds a lease make it end; nil if that is hardly later, or another session holds it.
local function end_by_calls(names, task, agent, session, since, at, now)
  if task.session ~= session or not rm.holds_lease(task, agent.name, task.lease_token, now) then return nil end
  if since and tonumber(task.leased_at) < tonumber(since) then return nil end
  local progress = tonumber(task.progress_at or task.leased_at)
  local ends = math.min(rm.lease_end(task, at), (progress + UNATTENDED_SECONDS) * 1000000)
  local gained = ends - tonumber(task.lease_until) * 1000000
  return gained > tonumber(task.lease_seconds) * 50000 and rm.seconds(ends) or nil
end

-- Renew leases of a session that called. Looks at up to `most` tasks; those of an agent with more are renewed by chance.
-- Returns how many it looked at, and the shortest lease in seconds.
local function renew_by_calls(names, agent, session, at, now, most)
  local shortest, ids = math.huge, redis.call('SRANDMEMBER', names.held .. agent.name, most)
  local since = redis.call('HGET', names.agent .. agent.name, 'since')
  for _, id in ipairs(ids) do
    local task = rm.read(names.task .. id, unpack(LEASE))
    local seconds = tonumber(task.lease_seconds or '')
    if seconds and task.session == session then shortest = math.min(shortest, seconds) end
    local ends = seconds and end_by_calls(names, task, agent, session, since, at, now)
    if ends then
      redis.call('HSET', names.task .. id, 'lease_until', ends)
      redis.call('ZADD', names.leases, ends, id)
    end
  end
  return #ids, shortest
end

-- rm1_agent_seen: record that sessions of agents called, each some seconds `ago`, and renew the leases that they hold.
-- KEYS: agents. Answer: {pauses}: for the first sessions, after how many seconds to record further calls; -1 if the agent
-- is not registered. The other sessions are left to the next call.
rm.serve('rm1_agent_seen', 'allow-oom', function(request, _, names)
  local now, pauses, left = nil, {}, RENEWED_MOST
  for position, item in ipairs(request.items) do
    local agent = rm.load_agent(names, item.agent)
    pauses[position] = '-1'
    if agent then
      -- Only now: calls of agents that are not registered leave no key in a namespace that they only read.
      now = now or rm.team_now(names)
      local at = now - math.floor(item.ago * 1000000)
      local last = tonumber(redis.call('HGET', names.agent .. agent.name, 'last_seen') or '') or 0
      if at > last * 1000000 then rm.touch_agent(names, agent, at) end
      rm.touch_session(names, agent, item.session, at)
      local read, shortest = renew_by_calls(names, agent, item.session, at, now, left)
      pauses[position] = tostring(math.min(agent.heartbeat_seconds / 4, shortest / 4, RECORDED_EVERY))
      left = left - read
    end
    if left <= 0 then break end
  end
  return {pauses = pauses}
end)

-- rm1_agent_session_ended: forget a session of an agent. Another session of it may then take over what it holds.
-- KEYS: agent. Answer: {status}
rm.serve('rm1_agent_session_ended', 'allow-oom', function(request, _, names)
  redis.call('ZREM', names.sessions .. request.agent, request.session)
  return {status = 'ok'}
end)

-- rm1_agent_heartbeat: record a sign of life and renew the leases of the given tokens. The brief form comes without
-- audit entry and metrics, so that it adds nothing however often an agent calls it.
-- KEYS: agent. Answer: {status = alive | unknown, renewed = [{token, until}], lost = [token], most, hands, held}
rm.serve('rm1_agent_heartbeat', 'brief', function(request, keys, names)
  local name, now = request.agent, rm.team_now(names)
  local agent = rm.load_agent(names, name)
  if not agent then return {status = 'unknown'} end
  rm.touch_agent(names, agent, now)
  if request.reports then rm.append(request.fields, 'metrics_at', rm.seconds(now)) end
  if #request.fields > 0 then redis.call('HSET', keys[1], unpack(request.fields)) end
  if agent.status == 'draining' and redis.call('HGET', keys[1], 'status') ~= 'draining' then
    rm.becomes_able(names, name, now)
  end
  rm.touch_session(names, agent, request.session, now)
  local session = (request.session or '') ~= '' and request.session or nil
  local renewed, lost = renew(names, request.tokens, name, session, now)
  if request.reports and session then note_progress(names, name, session, now) end
  if request.audit then rm.audit(names, now, request.audit) end
  return {status = 'alive', renewed = renewed, lost = lost, most = agent.most,
    hands = redis.call('XLEN', names.inbox .. name), held = redis.call('SCARD', names.held .. name)}
end)

-- rm1_agent_lost: mark an agent dead whose deadline has passed, and release a slice of the tasks that it did not claim.
-- What it leased stays its own until the leases end.
-- KEYS: agent. Answer: {status = dead | alive, taken, more}
rm.serve('rm1_agent_lost', 'allow-oom', function(request, keys, names)
  local name, now = request.agent, rm.team_now(names)
  if not rm.load_agent(names, name) then rm.discard(names.agents, name, 'its record is missing or damaged') end
  local deadline = tonumber(redis.call('ZSCORE', names.agents, name) or '0')
  if deadline > 0 and deadline * 1000000 > now then return {status = 'alive', more = false} end
  if deadline > 0 then
    redis.call('HSET', keys[1], 'status', 'dead')
    redis.call('ZADD', names.agents, '-' .. rm.seconds(now), name)
    if request.audit then rm.audit(names, now, request.audit) end
    rm.emit(names, 'agent', 'dead', name, '', {})
  end
  local taken, more = rm.release_unclaimed(names, name, now, request)
  return {status = 'dead', taken = taken, more = more}
end)

local function drop_key(names, owner)
  redis.call('DEL', names.data_key .. owner)
  redis.call('SREM', names.keyed, owner)
end

-- Delete an agent's owner ids, and the data keys with them: sensitive memories cannot be read any more.
local function delete_owners(names, owners, proofs)
  for _, owner in ipairs(owners) do
    drop_key(names, owner)
    redis.call('SADD', names.tombstones, owner)
    if proofs then redis.call('HSET', names.owner .. owner, 'deleted', proofs[owner]) end
  end
end

-- When the last memory of an owner id expires, in milliseconds: as the numbers in its contexts, which nothing raises any
-- more. 0 if there are none; nil if one never expires, or there are too many to look at. `budget` says how many contexts
-- the call still looks at.
local function end_of_memories(names, owner, budget)
  local number, last = redis.call('HLEN', names.seq .. owner), 0
  if number == 0 then return 0 end
  if number > budget.contexts then return nil end
  budget.contexts = budget.contexts - number
  local contexts = redis.call('HKEYS', names.seq .. owner)
  for _, ends in ipairs(redis.call('HPEXPIRETIME', names.seq .. owner, 'FIELDS', #contexts, unpack(contexts))) do
    if ends == -1 then return nil end
    last = math.max(last, ends)
  end
  return last
end

-- Let the owner ids that an agent leaves expire with their memories. Forgets those without any, unless they are `offered`
-- to another agent. Returns the others.
local function expire_owners(names, owners, offered)
  local used, soonest, budget = {}, rm.now() / 1000 + UNUSED_SECONDS * 1000, {contexts = CONTEXTS_READ}
  for _, owner in ipairs(owners) do
    local ends = end_of_memories(names, owner, budget)
    if ends == 0 and not offered then
      drop_key(names, owner)
      redis.call('DEL', names.owner .. owner)
    else
      used[#used + 1] = owner
      ends = ends and math.max(ends, offered and soonest or 0)
      for _, key in ipairs(ends and {names.owner, names.data_key} or {}) do
        redis.call('PEXPIREAT', key .. owner, rm.integer(ends))
      end
    end
  end
  return used
end

-- Take the owner ids from an agent that leaves. Its memories are deleted, or kept without a reader; the next holder of
-- the name gets neither them nor the tasks and events before `now`. `proofs` has the code of each owner id as a kept one,
-- or of its tombstone.
local function leave_memories(names, name, owners, mode, now, proofs)
  local key = names.agent .. name
  if mode == 'delete' then
    delete_owners(names, owners, proofs)
  else
    rm.keep_owners(names, name, expire_owners(names, owners, mode == 'transfer'), proofs)
  end
  redis.call('HDEL', key, 'owner', 'owners', 'proofs')
  redis.call('HSET', key, 'since', rm.seconds(now))
end

-- rm1_agent_unregister: remove a name from the registry, and with a target offer its memories to that agent.
-- rm1_agent_release then releases its tasks. The server signed each of the `known` owner ids beforehand, and the offer.
-- The grants end first: the answer is `more` until few are left.
-- KEYS: agent
-- Answer: {status = unregistered | more | unknown | unknown_agent | offer_waits | too_many_offers | changed, owners,
--          grants}
rm.serve('rm1_agent_unregister', 'allow-oom', function(request, keys, names)
  local name, now = request.agent, rm.now()
  if not rm.load_agent(names, name) then return {status = 'unknown'} end
  local problem = request.memories == 'transfer' and rm.transfer_problem(names, name, request.target, now)
  if problem then return {status = problem} end
  local owners = rm.proven_owners(rm.split(redis.call('HGET', keys[1], 'owners')), request.known, request.proofs)
  if not owners or (request.memories == 'transfer' and rm.is_other_offer(names, request, owners)) then
    return {status = 'changed'}
  end
  local grants, is_all = rm.end_all_grants(names, name)
  if not is_all then return {status = 'more', grants = grants} end
  leave_memories(names, name, owners, request.memories, now, request.proofs)
  if request.memories == 'transfer' then rm.offer_transfer(names, request, owners) end
  redis.call('HDEL', keys[1], unpack(PROFILE))
  rm.keep_name(names, name)
  redis.call('ZREM', names.agents, name)
  redis.call('DEL', names.performance .. name, names.did .. name, names.seen .. name, names.avoided .. name,
    names.sessions .. name)
  redis.call('UNLINK', names.submitted .. name, names.worked .. name)
  rm.forget_turns(names, name)
  rm.audit(names, now, request.audit)
  rm.emit(names, 'agent', 'unregistered', name, name, {})
  return {status = 'unregistered', owners = owners, grants = grants}
end)

-- rm1_agent_release: release a slice of an agent's tasks, then a slice of the dependents of those that ended. The last
-- slice forgets what the agent reported.
-- KEYS: agent. Answer: {taken, ended, more}
rm.serve('rm1_agent_release', 'allow-oom', function(request, keys, names)
  local now = rm.now()
  local taken, ended, more = rm.release_tasks(names, request.agent, now, request)
  if not more and not rm.is_registered(names, request.agent) then redis.call('HDEL', keys[1], unpack(REPORTED)) end
  return {taken = taken, ended = ended, more = more or rm.settle_dependents(names, now, request.keep)}
end)

-- rm1_agent_reserved: end a slice of the queued tasks that are only for an agent that left, then a slice of their
-- dependents. KEYS: agent. Answer: {ended, more}
rm.serve('rm1_agent_reserved', 'allow-oom', function(request, _, names)
  local now = rm.now()
  local ended = rm.end_reserved(names, request.agent, now, request.keep)
  return {ended = ended, more = ended == rm.BATCH or rm.settle_dependents(names, now, request.keep)}
end)

-- rm1_agent_purged: forget an owner id that has no memories left. KEYS: tombstones, owner. Answer: {status}
rm.serve('rm1_agent_purged', 'allow-oom', function(request, keys, names)
  redis.call('SREM', keys[1], request.owner)
  redis.call('UNLINK', keys[2], names.seq .. request.owner)
  return {status = 'ok'}
end)
