-- Records and histories of tasks.

local HISTORY_KEPT, WORK_KEPT = 200, 500
-- How many agents a task's record names that were told of it.
local TOLD_MOST = 64

local TASK = {'state', 'kind', 'kind_spec', 'open_kind', 'open_kind_spec', 'rank', 'score', 'submitter', 'assigned',
  'entry', 'avoid', 'attempt', 'max_retries', 'lease_seconds', 'lease_token', 'fence', 'lease_until', 'holders',
  'claim_seconds', 'type', 'last_call', 'leased_at', 'session', 'progress_at', 'deadline', 'expiries', 'failed_fence',
  'told'}

local TEXTS = {'state', 'kind', 'open_kind', 'submitter', 'type'}
local NUMBERS = {'rank', 'attempt', 'max_retries', 'lease_seconds', 'claim_seconds'}
local NUMBERS_LEASED = {'leased_at', 'lease_until', 'fence'}

function rm.load_task(names, id)
  return rm.read(names.task .. id, unpack(TASK))
end

-- The requirements of a task; nil if they cannot be read.
function rm.read_kind(packed)
  local kind = rm.unpack(packed)
  if kind and type(kind.window) == 'number' and type(kind.only) == 'string' and type(kind.capabilities) == 'table' then
    return kind
  end
end

-- When a lease ends that is given or renewed at a time: no later than the task's deadline.
function rm.lease_end(task, at)
  local ends, deadline = at + tonumber(task.lease_seconds) * 1000000, tonumber(task.deadline or '')
  return deadline and math.min(ends, deadline * 1000000) or ends
end

function rm.missing_number(task, fields)
  for _, field in ipairs(fields) do
    if not tonumber(task[field]) then return field end
  end
end

-- Why a task's record cannot be used; nil if it can be.
function rm.damage_of(task)
  if not task.state then return 'it has no record' end
  for _, field in ipairs(TEXTS) do
    if not task[field] then return 'its record has no ' .. field end
  end
  local field = rm.missing_number(task, NUMBERS) or (task.score and rm.missing_number(task, {'score'}))
    or (task.state == 'leased' and rm.missing_number(task, NUMBERS_LEASED))
  if field then return 'its ' .. field .. ' is not a number' end
  if not (rm.read_kind(task.kind_spec) and rm.read_kind(task.open_kind_spec)) then return 'its kind is unreadable' end
  if task.assigned and not string.match(task.entry or '', '^%d+%-%d+$') then return 'its entry is no stream id' end
  if task.state == 'leased' and not task.assigned then return 'no agent holds it' end
end

function rm.add_history(names, id, now, entry)
  entry.at = rm.seconds(now)
  if redis.call('RPUSH', names.history .. id, cmsgpack.pack(entry)) > HISTORY_KEPT then
    redis.call('LTRIM', names.history .. id, -HISTORY_KEPT, -1)
  end
end

-- Keep for the next holder what an agent wrote at the end of an attempt, and what it reported during it. Each replaces
-- only the earlier note of its kind.
function rm.keep_notes(names, id, task, name, handoff)
  local reported, notes = rm.read(names.agent .. name, 'metrics', 'metrics_at'), {}
  if handoff then rm.append(notes, 'handoff', handoff, 'handoff_by', name) end
  if reported.metrics and (tonumber(reported.metrics_at) or 0) >= (tonumber(task.leased_at) or 0) then
    rm.append(notes, 'progress', reported.metrics, 'progress_by', name)
  end
  if #notes > 0 then redis.call('HSET', names.task .. id, unpack(notes)) end
end

-- List tasks with those that an agent worked on, for longer than an ended task is kept.
function rm.list_work(names, name, ids, now, keep)
  if #ids == 0 then return end
  local worked, listed = names.worked .. name, {}
  for _, id in ipairs(ids) do rm.append(listed, rm.seconds(now), id) end
  redis.call('ZADD', worked, unpack(listed))
  redis.call('ZREMRANGEBYRANK', worked, 0, -WORK_KEPT - 1)
  redis.call('EXPIRE', worked, rm.integer(2 * keep))
end

-- Write an event for the agent that the task is assigned to, and for the submitter while it has its name.
function rm.emit_task(names, op, id, by, task)
  local to, created_at = {task.assigned}, redis.call('HGET', names.task .. id, 'created_at')
  if task.submitter ~= task.assigned and not rm.is_before_holder(names, task.submitter, created_at) then
    to[#to + 1] = task.submitter
  end
  rm.emit(names, 'task', op, id, by, {to = table.concat(to, '\31')})
end

-- Write an event that a task is assigned. Each agent is told once of a task, and again only after it became able since:
-- an unclaimed task goes to the same agents again and again. The submitter is told of the first of them.
function rm.emit_assigned(names, id, task, now)
  local told, name = rm.split(task.told), task.assigned
  for position = 1, #told, 2 do
    if told[position] == name then
      if rm.number(names.agent .. name, 'able_at') <= tonumber(told[position + 1]) then return end
      table.remove(told, position)
      table.remove(told, position)
      break
    end
  end
  if task.told then
    rm.emit(names, 'task', 'assigned', id, '', {to = name})
  else
    rm.emit_task(names, 'assigned', id, '', task)
  end
  rm.append(told, name, rm.seconds(now))
  while #told > 2 * TOLD_MOST do table.remove(told, 1) end
  task.told = table.concat(told, '\31')
  redis.call('HSET', names.task .. id, 'told', task.told)
end

-- Write both: a history entry, and an event by its agent.
function rm.record(names, id, task, now, entry)
  rm.add_history(names, id, now, entry)
  rm.emit_task(names, entry.op, id, entry.agent, task)
end
