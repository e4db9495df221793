-- The transitions of a task. Every function takes the namespace's `prefix` and checks all before it writes; KEYS[1] names the slot.
-- waiting -> pending -> leased -> completed | retrying | dead | cancelled

local SUBMISSIONS_KEPT, TRIMMED_ONCE_IN = 10000, 100

local function replay_task(names, key, request)
  local seen = redis.call('HMGET', key, 'payload', 'task_id')
  if not seen[1] or redis.call('EXISTS', names.task .. seen[2]) == 0 then return nil end
  if seen[1] ~= request.idempotency.payload then return {status = 'idempotency_conflict'} end
  return {status = 'replayed', id = seen[2]}
end

-- Those of some tasks that have not ended; a refusal if one has ended without completing.
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

-- What stands in the way of a submission, else the dependencies that have not ended yet.
local function check_submission(names, request)
  if (tonumber(redis.call('HGET', names.counters, 'open_tasks') or '0')) >= request.quota then
    return {status = 'quota'}
  end
  local own = tonumber(redis.call('HGET', names.counters, 'open_tasks:' .. request.audit.who) or '0')
  if (request.own_quota or 0) > 0 and own >= request.own_quota then return {status = 'own_quota'} end
  if request.only ~= '' and not registered(names, request.only) then return {status = 'unknown_agent'} end
  for _, id in ipairs(request.depends_on) do
    if redis.call('EXISTS', names.task .. id) == 0 then return {status = 'unknown_dependency', id = id} end
  end
  return blockers_among(names, request.depends_on)
end

local function is_past(deadline, now)
  return deadline and deadline * 1000000 <= now
end

-- rm1_task_submit: one task, assigned to the first candidate that has room, else queued, or waiting for others.
-- KEYS: leases, idem. Answer: {status = submitted | replayed | idempotency_conflict | quota | own_quota | unknown_agent |
-- unknown_dependency | ended_dependency | past_deadline, id, state, assigned}
local function submit(keys, args)
  local request = read_request(args)
  local names, id, now = request.names, request.id, wall_clock()
  local known = read(names.task .. id, 'state', 'assigned')
  if known.state then noted_before(request.audit) end
  if known.state then return answer({status = 'submitted', id = id, state = known.state, assigned = known.assigned}) end
  local earlier = request.idempotency and replay_task(names, keys[2], request)
  if earlier then return answer(earlier) end
  local problem, blockers = check_submission(names, request)
  if problem then return answer(problem) end
  if is_past(request.deadline, now) then return answer({status = 'past_deadline'}) end

  local task = {attempt = 0}
  for position = 1, #request.fields, 2 do task[request.fields[position]] = request.fields[position + 1] end
  if #blockers == 0 then
    task.score = score_of(names, task)
    request.fields[#request.fields + 1] = 'score'
    request.fields[#request.fields + 1] = task.score
  end
  redis.call('HSET', names.task .. id, 'state', #blockers > 0 and 'waiting' or 'pending', 'created_at', stamp(now),
    'attempt', 0, unpack(request.fields))
  redis.call('HINCRBY', names.counters, 'open_tasks', 1)
  redis.call('HINCRBY', names.counters, 'open_tasks:' .. request.audit.who, 1)
  redis.call('ZADD', names.submitted .. request.audit.who, stamp(now), id)
  if math.random(TRIMMED_ONCE_IN) == 1 then
    redis.call('ZREMRANGEBYRANK', names.submitted .. request.audit.who, 0, -SUBMISSIONS_KEPT - 1)
  end
  if request.deadline then redis.call('ZADD', names.deadlines, stamp(request.deadline * 1000000), id) end
  if request.vector then redis.call('HSET', names.vector .. id, request.vector_field, request.vector) end
  if request.idempotency then
    redis.call('HSET', keys[2], 'payload', request.idempotency.payload, 'task_id', id)
    redis.call('EXPIRE', keys[2], request.idempotency.ttl)
  end
  wait_for_others(names, id, blockers)
  audit(names.audit, names.counters, now, request.audit)
  note(names, id, now, {op = 'submitted', agent = request.audit.who})
  tell(names, 'submitted', id, request.audit.who, task)
  if #blockers > 0 then return answer({status = 'submitted', id = id, state = 'waiting'}) end
  queue(names, id, task)
  local name = place(names, id, task, request.candidates, now)
  return answer({status = 'submitted', id = id, state = 'pending', assigned = name})
end

-- rm1_task_assign: give queued tasks to the first of their candidates that has room by now.
-- KEYS: leases. Answer: {assigned = {id: name}}
local function assign_tasks(_, args)
  local request = read_request(args)
  local names, now, assigned = request.names, wall_clock(), {}
  for _, item in ipairs(request.items) do
    local task = load_task(names, item.id)
    if task.state == 'pending' and not task.assigned then
      assigned[item.id] = place(names, item.id, task, item.candidates, now)
    end
  end
  return answer({assigned = assigned})
end

-- The best of what an agent has been assigned and not leased; it has `held` leases.
local function best_in_hand(names, name, held)
  if redis.call('XLEN', names.inbox .. name) == held then return nil end
  local best
  for _, entry in ipairs(redis.call('XRANGE', names.inbox .. name, '-', '+')) do
    local id, score = entry[2][2], tonumber(entry[2][4])
    if (not best or score < best.score) and redis.call('SISMEMBER', names.held .. name, id) == 0 then
      best = {id = id, score = score}
    end
  end
  return best
end

-- The first task of a kind that the agent need not avoid.
local function first_of(names, kind, spec, name, now)
  for start = 0, LOOK_FAR, LOOK do
    local queued = redis.call('ZRANGE', names.backlog .. kind, start, start + LOOK - 1, 'WITHSCORES')
    for position = 1, #queued, 2 do
      local avoid = redis.call('HGET', names.task .. queued[position], 'avoid') or ''
      if not is_avoided(names, {avoid = avoid}, spec, name, now) then
        return {id = queued[position], score = tonumber(queued[position + 1])}
      end
    end
    if #queued < 2 * LOOK then return nil end
  end
end

-- Of two tasks with one score the older goes first: which queue is looked at first depends on others' queues.
local function comes_first(one, other)
  return one.score < other.score or (one.score == other.score and one.id < other.id)
end

local function best_in_queues(names, agent, best, now)
  local kinds = redis.call('HGETALL', names.kinds)
  for position = 1, #kinds, 2 do
    local spec = cmsgpack.unpack(kinds[position + 1])
    if is_able(agent, spec) then
      local first = first_of(names, kinds[position], spec, agent.name, now)
      if first and (not best or comes_first(first, best)) then best = first end
    end
  end
  return best
end

local function lease(names, id, agent, secret, now)
  local task = load_task(names, id)
  if task.assigned == agent.name then
    redis.call('ZREM', names.unclaimed, id)
  else
    assign(names, id, task, agent.name, now)
  end
  local fence = whole(tick(names.counters))
  local token = id .. '.' .. fence .. '.' .. secret
  local ends = stamp(now + tonumber(task.lease_seconds) * 1000000)
  local attempt = tonumber(task.attempt) + 1
  local holders = split(task.holders)
  if not contains(holders, agent.name) then holders[#holders + 1] = agent.name end
  redis.call('HSET', names.task .. id, 'state', 'leased', 'lease_token', token, 'fence', fence, 'lease_until', ends,
    'leased_at', stamp(now), 'attempt', attempt, 'holders', table.concat(holders, '\31'))
  redis.call('ZADD', names.leases, ends, id)
  redis.call('SADD', names.held .. agent.name, id)
  local turn = tonumber(task.score) % BAND
  if turn > tonumber(redis.call('HGET', names.turns, task.rank) or '0') then
    redis.call('HSET', names.turns, task.rank, whole(turn))
  end
  note(names, id, now, {op = 'leased', agent = agent.name, fence = fence, attempt = attempt})
  tell(names, 'leased', id, agent.name, task)
  return {id = id, lease_token = token, lease_until = ends, attempt = attempt, lease_seconds = task.lease_seconds}
end

-- End leases and assignments that have run out, and bring delayed tasks back, a few of each.
local function lapse(names, now, most, keep)
  local past = stamp(now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', names.leases, '-inf', past, 'LIMIT', 0, most)) do
    local task = load_task(names, id)
    attempt_failed(names, id, task, now, {op = 'expired', error = 'the lease of ' .. task.assigned .. ' ran out',
      retry = true, delay = 0, keep = keep})
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', names.unclaimed, '-inf', past, 'LIMIT', 0, most)) do
    local task = load_task(names, id)
    local name = task.assigned
    take_back(names, id, task)
    task.assigned = nil
    note(names, id, now, {op = 'taken back', agent = name, error = 'not claimed in time'})
    make_pending(names, id, task, now)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', names.delayed, '-inf', past, 'LIMIT', 0, most)) do
    redis.call('ZREM', names.delayed, id)
    make_pending(names, id, load_task(names, id), now)
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', names.deadlines, '-inf', past, 'LIMIT', 0, most)) do
    bury_task(names, id, load_task(names, id), now, keep, 'its deadline passed')
  end
end

-- rm1_task_sweep: what the clock demands, up to AT_ONCE of each kind, and what ended tasks unblock.
-- KEYS: leases. Answer: {more}
local function sweep_tasks(_, args)
  local request = read_request(args)
  local names, now = request.names, wall_clock()
  lapse(names, now, AT_ONCE, request.keep)
  local more = settle_dependents(names, now, request.keep)
  for _, key in ipairs({names.leases, names.unclaimed, names.delayed, names.deadlines}) do
    more = more or redis.call('ZCOUNT', key, '-inf', stamp(now)) > 0
  end
  redis.call('XTRIM', names.dead, 'MINID', '~', whole(now / 1000 - request.keep * 1000))
  return answer({more = more})
end

-- Lease to an agent what it has room for, best first. Returns the leases, and how many it holds.
local function lease_best(names, agent, secrets, now)
  local leased, held = {}, redis.call('SCARD', names.held .. agent.name)
  while #leased < #secrets and held < agent.most do
    local best = best_in_hand(names, agent.name, held)
    if agent.status ~= 'draining' then best = best_in_queues(names, agent, best, now) end
    if not best then break end
    leased[#leased + 1] = lease(names, best.id, agent, secrets[#leased + 1], now)
    held = held + 1
  end
  return leased, held
end

local function note_claim(names, now, entry, leased)
  if not entry or #leased == 0 then return end
  entry.done = {}
  for position, found in ipairs(leased) do entry.done[position] = found.id end
  audit(names.audit, names.counters, now, entry)
end

-- rm1_task_claim: lease the best tasks for an agent: what it was assigned and what is queued for its like, by priority
-- and turn. A secret comes for each lease that may be given; the same call again gets the same answer. An agent for
-- whom there is nothing looks whether the clock has set something free that no sweep has come to yet.
-- KEYS: leases. Answer: {status = claimed | unknown, tasks = [...], busy, queued}
local function claim(_, args)
  local request = read_request(args)
  local names, now = request.names, wall_clock()
  local agent = registered(names, request.agent)
  if not agent then return answer({status = 'unknown'}) end
  if agent.last_claim == request.call then return redis.call('HGET', names.agent .. agent.name, 'last_answer') end
  touch_agent(names, agent, now)
  local leased, held = lease_best(names, agent, request.secrets, now)
  if #leased == 0 then
    lapse(names, now, LOOK, request.keep)
    leased, held = lease_best(names, agent, request.secrets, now)
  end
  note_claim(names, now, request.audit, leased)
  local claimed = answer({status = 'claimed', tasks = leased, held = held, most = agent.most})
  redis.call('HSET', names.agent .. agent.name, 'last_claim', request.call, 'last_answer', claimed)
  return claimed
end

-- Whether a token holds the lease now: nil if so, else why not. `unknown` is for whoever never had the task.
local function refused(task, request, now)
  if not task.state then return 'unknown' end
  if not contains(split(task.holders), request.agent) then return 'unknown' end
  if task.lease_token ~= request.token or task.state ~= 'leased' or task.assigned ~= request.agent then
    return task.state == 'completed' and 'completed' or 'stale'
  end
  if tonumber(task.lease_until) * 1000000 <= now then return 'stale' end
end

-- A call whose answer was lost comes again under its own id, and gets the same answer.
local function is_repeated(task, request)
  if not task.state or task.last_call ~= request.call then return false end
  noted_before(request.audit)
  return true
end

-- rm1_task_complete: end a task with its result.
-- KEYS: leases. Answer: {status = completed | unknown | stale, more}
local function complete(_, args)
  local request = read_request(args)
  local names, id, now = request.names, request.id, wall_clock()
  local task = load_task(names, id)
  if is_repeated(task, request) then return answer({status = 'completed'}) end
  local problem = refused(task, request, now)
  if problem then return answer({status = problem == 'completed' and 'stale' or problem, state = task.state}) end

  local spent = math.floor((now - tonumber(task.leased_at) * 1000000) / 1000)
  local field = redis.call('HGET', names.namespace .. 'meta', 'field')
  local vector = field and redis.call('HGET', names.vector .. id, field)
  if vector then
    redis.call('LPUSH', names.did .. request.agent, field .. '\0' .. vector)
    redis.call('LTRIM', names.did .. request.agent, 0, LOOK - 1)
  end
  redis.call('HINCRBY', names.performance .. request.agent, 'done:' .. task.type, 1)
  redis.call('HINCRBY', names.performance .. request.agent, 'ms:' .. task.type, request.duration_ms or spent)
  note(names, id, now, {op = 'completed', agent = request.agent, fence = task.fence, attempt = tonumber(task.attempt)})
  tell(names, 'completed', id, request.agent, task)
  finish(names, id, task, 'completed', now, request.keep, request.fields)
  local agent = registered(names, request.agent)
  if agent then touch_agent(names, agent, now) end
  audit(names.audit, names.counters, now, request.audit)
  return answer({status = 'completed', more = settle_dependents(names, now, request.keep)})
end

-- rm1_task_fail: end an attempt; the task is tried again after a pause, by another agent if there is one.
-- KEYS: leases. Answer: {status = retrying | reassigned | dead | unknown | stale, next_at}
local function fail(_, args)
  local request = read_request(args)
  local names, id, now = request.names, request.id, wall_clock()
  local task = load_task(names, id)
  if is_repeated(task, request) then
    return answer({status = task.state == 'dead' and 'dead' or 'retrying',
      next_at = redis.call('HGET', names.task .. id, 'next_at') or nil})
  end
  local problem = refused(task, request, now)
  if problem then return answer({status = problem == 'completed' and 'stale' or problem, state = task.state}) end

  local kind = cmsgpack.unpack(task.kind_spec)
  redis.call('HSET', names.task .. id, 'last_call', request.call, 'error', request.error)
  local state, due = attempt_failed(names, id, task, now, {op = 'failed', error = request.error,
    handoff = request.handoff, retry = request.retry, delay = backoff(task, request), keep = request.keep})
  local agent = registered(names, request.agent)
  if agent then touch_agent(names, agent, now) end
  audit(names.audit, names.counters, now, request.audit)
  if state == 'dead' then return answer({status = 'dead', more = settle_dependents(names, now, request.keep)}) end
  local another = has_another(names, kind, split(task.avoid), now)
  return answer({status = another and 'reassigned' or 'retrying', next_at = stamp(due)})
end

-- rm1_task_cancel: end an open task on behalf of its submitter. Whoever holds its lease is told by an event, and its
-- token is worth nothing from now on. KEYS: leases. Answer: {status = cancelled | unknown | ended, state}
local function cancel(_, args)
  local request = read_request(args)
  local names, id, now = request.names, request.id, wall_clock()
  local task = load_task(names, id)
  if not task.state or (task.submitter ~= request.agent and not request.admin) then return answer({status = 'unknown'}) end
  if contains({'completed', 'dead', 'cancelled'}, task.state) then
    return answer({status = 'ended', state = task.state})
  end
  note(names, id, now, {op = 'cancelled', agent = request.agent, error = request.reason})
  tell(names, 'cancelled', id, request.agent, task)
  finish(names, id, task, 'cancelled', now, request.keep, {'error', request.reason})
  audit(names.audit, names.counters, now, request.audit)
  return answer({status = 'cancelled', state = 'cancelled', more = settle_dependents(names, now, request.keep)})
end

-- rm1_task_requeue: give a dead task a new life with all its attempts. KEYS: leases.
-- Answer: {status = pending | waiting | unknown | not_dead | ended_dependency, id, state}
local function requeue_task(_, args)
  local request = read_request(args)
  local names, id, now = request.names, request.id, wall_clock()
  local task = load_task(names, id)
  if not task.state or (task.submitter ~= request.agent and not request.admin) then return answer({status = 'unknown'}) end
  if task.state ~= 'dead' then return answer({status = 'not_dead', state = task.state}) end
  local problem, blockers = blockers_among(names, split(redis.call('HGET', names.task .. id, 'depends_on') or ''))
  if problem then return answer(problem) end
  local entry = redis.call('HGET', names.task .. id, 'dead_entry')
  if entry then redis.call('XDEL', names.dead, entry) end
  redis.call('HDEL', names.task .. id, 'finished_at', 'error', 'avoid', 'dead_entry', 'deadline')
  redis.call('HSET', names.task .. id, 'attempt', 0)
  for _, key in ipairs({names.task, names.history}) do redis.call('PERSIST', key .. id) end
  redis.call('HINCRBY', names.counters, 'open_tasks', 1)
  redis.call('HINCRBY', names.counters, 'open_tasks:' .. task.submitter, 1)
  note(names, id, now, {op = 'requeued', agent = request.agent})
  audit(names.audit, names.counters, now, request.audit)
  wait_for_others(names, id, blockers)
  if #blockers > 0 then
    redis.call('HSET', names.task .. id, 'state', 'waiting')
    return answer({status = 'waiting', state = 'waiting'})
  end
  make_pending(names, id, load_task(names, id), now)
  return answer({status = 'pending', state = 'pending'})
end

serve('rm1_task_submit', submit)
serve('rm1_task_assign', assign_tasks)
serve('rm1_task_sweep', sweep_tasks)
serve('rm1_task_claim', claim)
serve('rm1_task_complete', complete)
serve('rm1_task_fail', fail)
serve('rm1_task_cancel', cancel)
serve('rm1_task_requeue', requeue_task)
