-- Claims: leases of the best tasks for an agent.

local LOOK_MORE = 8
local CLAIM_BATCH = 8
local HELD_READ, SHOWN_MOST = 64, 64

-- Of two tasks with the same score the older goes first, so that the order in which queues are read does not matter.
local function comes_first(one, other)
  return one.score < other.score or (one.score == other.score and one.id < other.id)
end

-- The tasks that an agent is assigned and has not leased, best last; it holds `held` leases.
local function assigned_to(names, name, held)
  local inbox = names.inbox .. name
  if redis.call('XLEN', inbox) == held then return {} end
  local found, leased = {}, rm.set(redis.call('SMEMBERS', names.held .. name))
  for _, entry in ipairs(redis.call('XRANGE', inbox, '-', '+')) do
    local id, score = entry[2][2], tonumber(entry[2][4])
    if not id or not score then
      rm.discard(inbox, entry[1], 'it names no task')
    elseif not leased[id] then
      score = tonumber(redis.call('HGET', names.task .. id, 'score') or '') or score
      found[#found + 1] = {id = id, score = score, entry = entry[1]}
    end
  end
  table.sort(found, function(one, other) return comes_first(other, one) end)
  return found
end

-- The first task of a kind that is not avoided, from a rank in its queue on.
local function first_of(names, kind, avoided, start)
  local count = 1
  while true do
    local queued = redis.call('ZRANGE', names.backlog .. kind, start, start + count - 1, 'WITHSCORES')
    for position = 1, #queued, 2 do
      if not avoided[queued[position]] then
        return {id = queued[position], score = tonumber(queued[position + 1]), rank = start + (position - 1) / 2}
      end
    end
    if #queued < 2 * count then return nil end
    start, count = start + count, count * LOOK_MORE
  end
end

-- The next task of a kind after `first` was taken. Those before it were avoided; a task that moved up comes last.
local function following(names, kind, avoided, first)
  local found = first_of(names, kind, avoided, first.rank)
  return found or first.rank > 0 and first_of(names, kind, avoided, 0) or nil
end

-- The first tasks of the kinds that the agent is able to do: of the `wanted` kinds with the best ones.
local function heads_for(names, agent, avoided, wanted)
  local heads, kinds = {}, redis.call('HGETALL', names.kinds)
  for position = 1, #kinds, 2 do
    local spec = rm.spec_of(names, kinds[position], kinds[position + 1])
    if spec and rm.is_able(agent, spec) then
      local first = first_of(names, kinds[position], avoided, 0)
      if first then heads[#heads + 1] = {kind = kinds[position], first = first} end
    end
  end
  table.sort(heads, function(one, other) return comes_first(one.first, other.first) end)
  for position = #heads, wanted + 1, -1 do heads[position] = nil end
  return heads
end

-- The best of the first tasks and `best`, and the head that it is of.
local function best_of(heads, best)
  local from
  for _, head in ipairs(heads) do
    if head.first and (not best or comes_first(head.first, best)) then best, from = head.first, head end
  end
  return best, from
end

-- Write a new lease of a task, under a new token, to the session of an agent, with further fields. Returns it.
local function write_lease(names, id, task, agent, secret, attempt, now, ...)
  local fence = rm.integer(rm.tick(names))
  local token = id .. '.' .. fence .. '.' .. secret
  local ends = rm.seconds(rm.lease_end(task, now))
  redis.call('HSET', names.task .. id, 'lease_token', token, 'fence', fence, 'lease_until', ends, 'session',
    agent.session, 'progress_at', rm.seconds(now), ...)
  redis.call('ZADD', names.leases, ends, id)
  return {id = id, lease_token = token, lease_until = ends, attempt = attempt, fence = fence,
    lease_seconds = task.lease_seconds}
end

-- Lease a task to an agent. A task that was assigned to it is queued instead if it is no longer able to do it.
local function lease(names, id, task, agent, secret, now, keep)
  if not rm.is_able(agent, rm.read_kind(task.kind_spec)) then
    rm.requeue_assigned(names, id, task, now, 'it is not able to do it any more', keep)
    return nil
  end
  if task.assigned == agent.name then
    redis.call('ZREM', names.unclaimed, id)
  else
    rm.assign(names, id, task, agent.name)
  end
  local attempt = tonumber(task.attempt) + 1
  local holders = rm.append(rm.without(rm.split(task.holders), agent.name), agent.name)
  local leased = write_lease(names, id, task, agent, secret, attempt, now, 'state', 'leased', 'leased_at',
    rm.seconds(now), 'attempt', attempt, 'holders', table.concat(holders, '\31'))
  redis.call('SADD', names.held .. agent.name, id)
  rm.take_turn(names, id, task, agent.name)
  rm.record(names, id, task, now, {op = 'leased', agent = agent.name, fence = leased.fence, attempt = attempt})
  return leased
end

-- Give a lease of an agent to another session of it. Its old token ends.
local function resume(names, id, task, agent, secret, now)
  local attempt = tonumber(task.attempt)
  local leased = write_lease(names, id, task, agent, secret, attempt, now)
  rm.record(names, id, task, now, {op = 'resumed', agent = agent.name, fence = leased.fence, attempt = attempt})
  leased.resumed = true
  return leased
end

-- What an agent holds: leases of this session (`mine`), of sessions that are live (`elsewhere`), and of those that ended
-- or fell silent. These are given to this session, with the secrets for them.
local function look_at_hands(names, agent, secrets, now)
  local resumed, mine, elsewhere = {}, {}, {}
  local ids = redis.call('SRANDMEMBER', names.held .. agent.name, HELD_READ)
  table.sort(ids)
  for _, id in ipairs(ids) do
    local task = rm.load_task(names, id)
    if not rm.damage_of(task) and rm.holds_lease(task, agent.name, task.lease_token, now) then
      local held = {id = id, lease_token = task.lease_token, lease_until = task.lease_until, attempt = task.attempt}
      if (task.session or '') == agent.session then
        mine[#mine + 1] = #mine < SHOWN_MOST and held or nil
      elseif agent.session == '' or rm.is_session_live(names, agent, task.session, now) then
        elsewhere[#elsewhere + 1] = #elsewhere < SHOWN_MOST and {id = id, lease_until = task.lease_until} or nil
      elseif #resumed < #secrets then
        resumed[#resumed + 1] = resume(names, id, task, agent, secrets[#resumed + 1], now)
      end
    end
  end
  return resumed, mine, elsewhere
end

-- Lease to an agent the tasks that it has capacity for, best first. Returns the leases, and how many it holds.
local function lease_best(names, agent, secrets, now, keep)
  local leased, held = {}, redis.call('SCARD', names.held .. agent.name)
  local wanted, skipped = math.min(#secrets, agent.most - held), 0
  if wanted <= 0 then return leased, held end
  local assigned, avoided = assigned_to(names, agent.name, held), rm.avoided_by(names, agent.name, now)
  local heads = agent.status ~= 'draining' and heads_for(names, agent, avoided, wanted) or {}
  while #leased < wanted and skipped < rm.BATCH do
    local best, head = best_of(heads, assigned[#assigned])
    if not best then break end
    local key = head and names.backlog .. head.kind or names.inbox .. agent.name
    local found = rm.attempt_task(names, key, best.entry or best.id, best.id, {'pending'}, function(task)
      return lease(names, best.id, task, agent, secrets[#leased + 1], now, keep)
    end)
    if found then leased[#leased + 1] = found else skipped = skipped + 1 end
    if head then head.first = following(names, head.kind, avoided, best) else assigned[#assigned] = nil end
  end
  local ids = {}
  for position, found in ipairs(leased) do ids[position] = found.id end
  rm.list_work(names, agent.name, ids, now, keep)
  return leased, held + #leased
end

local function audit_claim(names, now, entry, leased)
  if not entry or #leased == 0 then return end
  local ids = {}
  for position, found in ipairs(leased) do ids[position] = found.id end
  rm.audit(names, now, entry, ids)
end

-- rm1_task_claim: lease the best tasks for an agent, assigned or queued, by priority and turn. `secrets` has one secret
-- for each lease that may be given, `resumes` for each that this session may take over from one that ended. A repeated call gets the same answer. If there is no task, what is due is processed
-- first, in case no sweep has done so.
-- KEYS: leases. Answer: {status = claimed | unknown, tasks = [...], mine, elsewhere, progress, held, most, more}
rm.serve('rm1_task_claim', function(request, _, names)
  local now = rm.team_now(names)
  local agent = rm.load_agent(names, request.agent)
  if not agent then return {status = 'unknown'} end
  if agent.last_claim == request.call then return redis.call('HGET', names.agent .. agent.name, 'last_answer') end
  agent.session = request.session or ''
  rm.touch_agent(names, agent, now)
  rm.touch_session(names, agent, agent.session, now)
  local resumed, mine, elsewhere = look_at_hands(names, agent, request.resumes or {}, now)
  for _ = 1, #resumed do request.secrets[#request.secrets] = nil end
  local leased, held = lease_best(names, agent, request.secrets, now, request.keep)
  if #leased == 0 and #request.secrets > 0 and rm.is_due(names, now) then
    rm.process_due(names, now, CLAIM_BATCH, request.keep)
    leased, held = lease_best(names, agent, request.secrets, now, request.keep)
  end
  local given = rm.append(resumed, unpack(leased))
  audit_claim(names, now, request.audit, given)
  local progress = (#resumed > 0 or #mine > 0) and redis.call('HGET', names.agent .. agent.name, 'metrics') or nil
  local claimed = rm.pack({status = 'claimed', tasks = given, mine = mine, elsewhere = elsewhere, progress = progress,
    held = held, most = agent.most,
    more = rm.has_unsettled(names)})
  redis.call('HSET', names.agent .. agent.name, 'last_claim', request.call, 'last_answer', claimed)
  return claimed
end)
