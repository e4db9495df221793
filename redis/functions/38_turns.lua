-- The order of queued tasks: by priority, then the submitters take turns.

local BAND, KEPT_SECONDS = 2 ^ 44, 3600

-- The turn that all tasks of a priority have reached, and the first turn that its submitter did not use.
local function turns_reached(names, rank, submitter)
  return rm.number(names.turns, rank), rm.number(names.turns, rank .. ':' .. submitter)
end

-- The turn of a submitter's next task among all tasks of its priority: start-time fair queueing. Only tasks that wait or
-- were leased use turns.
local function next_turn(names, rank, submitter)
  local last = redis.call('ZRANGE', names.turns_of .. submitter, '(' .. rm.integer((rank + 1) * BAND),
    rm.integer(rank * BAND), 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  local turn = math.max(last and tonumber(last) % BAND + 1 or 0, turns_reached(names, rank, submitter))
  return turn
end

-- Take a task from those of its submitter that wait. The submitter's next one of this priority moves up: to the turn of
-- this task, or to the one after it if this task `used` 1 turn.
function rm.leave_turns(names, id, task, used)
  local key, base = names.turns_of .. task.submitter, tonumber(task.rank) * BAND
  if redis.call('ZREM', key, id) == 0 then return end
  local following = redis.call('ZRANGE', key, '(' .. task.score, '(' .. rm.integer(base + BAND), 'BYSCORE', 'LIMIT', 0, 1,
    'WITHSCORES')
  if not following[1] then return end
  local kind = redis.call('HGET', names.task .. following[1], 'kind')
  local turn = tonumber(task.score) % BAND + used
  local score = base + math.max(turn, turns_reached(names, task.rank, task.submitter))
  if not kind then
    redis.call('ZREM', key, following[1])
  elseif score < tonumber(following[2]) then
    redis.call('HSET', names.task .. following[1], 'score', rm.integer(score))
    for _, queue in ipairs({key, names.backlog .. kind}) do
      redis.call('ZADD', queue, 'XX', rm.integer(score), following[1])
    end
  end
end

-- Record that an agent gets a task: where new submitters of its priority start, and its submitter goes on. A task that
-- goes out before earlier ones of its submitter uses the turn of the first. An agent's own task costs no turn.
function rm.take_turn(names, id, task, agent)
  if task.submitter == agent then return rm.leave_turns(names, id, task, 0) end
  local reached, unused = turns_reached(names, task.rank, task.submitter)
  local turn = math.min(tonumber(task.score) % BAND, math.max(reached, unused))
  redis.call('HSET', names.turns, task.rank, rm.integer(math.max(reached, turn)), task.rank .. ':' .. task.submitter,
    rm.integer(math.max(unused, turn + 1)))
  rm.leave_turns(names, id, task, 1)
end

function rm.score_of(names, task)
  return rm.integer(tonumber(task.rank) * BAND + next_turn(names, task.rank, task.submitter))
end

-- Forget the turns of a submitter, of all priorities. Those that are not reached yet are kept for a while: otherwise an
-- agent whose only task is cancelled while another works on it would have the next turn again.
function rm.forget_turns(names, submitter)
  local ends = rm.integer(rm.now() / 1000 + KEPT_SECONDS * 1000)
  redis.call('UNLINK', names.turns_of .. submitter)
  for rank = 0, 3 do
    local field, reached, unused = rank .. ':' .. submitter, turns_reached(names, rank, submitter)
    if unused > reached then
      redis.call('HPEXPIREAT', names.turns, ends, 'FIELDS', 1, field)
    else
      redis.call('HDEL', names.turns, field)
    end
  end
end
