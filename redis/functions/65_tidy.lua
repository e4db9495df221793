-- The check for damage that no walk over what is due comes across: it would slow down or mislead a namespace for good.

local SAMPLE, MOST = 32, 256
local READS = {SCARD = true, ZCARD = true, XLEN = true, GET = true}

-- Read keys, so that those of another type are removed.
local function read_keys(command, ...)
  for _, key in ipairs({...}) do redis.call(command, key) end
end

local function read_fixed_keys(names)
  read_keys('ZCARD', names.agents, names.leases, names.unclaimed, names.delayed, names.deadlines, names.grants_due,
    names.chores, names.tokens)
  read_keys('SCARD', names.unsettled, names.tombstones, names.keyed)
  read_keys('XLEN', names.events, names.dead_tasks, names.audit, names.damaged)
  read_keys('HLEN', names.counters, names.kinds, names.turns, names.quarantined)
end

local function read_keys_of(names, name)
  read_keys('XLEN', names.inbox .. name)
  read_keys('SCARD', names.held .. name, names.granting .. name)
  read_keys('HLEN', names.performance .. name, names.granted .. name, names.offers .. name)
  read_keys('ZCARD', names.submitted .. name, names.worked .. name)
  redis.call('LRANGE', names.did .. name, 0, 0)
end

-- Remove what an agent holds or is assigned without a task that says so: it counts against the agent's capacity.
local function check_hands(names, name)
  local held, inbox = names.held .. name, names.inbox .. name
  for _, id in ipairs(redis.call('SRANDMEMBER', held, MOST)) do
    local task = rm.read(names.task .. id, 'state', 'assigned')
    if task.state ~= 'leased' or task.assigned ~= name then rm.discard(held, id, 'the agent has no lease of it') end
  end
  local found = 0
  for _, entry in ipairs(redis.call('XRANGE', inbox, '-', '+')) do
    if found == MOST then break end
    local task = rm.read(names.task .. (entry[2][2] or ''), 'assigned', 'entry')
    if task.assigned ~= name or task.entry ~= entry[1] then
      rm.discard(inbox, entry[1], 'the task is not assigned to the agent')
      found = found + 1
    end
  end
end

-- Remove grants and offers without a record: no agent could end them.
local function check_grants(names, name)
  for _, key in ipairs({names.granted, names.offers}) do
    for _, id in ipairs(redis.call('HKEYS', key .. name)) do
      local grant = rm.read(names.grant .. id, 'state', 'from', 'to', 'kind', 'values', 'until')
      if not (grant.state and grant.from and grant.to and grant.kind and tonumber(grant['until']))
          or not rm.unpack(grant.values) then
        rm.discard(key .. name, id, 'its record is missing or damaged')
      elseif not rm.load_entry(key .. name, id) then
        redis.call('HSET', names.grant .. id, 'state', 'revoked')
      end
    end
  end
end

-- rm1_tidy_key: remove a key outside all namespaces if it is of another type than `command` reads.
-- KEYS: the key. Answer: {status}
rm.serve('rm1_tidy_key', 'allow-oom', function(request, keys)
  if READS[request.command] then redis.call(request.command, keys[1]) end
  return {status = 'ok'}
end)

-- rm1_tidy: remove keys of another type, and what is damaged of some agents, other ones each time.
-- KEYS: leases. Answer: {status}
rm.serve('rm1_tidy', 'allow-oom', function(_, _, names)
  read_fixed_keys(names)
  local left = MOST
  local start = math.random(0, math.max(redis.call('ZCARD', names.agents) - SAMPLE, 0))
  for _, name in ipairs(redis.call('ZRANGE', names.agents, start, start + SAMPLE - 1)) do
    read_keys_of(names, name)
    if not rm.load_agent(names, name) then
      rm.discard(names.agents, name, 'its record is missing or damaged')
    end
    local entries = redis.call('SCARD', names.held .. name) + redis.call('XLEN', names.inbox .. name)
      + redis.call('HLEN', names.granted .. name) + redis.call('HLEN', names.offers .. name)
    if left == MOST or entries <= left then
      check_hands(names, name)
      check_grants(names, name)
      left = left - entries
    end
  end
  return {status = 'ok'}
end)
