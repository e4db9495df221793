-- Sharing: who lets whom see what, until when. One write, whatever the number of memories a grant covers.
-- Which keys are touched depends on grants of grants, so they are made here of the namespace's prefix, as keys.py does.

local KEPT_SECONDS = 30 * 86400
local MOST_GRANTS, MOST_TOKENS, MOST_OFFERS = 256, 4096, 256

local function moment(microseconds)
  return microseconds == math.huge and 'inf' or stamp(microseconds)
end

local function keep_until(key, microseconds)
  if microseconds == math.huge then return redis.call('PERSIST', key) end
  redis.call('PEXPIREAT', key, string.format('%.0f', microseconds / 1000 + KEPT_SECONDS * 1000))
end

local function tell_both(prefix, op, id, by, one, other)
  emit(prefix .. 'events', 'grant', op, id, by, {to = one .. '\31' .. other})
end

local function passes_on(via, token)
  for _, part in pairs(via) do
    if contains(part.tokens, token) then return true end
  end
  return false
end

-- Drop the marks by which a change of a memory finds the grants that pass it on by its id, except those that the
-- `rest` of the grant still needs.
local function unmark(prefix, id, part, rest)
  for _, token in ipairs(part.tokens) do
    if string.sub(token, 1, 2) == 'i:' and not passes_on(rest, token) then
      redis.call('SREM', prefix .. 'reshared:' .. string.sub(token, 3), id)
    end
  end
end

local end_grant

-- Write back an entry that lost a part; one with nothing left ends.
local function keep_rest(prefix, id, name, entry, now, ended)
  if #entry.own > 0 or next(entry.via) then
    redis.call('HSET', prefix .. 'granted:' .. name, id, cmsgpack.pack(entry))
    ended.touched[name] = true
  else
    end_grant(prefix, id, now, 'revoked', '', ended)
  end
end

-- What was passed on under a grant ends with it.
local function end_children(prefix, id, now, ended)
  local children = prefix .. 'children:' .. id
  for _, child in ipairs(redis.call('SMEMBERS', children)) do
    local name = redis.call('HGET', prefix .. 'grant:' .. child, 'to')
    local packed = name and redis.call('HGET', prefix .. 'granted:' .. name, child)
    local entry = packed and cmsgpack.unpack(packed)
    if entry and entry.via[id] then
      local part = entry.via[id]
      entry.via[id] = nil
      unmark(prefix, child, part, entry.via)
      keep_rest(prefix, child, name, entry, now, ended)
    end
  end
  redis.call('DEL', children)
end

-- End a grant or an offer with all that hangs on it. `ended` gathers their number and the agents that see less.
function end_grant(prefix, id, now, op, by, ended)
  local hash = prefix .. 'grant:' .. id
  local found = redis.call('HMGET', hash, 'state', 'from', 'to')
  local state, from, to = found[1], found[2], found[3]
  if state ~= 'active' and state ~= 'offered' then return end
  redis.call('HSET', hash, 'state', op, 'ended_at', stamp(now), 'ended_by', by)
  redis.call('EXPIRE', hash, KEPT_SECONDS)
  redis.call('SREM', prefix .. 'granting:' .. from, id)
  redis.call('ZREM', prefix .. 'grants:due', id)
  if state == 'offered' then
    redis.call('HDEL', prefix .. 'offers:' .. to, id)
  else
    local granted = prefix .. 'granted:' .. to
    local packed = redis.call('HGET', granted, id)
    for _, part in pairs(packed and cmsgpack.unpack(packed).via or {}) do unmark(prefix, id, part, {}) end
    redis.call('HDEL', granted, id)
    ended.touched[to] = true
    ended.grants = ended.grants + 1
  end
  tell_both(prefix, op, id, by, from, to)
  if state == 'active' then end_children(prefix, id, now, ended) end
end

local function nothing_ended()
  return {grants = 0, touched = {}}
end

-- End all grants and offers by and to an agent, with what hangs on them; give the number of grants.
local function drop_grants(prefix, name)
  local now, ended = wall_clock(), nothing_ended()
  for _, key in ipairs({'granted:', 'offers:'}) do
    for _, id in ipairs(redis.call('HKEYS', prefix .. key .. name)) do
      end_grant(prefix, id, now, 'revoked', name, ended)
    end
  end
  for _, id in ipairs(redis.call('SMEMBERS', prefix .. 'granting:' .. name)) do
    end_grant(prefix, id, now, 'revoked', name, ended)
  end
  return ended.grants
end

local function without(tokens, token)
  local left = {}
  for _, other in ipairs(tokens) do
    if other ~= token then left[#left + 1] = other end
  end
  return left
end

function narrow_grants(prefix, memory, scope)
  local now, carried, token = wall_clock(), set_of(split(scope)), 'i:' .. memory
  local marks = prefix .. 'reshared:' .. memory
  for _, id in ipairs(redis.call('SMEMBERS', marks)) do
    local found = redis.call('HMGET', prefix .. 'grant:' .. id, 'from', 'to')
    local packed = found[2] and redis.call('HGET', prefix .. 'granted:' .. found[2], id)
    local entry = packed and cmsgpack.unpack(packed)
    for parent, part in pairs(entry and entry.via or {}) do
      local above = redis.call('HGET', prefix .. 'granted:' .. found[1], parent)
      if not (above and meets(cmsgpack.unpack(above).own, carried)) then
        part.tokens = without(part.tokens, token)
        if #part.tokens == 0 then entry.via[parent] = nil end
      end
    end
    if entry and not passes_on(entry.via, token) then
      redis.call('SREM', marks, id)
    end
    if entry then keep_rest(prefix, id, found[2], entry, now, nothing_ended()) end
  end
end

-- The entries of a hash that are in force, by id, and the ids of those that are not.
local function entries_of(key, owner, now)
  local living, over, flat = {}, {}, redis.call('HGETALL', key)
  for position = 1, #flat, 2 do
    local entry = in_force(flat[position + 1], owner, now)
    living[flat[position]] = entry
    if not entry then over[#over + 1] = flat[position] end
  end
  return living, over
end

local function pass_on(via, parent, entry, token)
  via[parent] = via[parent] or {tokens = {}, ends = entry.ends}
  table.insert(via[parent].tokens, token)
end

-- Tokens for memories named by id: each must be the sharer's own, or covered by what it may pass on.
local function share_ids(prefix, owners, roots, ids)
  local own, via = {}, {}
  for _, id in ipairs(ids) do
    local found = redis.call('HMGET', prefix .. 'mem:' .. id, 'owner', 'scope', 'expires_at')
    if not found[1] or has_expired(found[3]) then return nil, id end
    local carried, covered = set_of(split(found[2])), contains(owners, found[1])
    if covered then own[#own + 1] = 'i:' .. id end
    for parent, entry in pairs(covered and {} or roots) do
      if meets(entry.own, carried) then
        covered = true
        pass_on(via, parent, entry, 'i:' .. id)
      end
    end
    if not covered then return nil, id end
  end
  return own, via
end

-- Tokens for all memories with some labels: the sharer's own, and those of others that it may pass on.
local function share_labels(kind, owners, roots, values)
  local own, via, wanted = {}, {}, set_of(values)
  for _, owner in ipairs(owners) do
    for _, value in ipairs(values) do own[#own + 1] = kind .. ':' .. owner .. ':' .. value end
  end
  for parent, entry in pairs(roots) do
    for _, token in ipairs(entry.own) do
      local of, value = string.match(token, '^(%a):[^:]+:(.+)$')
      if of == kind and wanted[value] then pass_on(via, parent, entry, token) end
    end
  end
  return own, via
end

local function count_tokens(entry)
  local number = #entry.own
  for _, part in pairs(entry.via) do number = number + #part.tokens end
  return number
end

-- Whether every token stood in an earlier list; only then is what it covers no news.
local function all_in(tokens, earlier)
  local known = set_of(earlier or {})
  for _, token in ipairs(tokens) do
    if not known[token] then return false end
  end
  return true
end

local function find_entry(entries, by, selector, permission)
  for id, entry in pairs(entries) do
    if entry.by == by and entry.selector == selector and (not permission or entry.permission == permission) then
      return id, entry
    end
  end
end

local function within_caps(granted, id, entry)
  local number, tokens = 1, count_tokens(entry)
  for other, held in pairs(granted) do
    if other ~= id then
      number = number + 1
      tokens = tokens + count_tokens(held)
    end
  end
  if number > MOST_GRANTS then return 'too_many_grants' end
  if tokens > MOST_TOKENS then return 'too_many_tokens' end
end

-- The owner id of an agent and all ids whose memories are its own; the candidate where it has none.
local function owner_of(agent, candidate)
  local found = redis.call('HMGET', agent, 'owner', 'owners')
  local owners = split(found[2])
  if not found[1] then owners[#owners + 1] = candidate end
  return found[1] or candidate, owners, not found[1]
end

local function issue(prefix, agent, name, owner, owners)
  redis.call('HSET', agent, 'owner', owner, 'owners', table.concat(owners, '\31'))
  redis.call('HSET', prefix .. 'owner:' .. owner, 'agent', name)
end

local function write_record(prefix, id, state, request, entry, now)
  local hash = prefix .. 'grant:' .. id
  redis.call('HSET', hash, 'state', state, 'from', request.from, 'to', request.to, 'permission', request.permission,
    'from_owner', entry.by_owner, 'to_owner', entry.owner, 'kind', request.kind,
    'values', cmsgpack.pack(request.shown), 'note', request.note, 'until', moment(entry.ends))
  redis.call('HSETNX', hash, 'at', stamp(now))
  keep_until(hash, entry.ends)
  redis.call('SADD', prefix .. 'granting:' .. request.from, id)
  redis.call('ZREM', prefix .. 'grants:due', id)
  if entry.ends ~= math.huge then redis.call('ZADD', prefix .. 'grants:due', stamp(entry.ends), id) end
end

-- Write a grant's entry and tie it to the grants that parts of it hang on.
local function write_grant(prefix, id, entry, earlier, request, now)
  local last = earlier or {own = {}, via = {}}
  entry.at = all_in(entry.own, last.own) and last.at or now
  for _, part in pairs(last.via) do unmark(prefix, id, part, {}) end
  for parent, part in pairs(entry.via) do
    part.ends = math.min(part.ends, entry.ends)
    local before = last.via[parent]
    part.at = before and all_in(part.tokens, before.tokens) and before.at or now
    redis.call('SADD', prefix .. 'children:' .. parent, id)
    for _, token in ipairs(part.tokens) do
      if request.kind == 'i' then redis.call('SADD', prefix .. 'reshared:' .. string.sub(token, 3), id) end
    end
  end
  redis.call('HSET', prefix .. 'granted:' .. request.to, id, cmsgpack.pack(entry))
  write_record(prefix, id, 'active', request, entry, now)
end

-- What is passed on never outlives the grant that it hangs on, which may have been renewed for a shorter time.
local function shorten_children(prefix, parent, ends)
  for _, child in ipairs(redis.call('SMEMBERS', prefix .. 'children:' .. parent)) do
    local name = redis.call('HGET', prefix .. 'grant:' .. child, 'to')
    local packed = name and redis.call('HGET', prefix .. 'granted:' .. name, child)
    local entry = packed and cmsgpack.unpack(packed)
    if entry and entry.via[parent] and entry.via[parent].ends > ends then
      entry.via[parent].ends = ends
      redis.call('HSET', prefix .. 'granted:' .. name, child, cmsgpack.pack(entry))
    end
  end
end

-- The offer that a two-way share makes: none where the other direction is in force already, or comes to be by this.
-- Gives its id, the entry, and why it cannot be.
local function plan_offer(request, held, offers, from_owner, to_owner, now, ends)
  if not request.offer or find_entry(held, request.to, request.selector) then return nil end
  local number = 0
  for _ in pairs(offers) do number = number + 1 end
  local id = find_entry(offers, request.from, request.selector)
  if not id and number >= MOST_OFFERS then return nil, nil, 'too_many_offers' end
  return id or request.offer, {owner = to_owner, by = request.from, by_owner = from_owner, selector = request.selector,
    permission = request.permission, at = now, ends = ends, own = {request.selector}, via = {}}
end

-- rm1_share: let an agent see what a selector covers, now and later; sharing the same again renews the grant.
-- KEYS: audit, counters, agent (sharer), agent (target)
-- Answer: {status = shared | unknown_agent | not_found | too_many_grants | too_many_tokens | too_many_offers,
--          id, ends, offer, accepted, missing}
local function share(keys, args)
  local log, counters, sharer, target = unpack(keys)
  local request = cmsgpack.unpack(args[1])
  local prefix, now = request.prefix, wall_clock()
  if redis.call('HEXISTS', target, 'registered_at') == 0 then return answer({status = 'unknown_agent'}) end
  local owner, owners, new_owner = owner_of(sharer, request.candidates[1])
  local to_owner, to_owners, new_to_owner = owner_of(target, request.candidates[2])
  local held = entries_of(prefix .. 'granted:' .. request.from, owner, now)
  local roots = {}
  for id, entry in pairs(held) do
    if entry.permission == 'write' and #entry.own > 0 then roots[id] = entry end
  end
  local own, via
  if request.kind == 'i' then
    own, via = share_ids(prefix, owners, roots, request.values)
    if not own then return answer({status = 'not_found', missing = via}) end
  else
    own, via = share_labels(request.kind, owners, roots, request.values)
  end
  local granted, over = entries_of(prefix .. 'granted:' .. request.to, to_owner, now)
  local known, earlier = find_entry(granted, request.from, request.selector, request.permission)
  local id, ends = known or request.id, request.seconds and now + request.seconds * 1000000 or math.huge
  local entry = {owner = to_owner, by = request.from, by_owner = owner, permission = request.permission,
    selector = request.selector, ends = ends, own = own, via = via}
  local refusal = within_caps(granted, id, entry)
  if refusal then return answer({status = refusal}) end
  local answered = entries_of(prefix .. 'offers:' .. request.from, owner, now)
  local offers, stale = entries_of(prefix .. 'offers:' .. request.to, to_owner, now)
  local wait = request.seconds and ends or now + KEPT_SECONDS * 1000000
  local offer, offered, full = plan_offer(request, held, offers, owner, to_owner, now, wait)
  if full then return answer({status = full}) end

  now = tick(counters)
  if new_owner then issue(prefix, sharer, request.from, owner, owners) end
  if new_to_owner then issue(prefix, target, request.to, to_owner, to_owners) end
  for _, list in ipairs({over, stale}) do
    for _, past in ipairs(list) do end_grant(prefix, past, now, 'expired', '', nothing_ended()) end
  end
  write_grant(prefix, id, entry, earlier, request, now)
  if known then shorten_children(prefix, id, ends) end
  request.audit.done = {id, request.to}
  audit(log, counters, now, request.audit)
  tell_both(prefix, 'granted', id, request.from, request.from, request.to)
  local accepted = find_entry(answered, request.to, request.selector)
  if accepted then end_grant(prefix, accepted, now, 'accepted', request.from, nothing_ended()) end
  if offer then
    redis.call('HSET', prefix .. 'offers:' .. request.to, offer, cmsgpack.pack(offered))
    write_record(prefix, offer, 'offered', request, offered, now)
    tell_both(prefix, 'offered', offer, request.from, request.from, request.to)
  end
  return answer({status = 'shared', id = id, ends = moment(ends), offer = offer, accepted = accepted})
end

-- Whether an agent may end a grant or an offer: who gave it, and of an offer also whom it was made to.
local function may_end(prefix, record, who)
  local owner = redis.call('HGET', prefix .. 'agent:' .. who, 'owner')
  local asked = record.state == 'offered' and record.to == who and record.to_owner == owner
  return asked or (record.from == who and record.from_owner == owner)
end

-- rm1_revoke: end a grant or an offer, and what was passed on under it, at once. One that has ended stays so.
-- KEYS: audit, counters. Answer: {status = revoked | not_found, grants, touched = [agent, ...]}
local function revoke(keys, args)
  local request = cmsgpack.unpack(args[1])
  local found = redis.call('HMGET', request.prefix .. 'grant:' .. request.id, 'state', 'from', 'to', 'from_owner',
    'to_owner')
  local record = {state = found[1], from = found[2], to = found[3], from_owner = found[4], to_owner = found[5]}
  local mine = may_end(request.prefix, record, request.who)
  if not record.state or not (request.admin or mine) then
    return answer({status = 'not_found'})
  end
  local ended, touched = nothing_ended(), {record.state ~= 'offered' and record.to or nil}
  if record.state == 'active' or record.state == 'offered' then
    local now = tick(keys[2])
    end_grant(request.prefix, request.id, now, 'revoked', request.who, ended)
    request.audit.done = {request.id, record.to}
    audit(keys[1], keys[2], now, request.audit)
  end
  for name in pairs(ended.touched) do touched[#touched + 1] = name end
  return answer({status = 'revoked', grants = ended.grants, touched = touched})
end

-- rm1_expire_grants: remove a slice of what has expired; until then it is only ignored.
-- KEYS: grants due. Answer: {ended}
local function expire_grants(keys, args)
  local request = cmsgpack.unpack(args[1])
  local now, ended = wall_clock(), nothing_ended()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', keys[1], '-inf', stamp(now), 'LIMIT', 0, request.most)) do
    end_grant(request.prefix, id, now, 'expired', '', ended)
    redis.call('ZREM', keys[1], id)
  end
  return answer({ended = ended.grants})
end

serve('rm1_share', share)
serve('rm1_revoke', revoke)
serve('rm1_expire_grants', expire_grants)
