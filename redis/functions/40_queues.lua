-- Queues, assignments and attempts of tasks, shared by the Functions of tasks and of agents.

-- How many tasks one call handles, so that Redis never stalls.
rm.BATCH = 32

local HISTORY_KEPT = 200
local TYPE_COUNTS_KEPT = 400
local AVOIDED_KEPT, COMPARED_MOST = 1000, 1024

local TASK = {'state', 'kind', 'kind_spec', 'open_kind', 'open_kind_spec', 'rank', 'score', 'submitter', 'assigned',
  'entry', 'avoid', 'attempt', 'max_retries', 'lease_seconds', 'lease_token', 'fence', 'lease_until', 'holders',
  'claim_seconds', 'type', 'last_call', 'leased_at'}

function rm.load_task(names, id)
  return rm.read(names.task .. id, unpack(TASK))
end

function rm.add_history(names, id, now, entry)
  entry.at = rm.seconds(now)
  if redis.call('RPUSH', names.history .. id, cmsgpack.pack(entry)) > HISTORY_KEPT then
    redis.call('LTRIM', names.history .. id, -HISTORY_KEPT, -1)
  end
end

-- Write an event for the agent that the task is assigned to, and for the submitter while it has its name.
function rm.emit_task(names, op, id, by, task)
  local to, created_at = {task.assigned}, redis.call('HGET', names.task .. id, 'created_at')
  if task.submitter ~= task.assigned and not rm.is_before_holder(names, task.submitter, created_at) then
    to[#to + 1] = task.submitter
  end
  rm.emit(names, 'task', op, id, by, {to = table.concat(to, '\31')})
end

-- Write both: a history entry, and an event by its agent.
function rm.record(names, id, task, now, entry)
  rm.add_history(names, id, now, entry)
  rm.emit_task(names, entry.op, id, entry.agent, task)
end

-- A registered agent; nil for any other name.
function rm.load_agent(names, name)
  local agent = rm.read(names.agent .. name, 'registered_at', 'capabilities', 'context_window', 'max_tasks', 'status',
    'heartbeat_seconds', 'last_claim')
  if not agent.registered_at then return nil end
  agent.name, agent.has = name, rm.set(rm.split(agent.capabilities))
  agent.window, agent.most = tonumber(agent.context_window), tonumber(agent.max_tasks)
  return agent
end

local function has_skills(agent, kind)
  if agent.window < kind.window then return false end
  for _, capability in ipairs(kind.capabilities) do
    if not agent.has[capability] then return false end
  end
  return true
end

function rm.is_able(agent, kind)
  if kind.only ~= '' and kind.only ~= agent.name then return false end
  return has_skills(agent, kind)
end

local function is_alive(names, name, now)
  local deadline = redis.call('ZSCORE', names.agents, name)
  return deadline and tonumber(deadline) * 1000000 > now
end

local function has_capacity(names, agent)
  return redis.call('XLEN', names.inbox .. agent.name) < agent.most
end

-- The agent at a position of the team; false if it takes no tasks. Each is read once for all tasks of a call.
local function team_member(names, team, position)
  local agent = rm.load_agent(names, team.names[position])
  team.agents[position] = agent and agent.status ~= 'draining' and agent or false
  return team.agents[position]
end

-- Whether a living agent that did not fail at a task could take it. `team` is one table for all tasks of a call, empty at
-- first. Of more agents than are compared one is taken to be able.
local function has_another(names, team, kind, failed, now)
  if kind.only ~= '' then return false end
  if not team.names then
    team.agents = {}
    team.names = redis.call('ZRANGE', names.agents, '+inf', '(' .. rm.seconds(now), 'BYSCORE', 'REV', 'LIMIT', 0,
      COMPARED_MOST)
  end
  for position = 1, #team.names do
    local agent = team.agents[position]
    if agent == nil then agent = team_member(names, team, position) end
    if agent and has_skills(agent, kind) and not failed[agent.name] then return true end
  end
  return #team.names == COMPARED_MOST
end

-- Offer a task to others first, for as long as an assignment waits for its claim, from the time of its retry.
local function avoid(names, id, task, name, now, due)
  local key = names.avoided .. name
  redis.call('ZADD', key, rm.seconds(due + tonumber(task.claim_seconds) * 1000000), id)
  redis.call('ZREMRANGEBYRANK', key, 0, -AVOIDED_KEPT - 1)
  local last = tonumber(redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
  redis.call('EXPIRE', key, math.max(math.ceil(last - now / 1000000), 1))
end

-- The tasks that an agent failed at and that others are still offered first.
function rm.avoided_by(names, name, now)
  redis.call('ZREMRANGEBYSCORE', names.avoided .. name, '-inf', rm.seconds(now))
  return rm.set(redis.call('ZRANGE', names.avoided .. name, 0, -1))
end

-- Whether an agent failed at a task and others are still offered it first.
local function is_avoided(names, id, name, now)
  local ends = redis.call('ZSCORE', names.avoided .. name, id)
  return ends and tonumber(ends) * 1000000 > now
end

-- Record a sign of life of an agent.
function rm.touch_agent(names, agent, now)
  redis.call('ZADD', names.agents, rm.seconds(now + 2 * tonumber(agent.heartbeat_seconds) * 1000000), agent.name)
  redis.call('HSET', names.agent .. agent.name, 'last_seen', rm.seconds(now))
  if agent.status == 'dead' then
    agent.status = 'active'
    redis.call('HSET', names.agent .. agent.name, 'status', 'active')
    rm.emit(names, 'agent', 'alive', agent.name, agent.name, {})
  end
end

function rm.queue_task(names, id, task)
  if not task.score then
    task.score = rm.score_of(names, task)
    redis.call('HSET', names.task .. id, 'score', task.score)
  end
  redis.call('ZADD', names.turns_of .. task.submitter, task.score, id)
  redis.call('HSET', names.kinds, task.kind, task.kind_spec)
  redis.call('ZADD', names.backlog .. task.kind, task.score, id)
end

local function unqueue_task(names, id, kind)
  if redis.call('ZREM', names.backlog .. kind, id) == 1 and redis.call('EXISTS', names.backlog .. kind) == 0 then
    redis.call('HDEL', names.kinds, kind)
  end
end

-- Assign a task to an agent, without a lease.
function rm.assign(names, id, task, name)
  unqueue_task(names, id, task.kind)
  task.assigned = name
  task.entry = redis.call('XADD', names.inbox .. name, '*', 'task', id, 'score', task.score)
  redis.call('HSET', names.task .. id, 'assigned', name, 'entry', task.entry)
end

local function unassign(names, id, task)
  if not task.assigned then return end
  redis.call('XDEL', names.inbox .. task.assigned, task.entry)
  redis.call('SREM', names.held .. task.assigned, id)
  redis.call('ZREM', task.state == 'leased' and names.leases or names.unclaimed, id)
  redis.call('HDEL', names.task .. id, 'assigned', 'entry', 'lease_until')
end

-- Assign a queued task to the first candidate that is alive, able and has capacity.
function rm.assign_to_first(names, id, task, candidates, now)
  local kind = cmsgpack.unpack(task.kind_spec)
  for _, name in ipairs(candidates) do
    local agent = rm.load_agent(names, name)
    if agent and agent.status ~= 'draining' and is_alive(names, name, now) and rm.is_able(agent, kind)
        and has_capacity(names, agent) and not is_avoided(names, id, name, now) then
      rm.assign(names, id, task, name)
      redis.call('ZADD', names.unclaimed, rm.seconds(now + tonumber(task.claim_seconds) * 1000000), id)
      rm.add_history(names, id, now, {op = 'assigned', agent = name})
      rm.emit_task(names, 'assigned', id, '', task)
      return name
    end
  end
end

-- The agent that a task is only for, if it left since: it is not registered, or another agent took its name.
local function lost_agent(names, id, task)
  local only = cmsgpack.unpack(task.kind_spec).only
  if only == '' then return nil end
  local given = rm.read(names.task .. id, 'requeued_at', 'created_at')
  local is_lost = not rm.load_agent(names, only) or rm.is_before_holder(names, only, given.requeued_at or given.created_at)
  return is_lost and only or nil
end

-- Queue a task. One that is only for an agent that left becomes a dead letter. Returns the state.
function rm.make_pending(names, id, task, now, keep)
  local lost = lost_agent(names, id, task)
  if lost then
    rm.dead_letter(names, id, task, now, keep, 'it is only for ' .. lost .. ', which was unregistered')
    return 'dead'
  end
  redis.call('HSET', names.task .. id, 'state', 'pending')
  redis.call('HDEL', names.task .. id, 'next_at')
  rm.queue_task(names, id, task)
  rm.emit_task(names, 'pending', id, '', task)
  return 'pending'
end

-- Whether a lease, an assignment, a pause before a retry or a deadline has ended.
function rm.is_due(names, now)
  for _, key in ipairs({names.leases, names.unclaimed, names.delayed, names.deadlines}) do
    if #rm.due(key, now, 1) > 0 then return true end
  end
  return false
end

-- Take an assigned task back from its agent and queue it. Returns the state.
function rm.requeue_assigned(names, id, task, now, reason, keep)
  local name = task.assigned
  unassign(names, id, task)
  task.assigned = nil
  rm.add_history(names, id, now, {op = 'taken back', agent = name, error = reason})
  return rm.make_pending(names, id, task, now, keep)
end

local function change_count(key, field, change)
  if redis.call('HINCRBY', key, field, change) <= 0 then redis.call('HDEL', key, field) end
end

-- Change the numbers of open tasks: of the namespace, of the submitter, and of the submitter and the task's kind.
function rm.count_open(names, task, change)
  redis.call('HINCRBY', names.counters, 'open_tasks', change)
  change_count(names.counters, 'open_tasks:' .. task.submitter, change)
  change_count(names.kinds_of .. task.submitter, task.kind, change)
end

-- Count what an agent did with a task, for its type. After many types no further ones are counted: all are read whenever
-- a task is routed.
function rm.count_performance(names, name, type, counts)
  local key = names.performance .. name
  for count, change in pairs(counts) do
    local field = count .. ':' .. type
    if redis.call('HLEN', key) < TYPE_COUNTS_KEPT or redis.call('HEXISTS', key, field) == 1 then
      redis.call('HINCRBY', key, field, change)
    end
  end
end

-- End a task. Only its record and history stay, for `keep` seconds.
function rm.end_task(names, id, task, state, now, keep, fields)
  unassign(names, id, task)
  if not task.assigned then unqueue_task(names, id, task.kind) end
  if task.score then rm.leave_turns(names, id, task, 0) end
  if task.state == 'retrying' then redis.call('ZREM', names.delayed, id) end
  redis.call('ZREM', names.deadlines, id)
  redis.call('DEL', names.task_vector .. id, names.blockers .. id)
  redis.call('HSET', names.task .. id, 'state', state, 'finished_at', rm.seconds(now), unpack(fields))
  rm.count_open(names, task, -1)
  redis.call('HINCRBY', names.counters, 'tasks_' .. state, 1)
  for _, key in ipairs({names.task, names.history}) do redis.call('EXPIRE', key .. id, keep) end
  if redis.call('EXISTS', names.dependents .. id) == 1 then redis.call('SADD', names.unsettled, id) end
end

function rm.dead_letter(names, id, task, now, keep, reason)
  rm.end_task(names, id, task, 'dead', now, keep, {'error', reason})
  local entry = redis.call('XADD', names.dead_tasks, '*', 'task', id, 'error', reason, 'attempts', task.attempt or 0)
  redis.call('HSET', names.task .. id, 'dead_entry', entry)
  rm.record(names, id, task, now, {op = 'dead', error = reason})
end

local function settle_dependent(names, id, ended, completed, now, keep)
  local task = rm.load_task(names, id)
  redis.call('SREM', names.blockers .. id, ended)
  if task.state == 'waiting' and not completed then
    rm.end_task(names, id, task, 'cancelled', now, keep, {'error', 'a task it depends on did not complete'})
    rm.record(names, id, task, now, {op = 'cancelled', error = 'depends on ' .. ended})
  elseif task.state == 'waiting' and redis.call('EXISTS', names.blockers .. id) == 0 then
    rm.add_history(names, id, now, {op = 'unblocked'})
    rm.make_pending(names, id, task, now, keep)
  end
end

-- Unblock or cancel dependents of ended tasks, up to BATCH. Returns whether any are left.
function rm.settle_dependents(names, now, keep)
  local budget = rm.BATCH
  while budget > 0 do
    local ended = redis.call('SRANDMEMBER', names.unsettled)
    if not ended then return false end
    local completed = redis.call('HGET', names.task .. ended, 'state') == 'completed'
    local dependents = redis.call('SPOP', names.dependents .. ended, budget)
    for _, id in ipairs(dependents) do settle_dependent(names, id, ended, completed, now, keep) end
    budget = budget - #dependents
    if redis.call('EXISTS', names.dependents .. ended) == 0 then redis.call('SREM', names.unsettled, ended) end
  end
  return redis.call('EXISTS', names.unsettled) == 1
end

-- End an attempt that failed: retry the task, or make it a dead letter. Returns the state, when it is retried, and whether
-- another agent is offered it first. `how.team` is for `has_another`.
function rm.fail_attempt(names, id, task, now, how)
  local name = task.assigned
  unassign(names, id, task)
  local failed = rm.append(rm.without(rm.split(task.avoid), name), name)
  task.assigned, task.avoid = nil, table.concat(failed, '\31')
  redis.call('HSET', names.task .. id, 'avoid', task.avoid)
  rm.count_performance(names, name, task.type, {failed = 1})
  rm.add_history(names, id, now, {op = how.op, agent = name, error = how.error, handoff = how.handoff,
    fence = task.fence, attempt = tonumber(task.attempt)})
  if not how.retry or tonumber(task.attempt) > tonumber(task.max_retries) then
    rm.dead_letter(names, id, task, now, how.keep, how.error)
    return 'dead'
  end
  local due = now + math.floor(how.delay * 1000000)
  local another = has_another(names, how.team, cmsgpack.unpack(task.kind_spec), rm.set(failed), now)
  if another then avoid(names, id, task, name, now, due) end
  if how.delay == 0 then return rm.make_pending(names, id, task, now, how.keep), now, another end
  redis.call('HSET', names.task .. id, 'state', 'retrying', 'next_at', rm.seconds(due))
  redis.call('ZADD', names.delayed, rm.seconds(due), id)
  rm.emit_task(names, 'retrying', id, name, task)
  return 'retrying', due, another
end

-- Take a task from an agent that is lost. A leased task loses an attempt, a task that was only assigned does not. Returns
-- the state.
local function release_task(names, id, name, now, request)
  local task = rm.load_task(names, id)
  if task.assigned ~= name then return end
  if task.state == 'leased' then
    return (rm.fail_attempt(names, id, task, now, {op = 'lost', error = request.reason, handoff = request.handoff,
      retry = true, delay = 0, keep = request.keep, team = request.team}))
  end
  return rm.requeue_assigned(names, id, task, now, request.reason, request.keep)
end

-- Take up to BATCH tasks from an agent. Returns how many went on and how many ended, and whether more are left.
function rm.release_tasks(names, name, now, request)
  local entries = redis.call('XRANGE', names.inbox .. name, '-', '+', 'COUNT', rm.BATCH)
  local counts = {pending = 0, dead = 0}
  request.team = {}
  for _, entry in ipairs(entries) do
    local state = release_task(names, entry[2][2], name, now, request)
    if state then counts[state] = counts[state] + 1 end
    redis.call('XDEL', names.inbox .. name, entry[1])
  end
  return counts.pending, counts.dead, redis.call('XLEN', names.inbox .. name) > 0
end

-- End queued tasks that are only for an agent that left, up to BATCH. Returns how many.
function rm.end_reserved(names, name, now, keep)
  local ended, kinds = 0, redis.call('HGETALL', names.kinds)
  for position = 1, #kinds, 2 do
    if ended < rm.BATCH and cmsgpack.unpack(kinds[position + 1]).only == name then
      for _, id in ipairs(redis.call('ZRANGE', names.backlog .. kinds[position], 0, rm.BATCH - ended - 1)) do
        local task = rm.load_task(names, id)
        if lost_agent(names, id, task) then
          rm.make_pending(names, id, task, now, keep)
          ended = ended + 1
        end
      end
    end
  end
  return ended
end
