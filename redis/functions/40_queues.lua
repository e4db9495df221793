-- Queues, assignments and attempts of tasks, shared by the Functions of tasks and of agents.

-- How many tasks one call handles, so that Redis never stalls.
rm.BATCH = 32

rm.OPEN = {'waiting', 'pending', 'leased', 'retrying'}

local BLOCKERS_A_TASK, SETTLED_AT_ONCE = 32, 4
local DAMAGED_KEPT_SECONDS = 7 * 86400
local EXPIRIES_MOST = 32

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

-- The requirements of a kind with a queue. If they cannot be read, those of its first task; nil if that has none.
function rm.spec_of(names, kind, packed)
  local spec = rm.read_kind(packed)
  if spec then return spec end
  rm.discard(names.kinds, kind, 'unreadable')
  local first = redis.call('ZRANGE', names.backlog .. kind, 0, 0)[1]
  packed = first and redis.call('HGET', names.task .. first, 'kind_spec')
  spec = rm.read_kind(packed)
  if spec then redis.call('HSET', names.kinds, kind, packed) end
  return spec
end

-- Assign a task to an agent, without a lease.
function rm.assign(names, id, task, name)
  unqueue_task(names, id, task.kind)
  task.assigned = name
  task.entry = redis.call('XADD', names.inbox .. name, '*', 'task', id, 'score', task.score)
  redis.call('HSET', names.task .. id, 'assigned', name, 'entry', task.entry)
end

-- Remove an entry from an agent's inbox. An empty stream would stay forever.
local function drop_entry(names, name, entry)
  redis.call('XDEL', names.inbox .. name, entry)
  if redis.call('XLEN', names.inbox .. name) == 0 then redis.call('DEL', names.inbox .. name) end
end

-- Note that an agent gets a free slot, if a task ends that it leased and it held as many as it takes.
local function note_free_slot(names, task)
  if task.state ~= 'leased' then return end
  local most = tonumber(redis.call('HGET', names.agent .. task.assigned, 'max_tasks') or '')
  if most and redis.call('SCARD', names.held .. task.assigned) >= most then
    rm.becomes_able(names, task.assigned, rm.now())
  end
end

local function unassign(names, id, task)
  if not task.assigned then return end
  note_free_slot(names, task)
  drop_entry(names, task.assigned, task.entry)
  redis.call('SREM', names.held .. task.assigned, id)
  redis.call('ZREM', task.state == 'leased' and names.leases or names.unclaimed, id)
  redis.call('HDEL', names.task .. id, 'assigned', 'entry', 'lease_until', 'session')
end

-- Assign a queued task to the first candidate that is alive, able and has capacity.
function rm.assign_to_first(names, id, task, candidates, now)
  local kind = rm.read_kind(task.kind_spec)
  for _, name in ipairs(kind and candidates or {}) do
    local agent = rm.load_agent(names, name)
    if agent and agent.status ~= 'draining' and rm.is_alive(names, name, now) and rm.is_able(agent, kind)
        and rm.has_capacity(names, agent) and not rm.is_avoided(names, id, name, now) then
      rm.assign(names, id, task, name)
      redis.call('ZADD', names.unclaimed, rm.seconds(now + tonumber(task.claim_seconds) * 1000000), id)
      rm.add_history(names, id, now, {op = 'assigned', agent = name})
      rm.emit_assigned(names, id, task, now)
      return name
    end
  end
end

-- The agent that a task is only for, if it left since: it is not registered, or another agent took its name.
local function lost_agent(names, id, task)
  local only = cmsgpack.unpack(task.kind_spec).only
  if only == '' then return nil end
  local given = rm.read(names.task .. id, 'requeued_at', 'created_at')
  local is_lost = redis.call('HEXISTS', names.agent .. only, 'registered_at') == 0
    or rm.is_before_holder(names, only, given.requeued_at or given.created_at)
  return is_lost and only or nil
end

-- Queue a task. One that is only for an agent that left becomes a dead letter. `quietly`: its submitter is not told, as
-- nothing changed for it. Returns the state.
function rm.make_pending(names, id, task, now, keep, quietly)
  local lost = lost_agent(names, id, task)
  if lost then
    rm.dead_letter(names, id, task, now, keep, 'it is only for ' .. lost .. ', which was unregistered')
    return 'dead'
  end
  redis.call('HSET', names.task .. id, 'state', 'pending')
  redis.call('HDEL', names.task .. id, 'next_at')
  rm.queue_task(names, id, task)
  if not quietly then rm.emit_task(names, 'pending', id, '', task) end
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
function rm.requeue_assigned(names, id, task, now, reason, keep, quietly)
  local name = task.assigned
  unassign(names, id, task)
  task.assigned = nil
  rm.add_history(names, id, now, {op = 'taken back', agent = name, error = reason})
  return rm.make_pending(names, id, task, now, keep, quietly)
end

-- Take a task from its agent, or from where it waits.
function rm.withdraw(names, id, task)
  unassign(names, id, task)
  if not task.assigned then unqueue_task(names, id, task.kind) end
  if task.score then rm.leave_turns(names, id, task, 0) end
  if task.state == 'retrying' then redis.call('ZREM', names.delayed, id) end
end

-- Queue a task that its agent did not claim in time, and offer it to others first. `team` is for `has_another`.
function rm.end_assignment(names, id, task, now, keep, team)
  local name = task.assigned
  local failed = rm.append(rm.split(task.avoid), name)
  if rm.has_another(names, team, rm.read_kind(task.kind_spec), rm.set(failed), now) then
    rm.avoid(names, id, task, name, now, now)
  end
  rm.requeue_assigned(names, id, task, now, 'not claimed in time', keep, true)
end

local function change_count(key, field, change)
  if redis.call('HINCRBY', key, field, change) <= 0 then redis.call('HDEL', key, field) end
end

-- Change the numbers of open tasks: of the namespace, of the submitter, and of the submitter and the task's kind.
function rm.count_open(names, task, change)
  redis.call('HINCRBY', names.counters, 'open_tasks', change)
  change_count(names.counters, 'open_tasks:' .. task.submitter, change)
  change_count(names.kinds_of .. task.submitter, task.kind, change)
  if change > 0 then redis.call('PERSIST', names.submitted .. task.submitter) end
end

-- Forget the turns of a submitter without open tasks, and its list of tasks with the last of them.
local function rest_submitter(names, submitter, keep)
  if redis.call('HEXISTS', names.counters, 'open_tasks:' .. submitter) == 1 then return end
  redis.call('EXPIRE', names.submitted .. submitter, keep)
  rm.forget_turns(names, submitter)
end

-- Remove a task that ends from those that its blockers unblock. Returns how many blockers it had.
local function unlink_blockers(names, id)
  local blockers = redis.call('SMEMBERS', names.blockers .. id)
  for _, blocker in ipairs(blockers) do redis.call('SREM', names.dependents .. blocker, id) end
  return #blockers
end

-- End a task. Only its record and history stay, for `keep` seconds. Returns what it cost, in tasks without blockers.
function rm.end_task(names, id, task, state, now, keep, fields)
  rm.withdraw(names, id, task)
  redis.call('ZREM', names.deadlines, id)
  local cost = 1 + unlink_blockers(names, id) / BLOCKERS_A_TASK
  redis.call('DEL', names.task_vector .. id, names.blockers .. id)
  redis.call('HSET', names.task .. id, 'state', state, 'finished_at', rm.seconds(now), unpack(fields))
  rm.count_open(names, task, -1)
  rest_submitter(names, task.submitter, keep)
  redis.call('HINCRBY', names.counters, 'tasks_' .. state, 1)
  for _, key in ipairs({names.task, names.history}) do redis.call('EXPIRE', key .. id, keep) end
  if redis.call('EXISTS', names.dependents .. id) == 1 then redis.call('SADD', names.unsettled, id) end
  return cost
end

-- Remove a task whose record is missing or damaged from what walks read. What is left of the record stays for a week.
-- The walk over `key` found it as `entry`.
function rm.remove_damaged(names, key, entry, id, task, why)
  rm.discard(key, entry, why)
  for _, queue in ipairs({names.leases, names.unclaimed, names.delayed, names.deadlines}) do
    redis.call('ZREM', queue, id)
  end
  if task.kind then unqueue_task(names, id, task.kind) end
  if task.assigned then
    redis.call('SREM', names.held .. task.assigned, id)
    if string.match(task.entry or '', '^%d+%-%d+$') then
      drop_entry(names, task.assigned, task.entry)
    end
  end
  redis.call('DEL', names.task_vector .. id, names.blockers .. id)
  change_count(names.counters, 'open_tasks', -1)
  if task.submitter then
    change_count(names.counters, 'open_tasks:' .. task.submitter, -1)
    redis.call('ZREM', names.turns_of .. task.submitter, id)
    if task.kind then change_count(names.kinds_of .. task.submitter, task.kind, -1) end
  end
  if task.state then redis.call('HSET', names.task .. id, 'state', 'dead', 'error', 'damaged: ' .. why) end
  for _, part in ipairs({names.task, names.history}) do redis.call('EXPIRE', part .. id, DAMAGED_KEPT_SECONDS) end
  if redis.call('EXISTS', names.dependents .. id) == 1 then redis.call('SADD', names.unsettled, id) end
end

-- Handle a task that the walk over `key` found as `entry`. If it is in none of the `states`, or damaged, it is removed.
function rm.attempt_task(names, key, entry, id, states, handle)
  local task = rm.load_task(names, id)
  local why = rm.damage_of(task)
  if why and (not task.state or rm.contains(rm.OPEN, task.state)) then
    return rm.remove_damaged(names, key, entry, id, task, why)
  end
  if not rm.contains(states, task.state) then return rm.discard(key, entry, 'its task is ' .. (task.state or 'gone')) end
  return rm.attempt(key, entry, handle, task)
end

-- Handle tasks of a sorted set that are due, and take them out of it. `handle` may return what a task cost; they cost
-- `limit` together, 1 each otherwise.
function rm.each_due(names, key, states, now, limit, handle)
  for _, id in ipairs(rm.due(key, now, limit)) do
    local cost = 1
    rm.attempt_task(names, key, id, id, states, function(task) cost = handle(id, task) or 1 end)
    redis.call('ZREM', key, id)
    limit = limit - cost
    if limit <= 0 then break end
  end
end

function rm.dead_letter(names, id, task, now, keep, reason)
  local cost = rm.end_task(names, id, task, 'dead', now, keep, {'error', reason})
  local entry = redis.call('XADD', names.dead_tasks, '*', 'task', id, 'error', reason, 'attempts', task.attempt or 0)
  redis.call('HSET', names.task .. id, 'dead_entry', entry)
  rm.record(names, id, task, now, {op = 'dead', error = reason})
  return cost
end

-- Unblock or cancel a dependent of an ended task. Returns what it cost.
local function settle_dependent(names, id, ended, completed, now, keep)
  local task, cost = rm.load_task(names, id), 1
  redis.call('SREM', names.blockers .. id, ended)
  local damage = task.state == 'waiting' and rm.damage_of(task)
  if damage then
    rm.remove_damaged(names, names.dependents .. ended, id, id, task, damage)
  elseif task.state == 'waiting' and not completed then
    cost = rm.end_task(names, id, task, 'cancelled', now, keep, {'error', 'a task it depends on did not complete'})
    rm.record(names, id, task, now, {op = 'cancelled', error = 'depends on ' .. ended})
  elseif task.state == 'waiting' and redis.call('EXISTS', names.blockers .. id) == 0 then
    rm.add_history(names, id, now, {op = 'unblocked'})
    rm.make_pending(names, id, task, now, keep)
  end
  return cost
end

-- Whether ended tasks have dependents to unblock or cancel. The server that is told so sweeps until there are none.
function rm.has_unsettled(names)
  return redis.call('EXISTS', names.unsettled) == 1
end

-- Unblock or cancel dependents of ended tasks, up to BATCH. Returns whether any are left.
function rm.settle_dependents(names, now, keep)
  local budget = rm.BATCH
  while budget > 0 do
    local ended = redis.call('SRANDMEMBER', names.unsettled)
    if not ended then return false end
    local completed = redis.call('HGET', names.task .. ended, 'state') == 'completed'
    local dependents = redis.call('SPOP', names.dependents .. ended, SETTLED_AT_ONCE)
    if #dependents == 0 then budget = budget - 1 end
    for _, id in ipairs(dependents) do
      budget = budget - settle_dependent(names, id, ended, completed, now, keep)
    end
    if redis.call('EXISTS', names.dependents .. ended) == 0 then redis.call('SREM', names.unsettled, ended) end
  end
  return rm.has_unsettled(names)
end

-- End an attempt that failed: retry the task, or make it a dead letter. Returns the state, when it is retried, and whether
-- another agent is offered it first. `how.team` is for `has_another`. `how.agent` failed late: the task is not assigned
-- to it any more. `how.is_silence`: the attempt does not count.
function rm.fail_attempt(names, id, task, now, how)
  local name = how.agent or task.assigned
  rm.keep_notes(names, id, task, name, how.handoff)
  unassign(names, id, task)
  local failed = rm.append(rm.without(rm.split(task.avoid), name), name)
  task.assigned, task.told, task.avoid = nil, nil, table.concat(failed, '\31')
  redis.call('HSET', names.task .. id, 'avoid', task.avoid)
  redis.call('HDEL', names.task .. id, 'told')
  rm.count_performance(names, name, task.type, {failed = 1})
  rm.add_history(names, id, now, {op = how.op, agent = name, error = how.error, handoff = how.handoff,
    fence = task.fence, attempt = tonumber(task.attempt)})
  if how.is_silence then
    task.attempt = tonumber(task.attempt) - 1
    redis.call('HSET', names.task .. id, 'attempt', task.attempt)
  end
  if not how.retry or tonumber(task.attempt) > tonumber(task.max_retries) then
    rm.dead_letter(names, id, task, now, how.keep, how.error)
    return 'dead'
  end
  local due = now + math.floor(how.delay * 1000000)
  local another = rm.has_another(names, how.team, rm.read_kind(task.kind_spec), rm.set(failed), now)
  if another then rm.avoid(names, id, task, name, now, due) end
  if how.delay == 0 then return rm.make_pending(names, id, task, now, how.keep), now, another end
  redis.call('HSET', names.task .. id, 'state', 'retrying', 'next_at', rm.seconds(due))
  redis.call('ZADD', names.delayed, rm.seconds(due), id)
  rm.emit_task(names, 'retrying', id, name, task)
  return 'retrying', due, another
end

-- End a lease that expired. Its agent was silent, which is no failure. But a task that ends all its agents must end too.
function rm.expire_lease(names, id, task, now, keep, team)
  local expiries = (tonumber(task.expiries or '') or 0) + 1
  redis.call('HSET', names.task .. id, 'expiries', expiries)
  rm.fail_attempt(names, id, task, now, {op = 'expired', error = 'the lease of ' .. task.assigned .. ' expired',
    retry = expiries < EXPIRIES_MOST, delay = 0,
    keep = keep, team = team, is_silence = true})
end

-- Take a task from an agent that is lost. A leased task loses an attempt, a task that was only assigned does not. Returns
-- the state.
local function release_task(names, id, name, now, request)
  local task = rm.load_task(names, id)
  if task.assigned ~= name then return end
  local damage = rm.damage_of(task)
  if damage then return rm.remove_damaged(names, names.inbox .. name, task.entry, id, task, damage) end
  if task.state == 'leased' then
    return (rm.fail_attempt(names, id, task, now, {op = 'lost', error = request.reason, retry = true, delay = 0,
      keep = request.keep, team = request.team}))
  end
  return rm.requeue_assigned(names, id, task, now, request.reason, request.keep)
end

-- Take up to BATCH tasks that an agent is assigned and has not leased. Returns how many, and whether more are left.
function rm.release_unclaimed(names, name, now, request)
  local taken, inbox = 0, names.inbox .. name
  local leased = rm.set(redis.call('SMEMBERS', names.held .. name))
  for _, entry in ipairs(redis.call('XRANGE', inbox, '-', '+')) do
    if taken == rm.BATCH then return taken, true end
    if not leased[entry[2][2]] then
      rm.attempt(inbox, entry[1], release_task, names, entry[2][2], name, now, request)
      drop_entry(names, name, entry[1])
      taken = taken + 1
    end
  end
  return taken, false
end

-- Take up to BATCH tasks from an agent, fewer if agents are compared for them. Returns how many went on and how many
-- ended, and whether more are left.
function rm.release_tasks(names, name, now, request)
  local entries = redis.call('XRANGE', names.inbox .. name, '-', '+', 'COUNT', rm.BATCH)
  local counts, left = {pending = 0, dead = 0}, rm.BATCH
  request.team = {}
  for _, entry in ipairs(entries) do
    local state = rm.attempt(names.inbox .. name, entry[1], release_task, names, entry[2][2], name, now, request)
    if state then counts[state] = counts[state] + 1 end
    drop_entry(names, name, entry[1])
    left = left - rm.cost_of_compared(request.team)
    if left <= 0 then break end
  end
  return counts.pending, counts.dead, redis.call('XLEN', names.inbox .. name) > 0
end

-- End queued tasks that are only for an agent that left, up to BATCH. Returns how many.
function rm.end_reserved(names, name, now, keep)
  local ended, kinds = 0, redis.call('HGETALL', names.kinds)
  for position = 1, #kinds, 2 do
    local kind = kinds[position]
    local spec = ended < rm.BATCH and rm.spec_of(names, kind, kinds[position + 1])
    local ids = spec and spec.only == name and redis.call('ZRANGE', names.backlog .. kind, 0, rm.BATCH - ended - 1) or {}
    for _, id in ipairs(ids) do
      rm.attempt_task(names, names.backlog .. kind, id, id, {'pending'}, function(task)
        if not lost_agent(names, id, task) then return end
        rm.make_pending(names, id, task, now, keep)
        ended = ended + 1
      end)
    end
  end
  return ended
end
