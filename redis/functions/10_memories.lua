-- Storing, changing and removing memories.

-- rm1_owner: map an agent's name to an owner id, issuing the candidate if the name has none.
-- KEYS: agent, owner:<candidate>. Answer: {owner}
local function owner(keys, args)
  local request = cmsgpack.unpack(args[1])
  local present = redis.call('HGET', keys[1], 'owner')
  if present then return answer({owner = present}) end
  local kept = redis.call('HGET', keys[1], 'owners')
  redis.call('HSET', keys[1], 'owner', request.candidate,
    'owners', kept and kept .. '\31' .. request.candidate or request.candidate)
  redis.call('HSET', keys[2], 'agent', request.agent)
  return answer({owner = request.candidate})
end

-- What an idempotency key stood for; one whose memory was deleted since stands for nothing.
local function replay(key, request)
  local seen = redis.call('HMGET', key, 'payload', 'memory_id', 'created_at', 'expires_at')
  if not seen[1] or redis.call('EXISTS', request.memory_prefix .. seen[2]) == 0 then return nil end
  if seen[1] ~= request.idempotency.payload then return {status = 'idempotency_conflict'} end
  return {status = 'replayed', id = seen[2], created_at = seen[3], expires_at = seen[4]}
end

-- Note that a memory says what this key stands for, until it expires; without `expires_at`, that it no longer does.
-- The key is a sorted set of ids by expiry and goes with the last of them.
local function note_same(same, id, expires_at)
  if expires_at then redis.call('ZADD', same, expires_at, id) else redis.call('ZREM', same, id) end
  local last = redis.call('ZRANGE', same, -1, -1, 'WITHSCORES')[2]
  if last == 'inf' then
    redis.call('PERSIST', same)
  elseif last then
    redis.call('PEXPIREAT', same, string.format('%.0f', math.ceil(tonumber(last) * 1000)))
  end
end

-- A memory that says the same and has not expired.
local function living(same, now)
  redis.call('ZREMRANGEBYSCORE', same, '-inf', stamp(now))
  return redis.call('ZRANGE', same, -1, -1)[1]
end

local function has_expired(expires_at)
  return expires_at ~= 'inf' and tonumber(expires_at) * 1000000 <= wall_clock()
end

local function tell_of_memory(events, op, id, by, scope, ready)
  emit(events, 'memory', op, id, by, {scope = scope, extra = {'piece', 0, 'vector', ready and 1 or 0}})
end

-- rm1_store: one memory with its order, its embed job, its audit entry and its idempotency key.
-- Calling it again with the same id changes nothing while the memory lives, so a lost answer may be retried at once.
-- KEYS: mem, agent, jobs, audit, seq, same, counters, idem, chores, events, key
-- Answer: {status = stored | replayed | owner_changed | key_changed | idempotency_conflict | key_missing | full, ...}
local function store(keys, args)
  local mem, agent, jobs, log, seq, same, counters, idem, chores, events, key = unpack(keys)
  local request = cmsgpack.unpack(args[1])
  if redis.call('HGET', agent, 'owner') ~= request.owner then
    return answer({status = 'owner_changed'})
  end
  if redis.call('EXISTS', mem) == 1 then
    local known = redis.call('HMGET', mem, 'created_at', 'expires_at', 'seq')
    noted_before(request.audit)
    return answer({status = 'stored', id = request.id, created_at = known[1], expires_at = known[2],
      seq = tonumber(known[3])})
  end
  if request.idempotency then
    local earlier = replay(idem, request)
    if earlier then return answer(earlier) end
  end
  if needs_seal(counters, request.seal) then return answer({status = 'key_missing'}) end
  if request.full then return answer({status = 'full'}) end
  if other_key(key, request.key) then return answer({status = 'key_changed'}) end
  if is_bad(request.vector) then return answer({status = 'bad_vector'}) end

  local now = tick(counters)
  local expires = request.ttl and now + request.ttl * 1000000
  local created_at, expires_at = stamp(now), expires and stamp(expires) or 'inf'
  local order = redis.call('HINCRBY', seq, request.context, 1)
  local fields = request.fields
  for _, pair in ipairs({'created_at', created_at, 'updated_at', created_at, 'expires_at', expires_at,
    'seq', order, 'rev', 1}) do
    fields[#fields + 1] = pair
  end
  with_code(counters, mem, fields, {}, request.seal)
  redis.call('HSET', mem, unpack(with_vector(mem, fields, request.vector)))
  local duplicate = living(same, now)
  note_same(same, request.id, expires_at)
  expire({mem}, expires, request.grace)
  enqueue(jobs, mem, request.id, 0, request.job)
  note_chore(chores, request.id, request.pieces, now)
  audit(log, counters, now, request.audit)
  tell_of_memory(events, 'stored', request.id, request.audit.who, redis.call('HGET', mem, 'scope'), is_ready(mem))
  if request.idempotency then
    redis.call('HSET', idem, 'payload', request.idempotency.payload, 'memory_id', request.id,
      'created_at', created_at, 'expires_at', expires_at)
    redis.call('EXPIRE', idem, request.idempotency.ttl)
  end
  return answer({status = 'stored', id = request.id, created_at = created_at, expires_at = expires_at,
    seq = order, duplicate_of = duplicate})
end

-- rm1_update: change fields of a memory under the revision that the caller read. What is another's is changed under
-- one of the `grants` that let the caller write to it.
-- All of a sensitive memory is sealed anew, its vector too, since it is bound to the revision.
-- KEYS: mem, jobs, audit, counters, use, same (old content), same (new content), chores, seq, events, granted, agent, key
-- Answer: {status = updated | gone | not_owner | stale | key_missing | altered | key_changed | bad_vector, rev}
local function update(keys, args)
  local mem, jobs, log, counters, use, old_same, new_same, chores, seq, events, granted, agent, key = unpack(keys)
  local request = cmsgpack.unpack(args[1])
  local found = redis.call('HMGET', mem, 'owner', 'rev', 'expires_at', 'scope')
  if not found[1] or has_expired(found[3]) then return answer({status = 'gone'}) end
  if not contains(request.owners, found[1]) and not may_write(granted, agent, request.grants, found[4]) then
    return answer({status = 'not_owner'})
  end
  if tonumber(found[2]) ~= request.rev then return answer({status = 'stale', rev = tonumber(found[2])}) end
  if needs_seal(counters, request.seal) then return answer({status = 'key_missing'}) end
  if is_altered(mem, request.was) then return answer({status = 'altered'}) end
  if other_key(key, request.key) then return answer({status = 'key_changed'}) end
  if is_bad(request.vector) then return answer({status = 'bad_vector'}) end

  local now = tick(counters)
  local fields = request.fields
  for _, pair in ipairs({'updated_at', stamp(now), 'rev', request.rev + 1}) do fields[#fields + 1] = pair end
  if request.context then
    fields[#fields + 1] = 'seq'
    fields[#fields + 1] = redis.call('HINCRBY', seq, request.context, 1)
  end
  local expires_at = found[3]
  if request.relive then
    local expires = request.ttl and now + request.ttl * 1000000
    expires_at = expires and stamp(expires) or 'inf'
    fields[#fields + 1] = 'expires_at'
    fields[#fields + 1] = expires_at
    expire({mem, use}, expires, request.grace)
  end
  if request.content_changed or request.key then
    with_vector(mem, fields, request.vector)
  end
  with_code(counters, mem, fields, request.remove, request.seal)
  if #request.remove > 0 then redis.call('HDEL', mem, unpack(request.remove)) end
  redis.call('HSET', mem, unpack(fields))
  local scope = redis.call('HGET', mem, 'scope')
  if scope ~= found[4] then narrow_grants(request.prefix, request.id, scope) end
  if request.content_changed then note_same(old_same, request.id) end
  if request.content_changed or request.relive then note_same(new_same, request.id, expires_at) end
  enqueue(jobs, mem, request.id, 0, request.job)
  note_chore(chores, request.id, request.pieces, now)
  audit(log, counters, now, request.audit)
  tell_of_memory(events, 'updated', request.id, request.audit.who, scope, is_ready(mem))
  return answer({status = 'updated', rev = request.rev + 1})
end

-- Whether a memory is of one of some owners or, to purge, was written by an agent since a time.
local function is_doomed(request, found)
  if not found[1] then return false end
  if not request.writer then return contains(request.owners, found[1]) end
  return found[5] == request.writer and tonumber(found[6]) >= request.since
end

-- rm1_delete: remove those of the named memories that belong to the caller, or that a writer wrote, in one audit entry.
-- KEYS: audit, counters, chores, events, then a mem and a use key for each id. Answer: {deleted = [id, ...], long = [id:pieces]}
local function delete(keys, args)
  local request = cmsgpack.unpack(args[1])
  local deleted, long = {}, {}
  local now = tick(keys[2])
  for position, id in ipairs(request.ids) do
    local mem, use = keys[3 + position * 2], keys[4 + position * 2]
    local found = redis.call('HMGET', mem, 'owner', 'hash', 'pieces', 'scope', 'writer', 'updated_at')
    if is_doomed(request, found) then
      redis.call('DEL', mem, use)
      note_same(request.same_prefix .. found[1] .. ':' .. (found[2] or ''), id)
      deleted[#deleted + 1] = id
      tell_of_memory(keys[4], 'deleted', id, request.audit.who, found[4])
      if found[3] then
        note_chore(keys[3], id, tonumber(found[3]), now)
        long[#long + 1] = id .. ':' .. found[3]
      end
    end
  end
  if #deleted > 0 then
    request.audit.done = deleted
    audit(keys[1], keys[2], now, request.audit)
  end
  return answer({deleted = deleted, long = long})
end

-- rm1_touch: count reads outside the indexed hashes, for memories that still exist.
-- KEYS: a mem and a use key for each count. Answer: {status}
local function touch(keys, args)
  local request = cmsgpack.unpack(args[1])
  for position, count in ipairs(request.counts) do
    local mem, use = keys[position * 2 - 1], keys[position * 2]
    local left = redis.call('PTTL', mem)
    if left ~= -2 then
      redis.call('HINCRBY', use, 'count', count)
      redis.call('HSET', use, 'last', request.at)
      if left > 0 then redis.call('PEXPIRE', use, left) end
    end
  end
  return answer({status = 'ok'})
end

serve('rm1_owner', owner)
serve('rm1_store', store)
serve('rm1_update', update)
serve('rm1_delete', delete)
serve('rm1_touch', touch)
