-- Where tasks wait, who may take them, and how they change hands: shared by the transitions of tasks and of agents.
-- `names` holds keys and beginnings of keys; times are whole microseconds.

local BAND = 2 ^ 44
local AT_ONCE = 32
local LOOK, LOOK_FAR = 8, 128
local HISTORY_KEPT = 200

local NAMESPACES_KNOWN = 1000
local known_names, names_known = {}, 0

-- Keys, and beginnings of keys, that tasks and agents live under, made of the namespace's prefix as keys.py does.
local function names_of(prefix)
  if not known_names[prefix] then
    if names_known == NAMESPACES_KNOWN then known_names, names_known = {}, 0 end
    names_known = names_known + 1
    known_names[prefix] = {
      task = prefix .. 'task:', history = prefix .. 'history:', inbox = prefix .. 'tasks:', held = prefix .. 'held:',
      backlog = prefix .. 'backlog:', blockers = prefix .. 'blockers:', dependents = prefix .. 'dependents:',
      agent = prefix .. 'agent:', owner = prefix .. 'owner:', performance = prefix .. 'perf:', did = prefix .. 'did:',
      submitted = prefix .. 'submitted:', vector = prefix .. 'taskvec:', kinds = prefix .. 'kinds',
      leases = prefix .. 'leases', delayed = prefix .. 'delayed', unclaimed = prefix .. 'unclaimed',
      deadlines = prefix .. 'deadlines', unsettled = prefix .. 'unsettled', dead = prefix .. 'dead',
      turns = prefix .. 'turns', agents = prefix .. 'agents', tombstones = prefix .. 'tombstones',
      counters = prefix .. 'counters', events = prefix .. 'events', audit = prefix .. 'audit', namespace = prefix,
      key = prefix .. 'key:', keyed = prefix .. 'keyed',
    }
  end
  return known_names[prefix]
end

local function read_request(args)
  local request = cmsgpack.unpack(args[1])
  request.names = names_of(request.prefix)
  return request
end

local function whole(number)
  return string.format('%.0f', number)
end

local function read(key, ...)
  local fields, found = {...}, {}
  for position, value in ipairs(redis.call('HMGET', key, ...)) do found[fields[position]] = value or nil end
  return found
end

local function note(names, id, now, entry)
  entry.at = stamp(now)
  if redis.call('RPUSH', names.history .. id, cmsgpack.pack(entry)) > HISTORY_KEPT then
    redis.call('LTRIM', names.history .. id, -HISTORY_KEPT, -1)
  end
end

-- Tell the submitter and whoever has the task.
local function tell(names, op, id, by, task)
  local to = task.submitter or ''
  if task.assigned and task.assigned ~= to then to = to .. '\31' .. task.assigned end
  emit(names.events, 'task', op, id, by, {to = to})
end

-- What is known of a registered agent; nil for any other name.
local function registered(names, name)
  local agent = read(names.agent .. name, 'registered_at', 'capabilities', 'context_window', 'max_tasks', 'status',
    'heartbeat_seconds', 'last_claim')
  if not agent.registered_at then return nil end
  agent.name, agent.has = name, {}
  for _, capability in ipairs(split(agent.capabilities)) do agent.has[capability] = true end
  agent.window, agent.most = tonumber(agent.context_window), tonumber(agent.max_tasks)
  return agent
end

local function is_able(agent, kind)
  if kind.only ~= '' and kind.only ~= agent.name then return false end
  if agent.window < kind.window then return false end
  for _, capability in ipairs(kind.capabilities) do
    if not agent.has[capability] then return false end
  end
  return true
end

local function is_alive(names, name, now)
  local deadline = redis.call('ZSCORE', names.agents, name)
  return deadline and tonumber(deadline) * 1000000 > now
end

local function has_room(names, agent)
  return redis.call('XLEN', names.inbox .. agent.name) < agent.most
end

-- Whether a living agent other than those to be avoided could take the task.
local function has_another(names, kind, avoid, now)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', names.agents, '(' .. stamp(now), '+inf')) do
    if not contains(avoid, name) then
      local agent = registered(names, name)
      if agent and agent.status ~= 'draining' and is_able(agent, kind) then return true end
    end
  end
  return false
end

-- An agent that failed at a task gets it again only if nobody else can take it.
local function is_avoided(names, task, kind, name, now)
  local avoid = split(task.avoid)
  return contains(avoid, name) and has_another(names, kind, avoid, now)
end

local function touch_agent(names, agent, now)
  redis.call('ZADD', names.agents, stamp(now + 2 * tonumber(agent.heartbeat_seconds) * 1000000), agent.name)
  redis.call('HSET', names.agent .. agent.name, 'last_seen', stamp(now))
  if agent.status == 'dead' then
    agent.status = 'active'
    redis.call('HSET', names.agent .. agent.name, 'status', 'active')
    emit(names.events, 'agent', 'alive', agent.name, agent.name, {})
  end
end

-- The turn of a submitter's next task among all of its priority: start-time fair queueing.
local function next_turn(names, rank, submitter)
  local mine = rank .. ':' .. submitter
  local found = redis.call('HMGET', names.turns, rank, mine)
  local turn = math.max(tonumber(found[1] or '0'), tonumber(found[2] or '0'))
  redis.call('HSET', names.turns, mine, whole(turn + 1))
  return turn
end

local function score_of(names, task)
  return whole(tonumber(task.rank) * BAND + next_turn(names, task.rank, task.submitter))
end

local function queue(names, id, task)
  if not task.score then
    task.score = score_of(names, task)
    redis.call('HSET', names.task .. id, 'score', task.score)
  end
  redis.call('HSET', names.kinds, task.kind, task.kind_spec)
  redis.call('ZADD', names.backlog .. task.kind, task.score, id)
end

local function unqueue(names, id, kind)
  if redis.call('ZREM', names.backlog .. kind, id) == 1 and redis.call('EXISTS', names.backlog .. kind) == 0 then
    redis.call('HDEL', names.kinds, kind)
  end
end

local TASK = {'state', 'kind', 'kind_spec', 'open_kind', 'open_kind_spec', 'rank', 'score', 'submitter', 'assigned',
  'entry', 'avoid', 'attempt', 'max_retries', 'lease_seconds', 'lease_token', 'fence', 'lease_until', 'holders',
  'claim_seconds', 'type', 'last_call', 'leased_at'}

local function load_task(names, id)
  return read(names.task .. id, unpack(TASK))
end

-- Put a task into an agent's hands without a lease yet.
local function assign(names, id, task, name, now)
  unqueue(names, id, task.kind)
  task.assigned = name
  task.entry = redis.call('XADD', names.inbox .. name, '*', 'task', id, 'score', task.score)
  redis.call('HSET', names.task .. id, 'assigned', name, 'entry', task.entry)
end

local function take_back(names, id, task)
  if not task.assigned then return end
  redis.call('XDEL', names.inbox .. task.assigned, task.entry)
  redis.call('SREM', names.held .. task.assigned, id)
  redis.call('ZREM', task.state == 'leased' and names.leases or names.unclaimed, id)
  redis.call('HDEL', names.task .. id, 'assigned', 'entry', 'lease_until')
end

-- Assign a queued task to the first candidate that is alive, able and has room.
local function place(names, id, task, candidates, now)
  local kind = cmsgpack.unpack(task.kind_spec)
  for _, name in ipairs(candidates) do
    local agent = registered(names, name)
    if agent and agent.status ~= 'draining' and is_alive(names, name, now) and is_able(agent, kind)
        and has_room(names, agent) and not is_avoided(names, task, kind, name, now) then
      assign(names, id, task, name, now)
      redis.call('ZADD', names.unclaimed, stamp(now + tonumber(task.claim_seconds) * 1000000), id)
      note(names, id, now, {op = 'assigned', agent = name})
      tell(names, 'assigned', id, '', task)
      return name
    end
  end
end

local function make_pending(names, id, task, now)
  redis.call('HSET', names.task .. id, 'state', 'pending')
  redis.call('HDEL', names.task .. id, 'next_at')
  queue(names, id, task)
  tell(names, 'pending', id, '', task)
end

-- End a task: nothing of it is left but its record and history, for a while.
local function finish(names, id, task, state, now, keep, fields)
  take_back(names, id, task)
  if not task.assigned then unqueue(names, id, task.kind) end
  if task.state == 'retrying' then redis.call('ZREM', names.delayed, id) end
  redis.call('ZREM', names.deadlines, id)
  redis.call('DEL', names.vector .. id, names.blockers .. id)
  redis.call('HSET', names.task .. id, 'state', state, 'finished_at', stamp(now), unpack(fields))
  redis.call('HINCRBY', names.counters, 'open_tasks', -1)
  if redis.call('HINCRBY', names.counters, 'open_tasks:' .. task.submitter, -1) <= 0 then
    redis.call('HDEL', names.counters, 'open_tasks:' .. task.submitter)
  end
  redis.call('HINCRBY', names.counters, 'tasks_' .. state, 1)
  for _, key in ipairs({names.task, names.history}) do redis.call('EXPIRE', key .. id, keep) end
  if redis.call('EXISTS', names.dependents .. id) == 1 then redis.call('SADD', names.unsettled, id) end
end

local function bury_task(names, id, task, now, keep, reason)
  finish(names, id, task, 'dead', now, keep, {'error', reason})
  local entry = redis.call('XADD', names.dead, '*', 'task', id, 'error', reason, 'attempts', task.attempt or 0)
  redis.call('HSET', names.task .. id, 'dead_entry', entry)
  note(names, id, now, {op = 'dead', error = reason})
  tell(names, 'dead', id, '', task)
end

-- Tell the dependents of ended tasks, at most AT_ONCE in all; whether any are left.
local function settle_dependents(names, now, keep)
  local budget = AT_ONCE
  while budget > 0 do
    local ended = redis.call('SRANDMEMBER', names.unsettled)
    if not ended then return false end
    local completed = redis.call('HGET', names.task .. ended, 'state') == 'completed'
    local dependents = redis.call('SPOP', names.dependents .. ended, budget)
    for _, id in ipairs(dependents) do
      local task = load_task(names, id)
      redis.call('SREM', names.blockers .. id, ended)
      if task.state == 'waiting' and not completed then
        finish(names, id, task, 'cancelled', now, keep, {'error', 'a task it depends on ended without completing'})
        note(names, id, now, {op = 'cancelled', error = 'depends on ' .. ended})
        tell(names, 'cancelled', id, '', task)
      elseif task.state == 'waiting' and redis.call('EXISTS', names.blockers .. id) == 0 then
        note(names, id, now, {op = 'unblocked'})
        make_pending(names, id, task, now)
      end
    end
    budget = budget - #dependents
    if redis.call('EXISTS', names.dependents .. ended) == 0 then redis.call('SREM', names.unsettled, ended) end
  end
  return redis.call('EXISTS', names.unsettled) == 1
end

-- An attempt ended without success: try again later, or give up. Returns the state and when the next attempt is due.
local function attempt_failed(names, id, task, now, how)
  local name = task.assigned
  take_back(names, id, task)
  local avoid = split(task.avoid)
  if not contains(avoid, name) then avoid[#avoid + 1] = name end
  redis.call('HSET', names.task .. id, 'avoid', table.concat(avoid, '\31'))
  redis.call('HINCRBY', names.performance .. name, 'failed:' .. task.type, 1)
  note(names, id, now, {op = how.op, agent = name, error = how.error, handoff = how.handoff, fence = task.fence,
    attempt = tonumber(task.attempt)})
  task.assigned, task.avoid = nil, table.concat(avoid, '\31')
  if not how.retry or tonumber(task.attempt) > tonumber(task.max_retries) then
    bury_task(names, id, task, now, how.keep, how.error)
    return 'dead'
  end
  if how.delay == 0 then
    make_pending(names, id, task, now)
    return 'pending', now
  end
  local due = now + math.floor(how.delay * 1000000)
  redis.call('HSET', names.task .. id, 'state', 'retrying', 'next_at', stamp(due))
  redis.call('ZADD', names.delayed, stamp(due), id)
  tell(names, 'retrying', id, name, task)
  return 'retrying', due
end

-- Exponential backoff with jitter: half of it is fixed, half is chance.
local function backoff(task, request)
  local longest = math.min(request.backoff * 2 ^ (tonumber(task.attempt) - 1), request.backoff_most)
  return longest * (0.5 + request.jitter / 2)
end

-- Take a task from an agent that is lost: what is leased counts as an attempt, what is only assigned does not.
local function take_from(names, id, name, now, request)
  local task = load_task(names, id)
  if task.assigned ~= name then return end
  if task.kind ~= task.open_kind then
    redis.call('HSET', names.task .. id, 'kind', task.open_kind, 'kind_spec', task.open_kind_spec)
    task.kind, task.kind_spec = task.open_kind, task.open_kind_spec
  end
  if task.state == 'leased' then
    attempt_failed(names, id, task, now, {op = 'lost', error = request.reason, handoff = request.handoff,
      retry = true, delay = 0, keep = request.keep})
  else
    take_back(names, id, task)
    task.assigned = nil
    note(names, id, now, {op = 'taken back', agent = name, error = request.reason})
    make_pending(names, id, task, now)
  end
end

-- Take up to AT_ONCE tasks from an agent. Returns how many, and whether there are more.
local function take_all_from(names, name, now, request)
  local entries = redis.call('XRANGE', names.inbox .. name, '-', '+', 'COUNT', AT_ONCE)
  for _, entry in ipairs(entries) do
    take_from(names, entry[2][2], name, now, request)
    redis.call('XDEL', names.inbox .. name, entry[1])
  end
  return #entries, redis.call('XLEN', names.inbox .. name) > 0
end
