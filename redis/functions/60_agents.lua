-- The registry of agents: who is there, alive and able. KEYS[1] is the agent's hash.

local PROFILE = {'registered_at', 'type', 'capabilities', 'context_window', 'max_tasks', 'heartbeat_seconds',
  'description', 'profile', 'status', 'load', 'metrics', 'last_seen', 'last_claim', 'last_answer'}

-- rm1_agent_register: register a name, or change what is registered. A name that has no owner id gets the candidate;
-- owner ids whose memories were kept stay the name's own.
-- KEYS: agent. Answer: {status = registered, again, owner}
local function register(keys, args)
  local request = read_request(args)
  local names, name, now = request.names, request.agent, wall_clock()
  local known = read(keys[1], 'owner', 'owners', 'registered_at')
  if not known.owner then
    known.owner = request.candidate
    redis.call('HSET', keys[1], 'owner', known.owner,
      'owners', known.owners and known.owners .. '\31' .. known.owner or known.owner)
    redis.call('HSET', names.owner .. known.owner, 'agent', name)
  end
  redis.call('HSET', keys[1], 'registered_at', known.registered_at or stamp(now), 'status', 'active',
    unpack(request.fields))
  touch_agent(names, registered(names, name), now)
  audit(names.audit, names.counters, now, request.audit)
  emit(names.events, 'agent', 'registered', name, name, {})
  return answer({status = 'registered', again = known.registered_at ~= nil, owner = known.owner})
end

-- Renew the lease that a token holds.
local function renew(names, token, agent, now)
  local id = string.match(token, '^([^.]*)')
  local task = load_task(names, id)
  if refused(task, {agent = agent, token = token}, now) then return nil end
  local ends = stamp(now + tonumber(task.lease_seconds) * 1000000)
  redis.call('HSET', names.task .. id, 'lease_until', ends)
  redis.call('ZADD', names.leases, ends, id)
  return ends
end

-- rm1_agent_heartbeat: a sign of life, which renews the leases whose tokens it presents.
-- KEYS: agent. Answer: {status = alive | unknown, renewed = [{token, until}], lost = [token], hands, held}
local function heartbeat(keys, args)
  local request = read_request(args)
  local names, name, now = request.names, request.agent, wall_clock()
  local agent = registered(names, name)
  if not agent then return answer({status = 'unknown'}) end
  touch_agent(names, agent, now)
  if #request.fields > 0 then redis.call('HSET', keys[1], unpack(request.fields)) end
  local renewed, lost = {}, {}
  for _, token in ipairs(request.tokens) do
    local ends = renew(names, token, name, now)
    if ends then renewed[#renewed + 1] = {token, ends} else lost[#lost + 1] = token end
  end
  if request.audit then audit(names.audit, names.counters, now, request.audit) end
  return answer({status = 'alive', renewed = renewed, lost = lost, most = agent.most,
    hands = redis.call('XLEN', names.inbox .. name), held = redis.call('SCARD', names.held .. name)})
end

-- rm1_agent_lost: mark an agent dead whose deadline has passed, and give its tasks to others, a slice at a time.
-- KEYS: agent. Answer: {status = dead | alive, taken, more}
local function lost(keys, args)
  local request = read_request(args)
  local names, name, now = request.names, request.agent, wall_clock()
  local deadline = tonumber(redis.call('ZSCORE', names.agents, name) or '0')
  if deadline > 0 and deadline * 1000000 > now then return answer({status = 'alive', more = false}) end
  if deadline > 0 then
    redis.call('HSET', keys[1], 'status', 'dead')
    redis.call('ZADD', names.agents, '-' .. stamp(now), name)
    if request.audit then audit(names.audit, names.counters, now, request.audit) end
    emit(names.events, 'agent', 'dead', name, '', {})
  end
  local said = read(keys[1], 'metrics')
  request.handoff = said.metrics and ('it last said of itself: ' .. said.metrics) or nil
  local taken, more = take_all_from(names, name, now, request)
  return answer({status = 'dead', taken = taken, more = more})
end

-- Give all owner ids of an agent to another one, or to nobody: then what they keep encrypted cannot be read any more.
local function move_owners(names, key, owners, mode, target)
  if mode == 'keep' then return redis.call('HDEL', key, 'owner') end
  redis.call('HDEL', key, 'owner', 'owners')
  for _, owner in ipairs(owners) do
    if mode == 'delete' then
      redis.call('DEL', names.key .. owner)
      redis.call('SREM', names.keyed, owner)
      redis.call('SADD', names.tombstones, owner)
    else
      local held = redis.call('HGET', names.agent .. target, 'owners')
      redis.call('HSET', names.agent .. target, 'owners', held and held .. '\31' .. owner or owner)
      redis.call('HSET', names.owner .. owner, 'agent', target)
    end
  end
end

-- rm1_agent_unregister: take a name off the registry; what it had in hand goes to others by rm1_agent_release.
-- KEYS: agent. Answer: {status = unregistered | unknown | unknown_target, owners, grants}
local function unregister(keys, args)
  local request = read_request(args)
  local names, name, now = request.names, request.agent, wall_clock()
  if not registered(names, name) then return answer({status = 'unknown'}) end
  if request.memories == 'transfer' and not registered(names, request.target) then
    return answer({status = 'unknown_target'})
  end
  local grants = drop_grants(names.namespace, name)
  local owners = split(redis.call('HGET', keys[1], 'owners') or '')
  move_owners(names, keys[1], owners, request.memories, request.target)
  redis.call('HDEL', keys[1], unpack(PROFILE))
  redis.call('ZREM', names.agents, name)
  redis.call('DEL', names.performance .. name, names.did .. name)
  for rank = 0, 3 do redis.call('HDEL', names.turns, rank .. ':' .. name) end
  audit(names.audit, names.counters, now, request.audit)
  emit(names.events, 'agent', 'unregistered', name, name, {})
  return answer({status = 'unregistered', owners = owners, grants = grants})
end

-- rm1_agent_release: give a slice of what an agent has in hand to others. KEYS: agent. Answer: {taken, more}
local function release(_, args)
  local request = read_request(args)
  local taken, more = take_all_from(request.names, request.agent, wall_clock(), request)
  return answer({taken = taken, more = more})
end

-- rm1_agent_purged: forget an owner id none of whose memories are left. KEYS: tombstones, owner. Answer: {status}
local function purged(keys, args)
  local request = cmsgpack.unpack(args[1])
  redis.call('SREM', keys[1], request.owner)
  redis.call('DEL', keys[2])
  return answer({status = 'ok'})
end

serve('rm1_agent_register', register)
serve('rm1_agent_heartbeat', heartbeat)
serve('rm1_agent_lost', lost)
serve('rm1_agent_unregister', unregister)
serve('rm1_agent_release', release)
serve('rm1_agent_purged', purged)
