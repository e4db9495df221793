-- Sharing by grants. One write, however many memories a grant covers.

local KEPT_SECONDS = 30 * 86400
-- How many grants one call ends or shortens, so that Redis never stalls: each may pass on hundreds of memories.
local AT_ONCE = 32

local function end_time(microseconds)
  return microseconds == math.huge and 'inf' or rm.seconds(microseconds)
end

local function keep_until(key, microseconds)
  if microseconds == math.huge then return redis.call('PERSIST', key) end
  redis.call('PEXPIREAT', key, rm.integer(microseconds / 1000 + KEPT_SECONDS * 1000))
end

-- Write an event for the grantor and the grantee of a grant, each while it has its name.
function rm.emit_grant(names, op, id, by)
  local grant, to = rm.read(names.grant .. id, 'from', 'from_owner', 'to', 'to_owner'), {}
  for _, side in ipairs({'from', 'to'}) do
    local name = grant[side]
    if redis.call('HGET', names.agent .. name, 'owner') == grant[side .. '_owner'] then to[#to + 1] = name end
  end
  rm.emit(names, 'grant', op, id, by, {to = table.concat(to, '\31')})
end

-- A grant's entry, active or not.
local function load_entry(names, name, id)
  return name and rm.load_entry(names.granted .. name, id)
end

local function save_entry(names, name, id, entry)
  redis.call('HSET', names.granted .. name, id, cmsgpack.pack(entry))
end

-- Link a grant to its parents, and to the memories that it passes on by id: a change of such a memory finds it there.
local function link_grant(names, id, kind, via)
  for parent, part in pairs(via) do
    redis.call('SADD', names.children .. parent, id)
    for _, token in ipairs(part.tokens) do
      if kind == 'i' then redis.call('SADD', names.reshared .. string.sub(token, 3), id) end
    end
  end
end

-- All tokens that the parts of a grant pass on, as a set. Parts may name the same ones.
function rm.tokens_of(via)
  local found = {}
  for _, part in pairs(via) do
    for _, token in ipairs(part.tokens) do found[token] = true end
  end
  return found
end

-- Unlink a grant from the parents of some parts, and from the memories that the parts passed on, except those that the
-- `rest` of the grant passes on.
local function unlink_parts(names, id, parts, rest)
  local kept = rm.tokens_of(rest)
  for parent in pairs(parts) do redis.call('SREM', names.children .. parent, id) end
  for token in pairs(rm.tokens_of(parts)) do
    if string.sub(token, 1, 2) == 'i:' and not kept[token] then
      redis.call('SREM', names.reshared .. string.sub(token, 3), id)
    end
  end
end

local end_grant

-- Save an entry that lost a part, or end the grant if nothing is left. Returns false as `end_grant` does.
local function keep_rest(names, id, name, entry, now, ended)
  save_entry(names, name, id, entry)
  if #entry.own == 0 and not next(entry.via) then return end_grant(names, id, now, 'revoked', '', ended) end
  ended.touched[name] = true
  return true
end

local function nothing_ended(most)
  return {grants = 0, touched = {}, left = most or AT_ONCE}
end

-- End what was passed on under a grant, as far as `ended` has some `left`. Returns whether that is all.
local function end_children(names, id, now, ended)
  local children = names.children .. id
  for _, child in ipairs(redis.call('SPOP', children, math.max(ended.left, 0))) do
    ended.left = ended.left - 1
    local name = redis.call('HGET', names.grant .. child, 'to')
    local entry = load_entry(names, name, child)
    local part = entry and entry.via[id]
    if part then
      entry.via[id] = nil
      unlink_parts(names, child, {[id] = part}, entry.via)
    end
    if entry and not keep_rest(names, child, name, entry, now, ended) then redis.call('SADD', children, child) end
  end
  return redis.call('EXISTS', children) == 0
end

-- End a grant or an offer and, before it, all grants under it. `ended` collects how many grants ended, and the agents
-- affected. Returns false if grants under it are left: the server then calls again.
function end_grant(names, id, now, op, by, ended)
  local hash = names.grant .. id
  local grant = rm.read(hash, 'state', 'from', 'to')
  if grant.state ~= 'active' and grant.state ~= 'offered' then return true end
  if not grant.from or not grant.to then
    rm.discard(hash, nil, 'the grant names no agents')
    return true
  end
  if grant.state == 'active' and not end_children(names, id, now, ended) then return false end
  ended.left = ended.left - 1
  redis.call('HSET', hash, 'state', op, 'ended_at', rm.seconds(now), 'ended_by', by)
  redis.call('EXPIRE', hash, KEPT_SECONDS)
  redis.call('SREM', names.granting .. grant.from, id)
  redis.call('ZREM', names.grants_due, id)
  if grant.state == 'offered' then
    redis.call('HDEL', names.offers .. grant.to, id)
  else
    local entry = load_entry(names, grant.to, id)
    unlink_parts(names, id, entry and entry.via or {}, {})
    redis.call('HDEL', names.granted .. grant.to, id)
    ended.touched[grant.to] = true
    ended.grants = ended.grants + 1
  end
  rm.emit_grant(names, op, id, by)
  return true
end

-- End an offer.
function rm.end_offer(names, id, op, by)
  end_grant(names, id, rm.now(), op, by, nothing_ended())
end

-- End grants and offers by and to an agent, some at a time. Returns how many grants ended, and whether that is all.
function rm.end_all_grants(names, name)
  local now, ended, granting = rm.now(), nothing_ended(), names.granting .. name
  local held = rm.append(redis.call('HKEYS', names.granted .. name), unpack(redis.call('HKEYS', names.offers .. name)))
  for _, id in ipairs(rm.append(held, unpack(redis.call('SRANDMEMBER', granting, AT_ONCE)))) do
    if ended.left <= 0 or not end_grant(names, id, now, 'revoked', name, ended) then break end
    redis.call('SREM', granting, id)
    for _, key in ipairs({names.granted, names.offers}) do redis.call('HDEL', key .. name, id) end
  end
  return ended.grants, redis.call('EXISTS', names.granted .. name, names.offers .. name, granting) == 0
end

-- End the grants, or parts of them, that pass on a memory which their parents no longer cover by its new scope.
function rm.narrow_grants(names, memory, scope)
  local now, carried, token = rm.now(), rm.set(rm.split(scope)), 'i:' .. memory
  local links, covers = names.reshared .. memory, {}
  for _, id in ipairs(redis.call('SMEMBERS', links)) do
    local grant = rm.read(names.grant .. id, 'from', 'to')
    local entry, changed = load_entry(names, grant.to, id), false
    for parent, part in pairs(entry and entry.via or {}) do
      -- Many grants have the same parents, so each is read once.
      if covers[parent] == nil then
        local above = load_entry(names, grant.from, parent)
        covers[parent] = above ~= nil and rm.intersects(above.own, carried)
      end
      if not covers[parent] then
        part.tokens, changed = rm.without(part.tokens, token), true
        if #part.tokens == 0 then
          unlink_parts(names, id, {[parent] = part}, entry.via)
          entry.via[parent] = nil
        end
      end
    end
    if entry and not rm.tokens_of(entry.via)[token] then redis.call('SREM', links, id) end
    if changed then keep_rest(names, id, grant.to, entry, now, nothing_ended()) end
  end
end

-- The active entries of a hash by id, and the ids of the others.
function rm.load_entries(key, owner, now)
  local active, over = {}, {}
  for _, id in ipairs(redis.call('HKEYS', key)) do
    local entry = rm.active_entry(key, id, owner, now)
    active[id] = entry
    if not entry then over[#over + 1] = id end
  end
  return active, over
end

local function find_entry(entries, by, selector)
  for id, entry in pairs(entries) do
    if entry.by == by and entry.selector == selector then return id, entry end
  end
end

-- The current owner id of an agent, or the candidate; all its owner ids; and whether the candidate is to be issued.
local function owner_of(agent, candidate)
  local found = redis.call('HMGET', agent, 'owner', 'owners')
  local owners = rm.split(found[2])
  if not found[1] then owners[#owners + 1] = candidate end
  return found[1] or candidate, owners, not found[1]
end

local function write_record(names, id, state, request, entry, now)
  local hash = names.grant .. id
  redis.call('HSET', hash, 'state', state, 'from', request.from, 'to', request.to, 'permission', request.permission,
    'from_owner', entry.by_owner, 'to_owner', entry.owner, 'kind', request.kind,
    'values', cmsgpack.pack(request.shown), 'note', request.note, 'until', end_time(entry.ends))
  redis.call('HSETNX', hash, 'at', rm.seconds(now))
  keep_until(hash, entry.ends)
  redis.call('ZREM', names.grants_due, id)
  if entry.ends ~= math.huge then redis.call('ZADD', names.grants_due, rm.seconds(entry.ends), id) end
end

-- Write an active grant: its links, its entry and its record. A renewal lets its holder's memories grow again.
function rm.write_grant(names, id, request, entry, at)
  link_grant(names, id, request.kind, entry.via)
  save_entry(names, request.to, id, entry)
  write_record(names, id, 'active', request, entry, at)
  redis.call('SADD', names.granting .. request.from, id)
  redis.call('HDEL', names.grant .. id, 'grown')
end

-- Write an offer: its entry, its record with the server's code, and its event.
function rm.write_offer(names, id, request, entry, at)
  redis.call('HSET', names.offers .. request.to, id, cmsgpack.pack(entry))
  write_record(names, id, 'offered', request, entry, at)
  if request.mac then redis.call('HSET', names.grant .. id, 'mac', request.mac) end
  rm.emit_grant(names, 'offered', id, request.from)
end

-- End what a share replaces: other grants of the same selector between the same agents, as imports can leave them, and
-- what was passed on under a grant that no longer lets its holder write. Returns whether that is all.
function rm.end_replaced(names, granted, id, request, earlier, now, ended)
  for other, entry in pairs(granted) do
    if other ~= id and entry.by == request.from and entry.selector == request.selector then
      if ended.left <= 0 or not end_grant(names, other, now, 'revoked', request.from, ended) then return false end
    end
  end
  local is_less = earlier and earlier.permission == 'write' and request.permission ~= 'write'
  return not is_less or end_children(names, id, now, ended)
end

-- A grant may be renewed for a shorter time; what is passed on under it then ends earlier too. Shortens some from a
-- cursor on, and returns the next cursor: '0' after the last.
local function shorten_children(names, parent, ends, cursor)
  local found = redis.call('SSCAN', names.children .. parent, cursor, 'COUNT', AT_ONCE)
  for _, child in ipairs(found[2]) do
    local name = redis.call('HGET', names.grant .. child, 'to')
    local entry = load_entry(names, name, child)
    if entry and entry.via[parent] and entry.via[parent].ends > ends then
      entry.via[parent].ends = ends
      save_entry(names, name, child, entry)
    end
  end
  return found[1]
end

-- The offer that a two-way share makes: none if the other direction is shared already, or becomes so by this share.
-- `lasts` is when the grant that accepts it ends at the latest. An offer that waits already for the same answer keeps
-- its id; any other is replaced, so that an answer never accepts what its receiver has not seen.
-- Returns its id, the entry, why the offer is refused, and the id of the offer that it replaces.
local function plan_offer(request, held, offers, from_owner, to_owner, now, ends)
  if not request.offer or find_entry(held, request.to, request.selector) then return nil end
  local id, before = find_entry(offers, request.from, request.selector)
  if not id and rm.has_all_offers(offers) then return nil, nil, 'too_many_offers' end
  if not id and rm.has_all_offers_of(offers, request.from) then return nil, nil, 'too_many_of_pair' end
  local is_same = id == request.offer or id and before.permission == request.permission and before.lasts == ends
  local wait = request.seconds and ends or now + request.offer_seconds * 1000000
  local entry = {owner = to_owner, by = request.from, by_owner = from_owner, selector = request.selector,
    permission = request.permission, at = now, ends = wait, lasts = ends, own = {request.selector}, via = {}}
  return is_same and id or request.offer, entry, nil, not is_same and id or nil
end

-- When a grant that accepts an offer ends: with the grant whose other direction it is, but no later than was offered.
-- Nil if one of them is over.
local function end_of_answer(request, offers, held)
  local offer = offers[request.answers]
  local _, given = find_entry(held, request.to, request.selector)
  if offer and given and offer.by == request.to and offer.selector == request.selector
    and offer.permission == request.permission then
    return math.min(given.ends, offer.lasts or offer.ends)
  end
end

-- rm1_share: let an agent read what a selector covers, now and later. Sharing the same again replaces the permission,
-- the end and the note of the grant. With `answers`, only to accept the offer of that id.
-- The server signs beforehand what the grant may give, and the offer; if they are others by now, the answer is
-- `changed`, with the ids that they then have. If it ends more grants than one call may, the answer is `more`: call
-- again. If it shortens more, the answer has the `cursor` for rm1_shorten_passed_on.
-- KEYS: audit, counters, agent (grantor), agent (grantee)
-- Answer: {status = shared | more | changed | unknown_agent | no_offer | not_found | too_many_grants |
--          too_many_tokens | too_many_offers | too_many_of_pair | passed_on_too_often, id, ends, offer, accepted,
--          missing, cursor,
--          touched = [agent, ...] who lost what was passed on to them}
rm.serve('rm1_share', function(request, keys, names)
  local now, from, to = rm.now(), request.from, request.to
  local _, _, grantor, grantee = unpack(keys)
  local owner, owners, new_owner = owner_of(grantor, request.candidates[1])
  local to_owner, _, new_to_owner = owner_of(grantee, request.candidates[2])
  local held = rm.load_entries(names.granted .. from, owner, now)
  local answered = rm.load_entries(names.offers .. from, owner, now)
  -- An agent that offered is known to the one that answers, registered or not.
  local is_known = redis.call('HEXISTS', grantee, 'registered_at') == 1 or find_entry(answered, to, request.selector)
  if not is_known then return {status = 'unknown_agent'} end
  local ends = request.seconds and now + request.seconds * 1000000 or math.huge
  if request.answers then ends = end_of_answer(request, answered, held) end
  if not ends then return {status = 'no_offer'} end
  if request.kind ~= 'i' and rm.has_all_labels(owners, request.values) then return {status = 'too_many_of_pair'} end
  local own, via = rm.select_tokens(names, request, owners, rm.parents_among(held))
  if not own then return {status = 'not_found', missing = via} end
  local granted, over = rm.load_entries(names.granted .. to, to_owner, now)
  local known, earlier = find_entry(granted, from, request.selector)
  local id = known or request.id
  local entry = {owner = to_owner, by = from, by_owner = owner, permission = request.permission,
    selector = request.selector, ends = ends, own = own, via = via}
  local problem = rm.limit_problem(granted, id, entry) or rm.passing_problem(names, id, from, via)
  if problem then return {status = problem} end
  local proofs = request.proofs or {}
  if not rm.is_proven(entry, id, request.proof) or (new_owner and rm.is_outdated(names, from, proofs[1]))
    or (new_to_owner and rm.is_outdated(names, to, proofs[2])) then
    return {status = 'changed', id = id}
  end
  rm.prove(entry, request.proof)
  local offers, stale = rm.load_entries(names.offers .. to, to_owner, now)
  local offer, offered, full, replaced = plan_offer(request, held, offers, owner, to_owner, now, ends)
  if full then return {status = full} end
  if offer and request.proof and offer ~= request.offer then return {status = 'changed', id = id, offer = offer} end
  local ended, touched = nothing_ended(), {}
  local is_ended = rm.end_replaced(names, granted, id, request, earlier, now, ended)
  for name in pairs(ended.touched) do touched[#touched + 1] = name end
  if not is_ended then return {status = 'more', touched = touched} end

  now = rm.tick(names)
  if new_owner then rm.issue_owner(names, from, owner, proofs[1]) end
  if new_to_owner then rm.issue_owner(names, to, to_owner, proofs[2]) end
  local expired = nothing_ended(AT_ONCE / 4)
  for _, past in ipairs(rm.append(over, unpack(stale))) do
    if expired.left > 0 then end_grant(names, past, now, 'expired', '', expired) end
  end
  if replaced then end_grant(names, replaced, now, 'revoked', from, nothing_ended()) end
  rm.date_entry(entry, earlier or {own = {}, via = {}}, now)
  unlink_parts(names, id, earlier and earlier.via or {}, {})
  rm.write_grant(names, id, request, entry, now)
  local cursor = known and shorten_children(names, id, ends, '0') or '0'
  rm.audit(names, now, request.audit, {id, to})
  rm.emit_grant(names, 'granted', id, from)
  local accepted = find_entry(answered, to, request.selector)
  if accepted then end_grant(names, accepted, now, 'accepted', from, nothing_ended()) end
  if offer then
    rm.write_offer(names, offer, request, offered, now)
    redis.call('SADD', names.granting .. from, offer)
  end
  return {status = 'shared', id = id, ends = end_time(ends), offer = offer, accepted = accepted,
    touched = touched, cursor = cursor}
end)

-- rm1_shorten_passed_on: let more of what is passed on under a grant end no later than the grant.
-- KEYS: counters. Request: id, cursor. Answer: {cursor}, '0' after the last
rm.serve('rm1_shorten_passed_on', 'allow-oom', function(request, _, names)
  local entry = load_entry(names, redis.call('HGET', names.grant .. request.id, 'to'), request.id)
  return {cursor = entry and shorten_children(names, request.id, entry.ends, request.cursor) or '0'}
end)

-- How an agent may end a grant or an offer: the receiver declines it, the grantor or an admin revokes it.
local function way_to_end(names, grant, request)
  local owner = redis.call('HGET', names.agent .. request.who, 'owner')
  if not grant.state then return nil end
  if grant.to == request.who and grant.to_owner == owner then return 'declined' end
  if request.admin or (grant.from == request.who and grant.from_owner == owner) then return 'revoked' end
end

-- rm1_revoke: end a grant or an offer, and what was passed on under it, at once. Has no effect on an ended one. With
-- `answers`, only to decline an offer. What was passed on ends first: the answer is `more` until all of it ended.
-- KEYS: audit, counters. Answer: {status = revoked | more | not_found, grants, touched = [agent, ...]}
rm.serve('rm1_revoke', 'allow-oom', function(request, _, names)
  local grant = rm.read(names.grant .. request.id, 'state', 'from', 'to', 'from_owner', 'to_owner')
  local op = way_to_end(names, grant, request)
  local is_open = grant.state == 'offered' or grant.state == 'declined'
  if not op or (request.answers and not (op == 'declined' and is_open)) then return {status = 'not_found'} end
  local ended, touched = nothing_ended(), {grant.state ~= 'offered' and grant.to or nil}
  local is_ended = true
  if grant.state == 'active' or grant.state == 'offered' then
    local now = rm.tick(names)
    is_ended = end_grant(names, request.id, now, op, request.who, ended)
    if is_ended then rm.audit(names, now, request.audit, {request.id, grant.to}) end
  end
  for name in pairs(ended.touched) do touched[#touched + 1] = name end
  return {status = is_ended and 'revoked' or 'more', grants = ended.grants, touched = touched}
end)

-- rm1_expire_grants: remove some of the expired grants and offers, which have no effect any more.
-- KEYS: grants due. Answer: {ended, more}
rm.serve('rm1_expire_grants', 'allow-oom', function(request, _, names)
  local now, ended = rm.now(), nothing_ended()
  for _, id in ipairs(rm.due(names.grants_due, now, AT_ONCE)) do
    if redis.call('EXISTS', names.grant .. id) == 0 then
      rm.discard(names.grants_due, id, 'it has no record')
    else
      if ended.left <= 0 then break end
      local ok = rm.attempt(names.grants_due, id, end_grant, names, id, now, 'expired', '', ended)
      if ok == false then break end
      redis.call('ZREM', names.grants_due, id)
    end
  end
  return {ended = ended.grants, more = redis.call('ZCOUNT', names.grants_due, '-inf', rm.seconds(now)) > 0}
end)
