-- Tasks that an agent failed at: others are offered them first.

local AVOIDED_KEPT, COMPARED_MOST, COMPARED_A_TASK = 1000, 1024, 32

-- What the agent at a position of the team can do; false if it takes no tasks. Each is read once for all tasks of a call.
local function team_member(names, team, position)
  local name = team.names[position]
  local found = redis.call('HMGET', names.agent .. name, 'context_window', 'status', 'capabilities')
  local window = found[2] ~= 'draining' and tonumber(found[1] or '')
  team.agents[position] = window and {name = name, window = window, has = rm.searchable(found[3])} or false
  return team.agents[position]
end

-- Whether a living agent that did not fail at a task could take it. `team` is one table for all tasks of a call, empty at
-- first. Of more agents than are compared one is taken to be able.
function rm.has_another(names, team, kind, failed, now)
  if not kind or kind.only ~= '' then return false end
  if not team.names then
    team.agents = {}
    team.names = redis.call('ZRANGE', names.agents, '+inf', '(' .. rm.seconds(now), 'BYSCORE', 'REV', 'LIMIT', 0,
      COMPARED_MOST)
  end
  for position = 1, #team.names do
    team.compared = (team.compared or 0) + 1
    local agent = team.agents[position]
    if agent == nil then agent = team_member(names, team, position) end
    if agent and rm.has_skills(agent, kind) and not failed[agent.name] then return true end
  end
  return #team.names == COMPARED_MOST
end

-- What a task of a call cost that `has_another` compared agents for since the last one.
function rm.cost_of_compared(team)
  local compared = team.compared or 0
  team.compared = 0
  return 1 + compared / COMPARED_A_TASK
end

-- Offer a task to others first, for as long as an assignment waits for its claim, from the time of its retry.
function rm.avoid(names, id, task, name, now, due)
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
function rm.is_avoided(names, id, name, now)
  local ends = redis.call('ZSCORE', names.avoided .. name, id)
  return ends and tonumber(ends) * 1000000 > now
end
