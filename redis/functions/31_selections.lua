-- The tokens that a share selects: own ones, and those of others to pass on.

local function pass_on(via, parent, entry, token)
  via[parent] = via[parent] or {tokens = {}, ends = entry.ends}
  table.insert(via[parent].tokens, token)
end

-- Pass on a memory under the grants that cover it. Returns whether any does.
local function pass_on_memory(via, parents, carried, id)
  local covering = {}
  for _, token in ipairs(carried) do
    for parent, entry in pairs(parents.by_token[token] or {}) do covering[parent] = entry end
  end
  for parent, entry in pairs(covering) do pass_on(via, parent, entry, 'i:' .. id) end
  return next(covering) ~= nil
end

-- Tokens for memories by id. Each memory must be the grantor's own, or covered by a grant that it may pass on.
local function share_ids(names, owners, parents, ids)
  local own, via = {}, {}
  for _, id in ipairs(ids) do
    local found = redis.call('HMGET', names.memory .. id, 'owner', 'scope', 'expires_at')
    if not found[1] or rm.has_expired(found[3]) then return nil, id end
    local covered = rm.contains(owners, found[1])
    if covered then own[#own + 1] = 'i:' .. id end
    covered = covered or pass_on_memory(via, parents, rm.split(found[2]), id)
    if not covered then return nil, id end
  end
  return own, via
end

-- Tokens for all memories with some labels: the grantor's own, and those of others that it may pass on.
local function share_labels(kind, owners, parents, values)
  local own, via = {}, {}
  for _, owner in ipairs(owners) do
    for _, value in ipairs(values) do own[#own + 1] = kind .. ':' .. owner .. ':' .. value end
  end
  for value in pairs(rm.set(values)) do
    for _, given in ipairs(parents.by_label[kind .. ':' .. value] or {}) do
      pass_on(via, given.parent, given.entry, given.token)
    end
  end
  return own, via
end

-- The grants under which an agent may pass on memories of others, by the tokens and by the labels that they give.
function rm.parents_among(held)
  local by_token, by_label = {}, {}
  for parent, entry in pairs(held) do
    for _, token in ipairs(entry.permission == 'write' and entry.own or {}) do
      by_token[token] = by_token[token] or {}
      by_token[token][parent] = entry
      local of, value = string.match(token, '^([cty]):[^:]+:(.+)$')
      local label = of and of .. ':' .. value
      if label then by_label[label] = rm.append(by_label[label] or {}, {parent = parent, entry = entry, token = token}) end
    end
  end
  return {by_token = by_token, by_label = by_label}
end

-- Tokens for what a share selects: own ones, and those to pass on. If it selects an unknown id, nil and the id.
function rm.select_tokens(names, request, owners, parents)
  if request.kind == 'i' then return share_ids(names, owners, parents, request.values) end
  return share_labels(request.kind, owners, parents, request.values)
end

-- Whether an earlier list holds all tokens, so that what they cover is not new.
local function all_in(tokens, earlier)
  local known = rm.set(earlier or {})
  for _, token in ipairs(tokens) do
    if not known[token] then return false end
  end
  return true
end

-- Give each part of a renewed grant the time since when it covers what it covers, and no later end than the grant's.
function rm.date_entry(entry, earlier, now)
  entry.at = all_in(entry.own, earlier.own) and earlier.at or now
  for parent, part in pairs(entry.via) do
    local before = earlier.via[parent]
    part.ends = math.min(part.ends, entry.ends)
    part.at = before and all_in(part.tokens, before.tokens) and before.at or now
  end
end
