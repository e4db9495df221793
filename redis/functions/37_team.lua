-- The agents of a team: their time, what they can do and what they did.

-- Six rounds of the sweeper: it calls each namespace more often, so servers or Redis were down for longer gaps.
local PAUSE_SECONDS = 30
local WRITTEN_AT_ONCE = 1000 -- scores and members of one command; Lua passes no more than some 8,000 values
local TYPE_COUNTS_KEPT = 400
local SESSIONS_KEPT, SESSION_SECONDS = 64, 86400

-- Shift the ends of what had time left at the time `last`.
local function shift_deadlines(names, last, by)
  redis.call('HINCRBY', names.counters, 'paused', rm.integer(by))
  for _, key in ipairs({names.leases, names.unclaimed, names.agents}) do
    local found = redis.call('ZRANGEBYSCORE', key, '(' .. rm.seconds(last), '(+inf', 'WITHSCORES')
    for position = 1, #found, 2 do
      local ends = rm.seconds(tonumber(found[position + 1]) * 1000000 + by)
      found[position], found[position + 1] = ends, found[position]
      local task = names.task .. found[position + 1]
      if key == names.leases and redis.call('HEXISTS', task, 'lease_until') == 1 then
        redis.call('HSET', task, 'lease_until', ends)
      end
    end
    for start = 1, #found, WRITTEN_AT_ONCE do
      redis.call('ZADD', key, unpack(found, start, math.min(start + WRITTEN_AT_ONCE - 1, #found)))
    end
  end
end

-- The time of a call about tasks or agents. After a pause in which no server called, because servers or Redis were down,
-- or Redis's clock was set, leases, assignments and agents have as much time left as before it: none could be renewed.
function rm.team_now(names)
  local now, last = rm.now(), rm.number(names.counters, 'team_at') * 1000000
  local pause = now - last
  if last > 0 and math.abs(pause) > PAUSE_SECONDS * 1000000 then shift_deadlines(names, last, pause) end
  if math.abs(pause) >= 1000000 then redis.call('HSET', names.counters, 'team_at', rm.seconds(now)) end
  return now
end

-- A stored list in which `has_skills` finds items. Taking it apart costs more than all comparisons of most calls.
function rm.searchable(list)
  return '\31' .. (list or '') .. '\31'
end

-- A registered agent; nil for any other name, and for a damaged record: registering again repairs it.
function rm.load_agent(names, name)
  local agent = rm.read(names.agent .. name, 'registered_at', 'capabilities', 'context_window', 'max_tasks', 'status',
    'heartbeat_seconds', 'last_claim')
  if not agent.registered_at or rm.missing_number(agent, {'context_window', 'max_tasks', 'heartbeat_seconds'}) then
    return nil
  end
  agent.name, agent.has = name, rm.searchable(agent.capabilities)
  agent.window, agent.most = tonumber(agent.context_window), tonumber(agent.max_tasks)
  return agent
end

function rm.has_skills(agent, kind)
  if agent.window < kind.window then return false end
  for _, capability in ipairs(kind.capabilities) do
    if not string.find(agent.has, rm.searchable(capability), 1, true) then return false end
  end
  return true
end

function rm.is_able(agent, kind)
  if kind.only ~= '' and kind.only ~= agent.name then return false end
  return rm.has_skills(agent, kind)
end

function rm.is_alive(names, name, now)
  local deadline = redis.call('ZSCORE', names.agents, name)
  return deadline and tonumber(deadline) * 1000000 > now
end

function rm.has_capacity(names, agent)
  return redis.call('XLEN', names.inbox .. agent.name) < agent.most
end

-- Record that an agent becomes able to take tasks: it is told again of those that wait.
function rm.becomes_able(names, name, now)
  redis.call('HSET', names.agent .. name, 'able_at', rm.seconds(now))
end

-- Record a sign of life of an agent.
function rm.touch_agent(names, agent, now)
  redis.call('ZADD', names.agents, rm.seconds(now + tonumber(agent.heartbeat_seconds) * 1000000), agent.name)
  redis.call('HSET', names.agent .. agent.name, 'last_seen', rm.seconds(now))
  if agent.status == 'dead' then
    agent.status = 'active'
    redis.call('HSET', names.agent .. agent.name, 'status', 'active')
    rm.becomes_able(names, agent.name, now)
    rm.emit(names, 'agent', 'alive', agent.name, agent.name, {})
  end
end

-- Redis's time without pauses, in seconds: sessions do not fall silent while no server calls.
local function active_time(names, at)
  return (at - rm.number(names.counters, 'paused')) / 1000000
end

-- Record a call of one of an agent's sessions, by the time at which it is silent without another. Callers without a
-- session have the empty one.
function rm.touch_session(names, agent, session, at)
  if (session or '') == '' then return end
  local key = names.sessions .. agent.name
  redis.call('ZADD', key, string.format('%.6f', active_time(names, at) + tonumber(agent.heartbeat_seconds)), session)
  redis.call('ZREMRANGEBYRANK', key, 0, -SESSIONS_KEPT - 1)
  redis.call('EXPIRE', key, SESSION_SECONDS)
end

-- Whether a session of an agent has not ended, and called within the agent's heartbeat time.
function rm.is_session_live(names, agent, session, now)
  local deadline = (session or '') ~= '' and redis.call('ZSCORE', names.sessions .. agent.name, session)
  return deadline and tonumber(deadline) > active_time(names, now)
end

function rm.is_registered(names, name)
  return redis.call('HEXISTS', names.agent .. name, 'registered_at') == 1
end

-- Count what a registered agent did with a task, for its type. After many types no further ones are counted: all are
-- read whenever a task is routed.
function rm.count_performance(names, name, type, counts)
  if not rm.is_registered(names, name) then return end
  local key = names.performance .. name
  for count, change in pairs(counts) do
    local field = count .. ':' .. type
    if redis.call('HLEN', key) < TYPE_COUNTS_KEPT or redis.call('HEXISTS', key, field) == 1 then
      redis.call('HINCRBY', key, field, change)
    end
  end
end
