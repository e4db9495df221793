-- What grants permit. `granted:<name>` holds for each grant to that agent an entry
-- {owner, by, by_owner, permission, selector, at, ends, own = [token], via = {parent = {tokens, at, ends}}}.
-- It holds for the agent while `owner` is its owner id, and until `ends` (microseconds, inf for never). `own` are
-- tokens of the grantor's own memories, `via` those of others' that it passes on under a grant of its own.

local function split(text)
  local found = {}
  for item in string.gmatch(text or '', '[^\31]+') do found[#found + 1] = item end
  return found
end

local function set_of(list)
  local set = {}
  for _, item in ipairs(list) do set[item] = true end
  return set
end

local function meets(tokens, set)
  for _, token in ipairs(tokens) do
    if set[token] then return true end
  end
  return false
end

-- What is left of an entry now; nil when nothing is.
local function in_force(packed, owner, now)
  local entry = packed and cmsgpack.unpack(packed)
  if not entry or entry.owner ~= owner then return nil end
  if entry.ends <= now then entry.own = {} end
  for parent, part in pairs(entry.via) do
    if part.ends <= now then entry.via[parent] = nil end
  end
  if #entry.own == 0 and not next(entry.via) then return nil end
  return entry
end

-- Whether one of some grants lets an agent write to a memory that carries these scope tokens.
local function may_write(granted, agent, ids, scope)
  local owner, now, carried = redis.call('HGET', agent, 'owner'), wall_clock(), set_of(split(scope))
  for _, id in ipairs(ids) do
    local entry = in_force(redis.call('HGET', granted, id), owner, now)
    if entry and entry.permission == 'write' then
      if meets(entry.own, carried) then return true end
      for _, part in pairs(entry.via) do
        if meets(part.tokens, carried) then return true end
      end
    end
  end
  return false
end

-- Take from grants what a memory with this scope no longer lets them pass on; 30_grants.lua says how.
local narrow_grants
