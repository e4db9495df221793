-- The transitions of a task. KEYS[1] names the slot.
-- waiting -> pending -> leased -> completed | retrying | dead | cancelled

local SUBMISSIONS_KEPT, TRIMMED_ONCE_IN = 10000, 100
local VECTORS_KEPT = 8
local SWEPT = 20
local KINDS = {agent = 64, namespace = 512}

-- The tasks among `ids` that have not ended. Returns an answer first if one ended without completing.
local function blockers_among(names, ids)
  local blockers = {}
  for _, id in ipairs(ids) do
    local state = redis.call('HGET', names.task .. id, 'state')
    if state == 'dead' or state == 'cancelled' then return {status = 'ended_dependency', id = id, state = state} end
    if state and state ~= 'completed' then blockers[#blockers + 1] = id end
  end
  return nil, blockers
end

local function wait_for_others(names, id, blockers)
  for _, blocker in ipairs(blockers) do
    redis.call('SADD', names.blockers .. id, blocker)
    redis.call('SADD', names.dependents .. blocker, id)
  end
end

local function is_past(deadline, now)
  return deadline and deadline * 1000000 <= now
end

-- Whether a task's kind would be one more than its submitter may have open. Each claim looks at the queue of each kind.
-- Of the queues of all, an agent may open more while it has fewer than are free, so no agent takes them all.
local function is_kind_too_many(names, submitter, kind)
  local kinds = names.kinds_of .. submitter
  if redis.call('HEXISTS', kinds, kind) == 1 then return false end
  local own, free = redis.call('HLEN', kinds), KINDS.namespace - redis.call('HLEN', names.kinds)
  return own >= KINDS.agent or (own >= free and redis.call('HEXISTS', names.kinds, kind) == 0)
end

-- The limit that one more open task would exceed, as an answer; nil if none.
local function limit_reached(names, submitter, kind, request)
  if rm.number(names.counters, 'open_tasks') >= request.quota then return {status = 'quota'} end
  local own = rm.number(names.counters, 'open_tasks:' .. submitter)
  if (request.own_quota or 0) > 0 and own >= request.own_quota then return {status = 'own_quota'} end
  if is_kind_too_many(names, submitter, kind) then return {status = 'too_many_kinds'} end
end

-- The answer to a submission that is refused, else nil and the dependencies that have not ended.
local function check_submission(names, request, now)
  local kind
  for position = 1, #request.fields, 2 do
    if request.fields[position] == 'kind' then kind = request.fields[position + 1] end
  end
  local reached = limit_reached(names, request.audit.who, kind, request)
  if reached then return reached end
  if request.only ~= '' and not rm.load_agent(names, request.only) then return {status = 'unknown_agent'} end
  for _, id in ipairs(request.depends_on) do
    if redis.call('EXISTS', names.task .. id) == 0 then return {status = 'unknown_dependency', id = id} end
  end
  local problem, blockers = blockers_among(names, request.depends_on)
  if problem then return problem end
  if is_past(request.deadline, now) then return {status = 'past_deadline'} end
  return nil, blockers
end

local function list_submission(names, submitter, id, now)
  redis.call('ZADD', names.submitted .. submitter, rm.seconds(now), id)
  if math.random(TRIMMED_ONCE_IN) == 1 then
    redis.call('ZREMRANGEBYRANK', names.submitted .. submitter, 0, -SUBMISSIONS_KEPT - 1)
  end
end

-- Write a task's record and what depends on its fields. Returns the task as `load_task` does.
local function write_task(names, id, request, state, now)
  local task = {attempt = 0}
  for position = 1, #request.fields, 2 do task[request.fields[position]] = request.fields[position + 1] end
  redis.call('HSET', names.task .. id, 'state', state, 'created_at', rm.seconds(now), 'attempt', 0,
    unpack(request.fields))
  if request.deadline then redis.call('ZADD', names.deadlines, rm.seconds(request.deadline * 1000000), id) end
  if request.vector then redis.call('HSET', names.task_vector .. id, request.vector_field, request.vector) end
  return task
end

-- Whether an idempotency key stands for a task that an earlier holder of the submitter's name submitted.
local function is_inherited(names, key, submitter)
  local id = redis.call('HGET', key, 'task_id')
  local created_at = id and redis.call('HGET', names.task .. id, 'created_at')
  return created_at and rm.is_before_holder(names, submitter, created_at)
end

-- rm1_task_submit: one task, assigned to the first candidate that has capacity, else queued, or waiting for others.
-- KEYS: leases, idem
-- Answer: {status = submitted | replayed | idempotency_conflict | quota | own_quota | too_many_kinds |
--          unknown_agent | unknown_dependency | ended_dependency | past_deadline, id, state, assigned}
rm.serve('rm1_task_submit', function(request, keys, names)
  local id, now, submitter = request.id, rm.team_now(names), request.audit.who
  local known = rm.read(names.task .. id, 'state', 'assigned')
  if known.state then rm.already_audited(request.audit) end
  if known.state then return {status = 'submitted', id = id, state = known.state, assigned = known.assigned} end
  local idempotency = request.idempotency
  local earlier = idempotency and not is_inherited(names, keys[2], submitter)
    and rm.replay(keys[2], 'task_id', names.task, idempotency)
  if earlier then return earlier end
  local problem, blockers = check_submission(names, request, now)
  if problem then return problem end

  local state = #blockers > 0 and 'waiting' or 'pending'
  local task = write_task(names, id, request, state, now)
  rm.count_open(names, task, 1)
  list_submission(names, submitter, id, now)
  if idempotency then rm.remember(keys[2], idempotency, 'task_id', id) end
  wait_for_others(names, id, blockers)
  rm.audit(names, now, request.audit)
  rm.record(names, id, task, now, {op = 'submitted', agent = submitter})
  if state == 'waiting' then return {status = 'submitted', id = id, state = state} end
  rm.queue_task(names, id, task)
  local name = rm.assign_to_first(names, id, task, request.candidates, now)
  return {status = 'submitted', id = id, state = state, assigned = name}
end)

-- rm1_task_assign: assign queued tasks to the first of their candidates that has capacity by now.
-- KEYS: leases. Answer: {assigned = {id: name}}
rm.serve('rm1_task_assign', function(request, _, names)
  local now, assigned = rm.team_now(names), {}
  for _, item in ipairs(request.items) do
    local task = rm.load_task(names, item.id)
    if task.state == 'pending' and not task.assigned and not rm.damage_of(task) then
      assigned[item.id] = rm.assign_to_first(names, item.id, task, item.candidates, now)
    end
  end
  return {assigned = assigned}
end)

-- End expired leases and assignments, queue tasks whose retry is due, and end tasks past their deadline: up to `limit`
-- of each.
function rm.process_due(names, now, limit, keep)
  local team = {}
  rm.each_due(names, names.leases, {'leased'}, now, limit, function(id, task)
    rm.expire_lease(names, id, task, now, keep, team)
    return rm.cost_of_compared(team)
  end)
  rm.each_due(names, names.unclaimed, {'pending'}, now, limit, function(id, task)
    rm.end_assignment(names, id, task, now, keep, team)
    return rm.cost_of_compared(team)
  end)
  rm.each_due(names, names.delayed, {'retrying'}, now, limit, function(id, task)
    redis.call('ZREM', names.delayed, id)
    rm.make_pending(names, id, task, now, keep)
  end)
  rm.each_due(names, names.deadlines, rm.OPEN, now, limit, function(id, task)
    return rm.dead_letter(names, id, task, now, keep, 'its deadline passed')
  end)
end

-- rm1_task_sweep: process what is due, up to SWEPT of each kind, and the dependents of ended tasks.
-- KEYS: leases. Answer: {more}
rm.serve('rm1_task_sweep', 'allow-oom', function(request, _, names)
  local now = rm.team_now(names)
  rm.process_due(names, now, SWEPT, request.keep)
  local more = rm.settle_dependents(names, now, request.keep)
  for _, key in ipairs({names.leases, names.unclaimed, names.delayed, names.deadlines}) do
    more = more or redis.call('ZCOUNT', key, '-inf', rm.seconds(now)) > 0
  end
  redis.call('XTRIM', names.dead_tasks, 'MINID', '~', rm.integer(now / 1000 - request.keep * 1000))
  return {more = more}
end)

-- Whether a token holds the lease of a task for an agent now.
function rm.holds_lease(task, agent, token, now)
  return task.lease_token == token and task.state == 'leased' and task.assigned == agent
    and tonumber(task.lease_until) * 1000000 > now
end

-- Whether a token had the last lease of a task that is open and that no agent was given since.
function rm.is_latest(task, agent, token)
  if task.lease_token ~= token then return false end
  local holders = rm.split(task.holders)
  if holders[#holders] ~= agent then return false end
  return task.state == 'pending' or task.state == 'retrying' or task.state == 'leased'
end

-- Why a token may not end an attempt now: `unknown` for an agent that never held the task; nil if it may. What was
-- leased last before the agent took over its name was leased to another.
function rm.lease_problem(names, task, request, now)
  if not task.state then return 'unknown' end
  if not rm.contains(rm.split(task.holders), request.agent) then return 'unknown' end
  if rm.is_before_holder(names, request.agent, task.leased_at) then return 'unknown' end
  if rm.holds_lease(task, request.agent, request.token, now) then return nil end
  if not rm.is_latest(task, request.agent, request.token) then return 'stale' end
end

-- Whether the latest attempt at a task was reported as failed.
local function has_failed(task)
  return task.failed_fence ~= nil and task.failed_fence == task.fence
end

-- Count an attempt again whose lease expired, because its result came late.
local function count_late(names, id, task)
  if task.state == 'leased' or has_failed(task) then return end
  task.attempt = tonumber(task.attempt) + 1
  redis.call('HSET', names.task .. id, 'attempt', task.attempt)
end

-- Whether a call was made before under its id. It then gets the same answer.
local function is_repeated(task, request)
  if not task.state or task.last_call ~= request.call then return false end
  rm.already_audited(request.audit)
  return true
end

local function touch_registered(names, name, now)
  local agent = rm.load_agent(names, name)
  if agent then rm.touch_agent(names, agent, now) end
end

-- Keep a completed task's vector with the agent, and count it for its task type. Not that of a task that was assigned to
-- one agent: the figures that explain a routing would confirm its text to others.
local function add_performance(names, name, id, task, duration_ms)
  local field = task.kind == task.open_kind and redis.call('HGET', names.meta, 'field')
  local vector = field and redis.call('HGET', names.task_vector .. id, field)
  if vector and rm.is_registered(names, name) then
    redis.call('LPUSH', names.did .. name, field .. '\0' .. vector)
    redis.call('LTRIM', names.did .. name, 0, VECTORS_KEPT - 1)
  end
  rm.count_performance(names, name, task.type, {done = 1, ms = duration_ms})
end

-- rm1_task_complete: end a task with its result. A late result counts until another agent is given the task.
-- KEYS: leases. Answer: {status = completed | unknown | stale, state, submitter, more}
rm.serve('rm1_task_complete', 'brief', function(request, _, names)
  local id, now, name = request.id, rm.team_now(names), request.agent
  local task = rm.load_task(names, id)
  if is_repeated(task, request) then
    return {status = 'completed', submitter = task.submitter, more = rm.has_unsettled(names)}
  end
  local problem = rm.lease_problem(names, task, request, now)
  if problem then return {status = problem, state = task.state} end

  count_late(names, id, task)
  local spent = math.floor((now - tonumber(task.leased_at) * 1000000) / 1000)
  add_performance(names, name, id, task, request.duration_ms or spent)
  rm.record(names, id, task, now, {op = 'completed', agent = name, fence = task.fence,
    attempt = tonumber(task.attempt)})
  rm.end_task(names, id, task, 'completed', now, request.keep, request.fields)
  touch_registered(names, name, now)
  rm.audit(names, now, request.audit)
  return {status = 'completed', submitter = task.submitter, more = rm.settle_dependents(names, now, request.keep)}
end)

-- rm1_task_stored: note where the result of a completed task is stored, for the agent that completed it.
-- KEYS: leases. Answer: {status = noted | unknown}
rm.serve('rm1_task_stored', function(request, _, names)
  local task = rm.load_task(names, request.id)
  local holders = rm.split(task.holders)
  if task.state ~= 'completed' or holders[#holders] ~= request.agent then return {status = 'unknown'} end
  redis.call('HSET', names.task .. request.id, 'result_memory', request.memory)
  return {status = 'noted'}
end)

-- Exponential backoff with jitter: half of it is fixed, half is random.
local function backoff(task, request)
  local longest = math.min(request.backoff * 2 ^ (tonumber(task.attempt) - 1), request.backoff_most)
  return longest * (0.5 + request.jitter / 2)
end

-- Add to an answer whose task it is, which attempt ended, and how many are allowed.
local function attempts_of(task, answer)
  answer.submitter, answer.attempt = task.submitter, tonumber(task.attempt)
  answer.most = tonumber(task.max_retries) + 1
  return answer
end

-- rm1_task_fail: end an attempt. The task is retried after a pause, by another agent if possible.
-- KEYS: leases. Answer: {status = retrying | reassigned | dead | unknown | stale, state, next_at, more, submitter,
--                        attempt, most}: `most` attempts are allowed.
rm.serve('rm1_task_fail', 'brief', function(request, _, names)
  local id, now = request.id, rm.team_now(names)
  local task = rm.load_task(names, id)
  if is_repeated(task, request) then
    return attempts_of(task, {status = task.state == 'dead' and 'dead' or 'retrying', more = rm.has_unsettled(names),
      next_at = redis.call('HGET', names.task .. id, 'next_at') or nil})
  end
  local problem = rm.lease_problem(names, task, request, now)
  if problem or has_failed(task) then return {status = problem or 'stale', state = task.state} end

  count_late(names, id, task)
  if task.state ~= 'leased' then
    rm.withdraw(names, id, task)
    task.assigned = nil
  end
  redis.call('HSET', names.task .. id, 'last_call', request.call, 'error', request.error, 'failed_fence', task.fence)
  local state, due, another = rm.fail_attempt(names, id, task, now, {op = 'failed', agent = request.agent,
    error = request.error, handoff = request.handoff, retry = request.retry, delay = backoff(task, request), keep = request.keep, team = {}})
  touch_registered(names, request.agent, now)
  rm.audit(names, now, request.audit)
  if state == 'dead' then
    return attempts_of(task, {status = 'dead', more = rm.settle_dependents(names, now, request.keep)})
  end
  return attempts_of(task, {status = another and 'reassigned' or 'retrying', next_at = rm.seconds(due)})
end)

local function may_manage(names, task, request)
  if not task.state or request.admin then return task.state end
  if task.submitter ~= request.agent then return false end
  return not rm.is_before_holder(names, request.agent, redis.call('HGET', names.task .. request.id, 'created_at'))
end

-- rm1_task_cancel: end an open task for its submitter. The lease holder gets an event, and its token becomes stale.
-- KEYS: leases. Answer: {status = cancelled | unknown | ended, state, more}
rm.serve('rm1_task_cancel', 'brief', function(request, _, names)
  local id, now = request.id, rm.now()
  local task = rm.load_task(names, id)
  if not may_manage(names, task, request) then return {status = 'unknown'} end
  if rm.contains({'completed', 'dead', 'cancelled'}, task.state) then
    return {status = 'ended', state = task.state}
  end
  rm.record(names, id, task, now, {op = 'cancelled', agent = request.agent, error = request.reason})
  rm.end_task(names, id, task, 'cancelled', now, request.keep, {'error', request.reason})
  rm.audit(names, now, request.audit)
  return {status = 'cancelled', state = 'cancelled', more = rm.settle_dependents(names, now, request.keep)}
end)

-- Make a dead task's record that of a task that was never attempted. It waits for a new turn.
local function revive(names, id, task, now)
  for _, name in ipairs(rm.split(task.avoid)) do redis.call('ZREM', names.avoided .. name, id) end
  local entry = redis.call('HGET', names.task .. id, 'dead_entry')
  if entry then redis.call('XDEL', names.dead_tasks, entry) end
  redis.call('HDEL', names.task .. id, 'finished_at', 'error', 'told', 'avoid', 'dead_entry', 'deadline',
    'score', 'lease_token', 'expiries')
  redis.call('HSET', names.task .. id, 'attempt', 0, 'requeued_at', rm.seconds(now))
  for _, key in ipairs({names.task, names.history}) do redis.call('PERSIST', key .. id) end
end

-- rm1_task_requeue: queue a dead task again with all its attempts.
-- KEYS: leases. Answer: {status = pending | waiting | unknown | not_dead | ended_dependency | unknown_agent | quota |
--                  own_quota | too_many_kinds, id, state,
--                        agent}
rm.serve('rm1_task_requeue', function(request, _, names)
  local id, now = request.id, rm.now()
  local task = rm.load_task(names, id)
  if not may_manage(names, task, request) then return {status = 'unknown'} end
  if task.state ~= 'dead' then return {status = 'not_dead', state = task.state} end
  request.quota = request.quota or math.huge  -- servers of earlier releases send none
  local reached = limit_reached(names, task.submitter, task.kind, request)
  if reached then return reached end
  local problem, blockers = blockers_among(names, rm.split(redis.call('HGET', names.task .. id, 'depends_on') or ''))
  if problem then return problem end
  local only = cmsgpack.unpack(task.kind_spec).only
  if only ~= '' and not rm.load_agent(names, only) then return {status = 'unknown_agent', agent = only} end
  revive(names, id, task, now)
  rm.count_open(names, task, 1)
  rm.add_history(names, id, now, {op = 'requeued', agent = request.agent})
  rm.audit(names, now, request.audit)
  wait_for_others(names, id, blockers)
  if #blockers > 0 then
    redis.call('HSET', names.task .. id, 'state', 'waiting')
    return {status = 'waiting', state = 'waiting'}
  end
  rm.make_pending(names, id, rm.load_task(names, id), now, request.keep)
  return {status = 'pending', state = 'pending'}
end)
