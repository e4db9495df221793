-- Storing, updating and deleting memories.

-- rm1_owner: the owner id of an agent's name; issues the candidate if the name has none.
-- KEYS: agent, owner:<candidate>. Answer: {owner}; no owner if the name was left since the server signed the candidate.
rm.serve('rm1_owner', function(request, keys, names)
  local owner = redis.call('HGET', keys[1], 'owner')
  if not owner and rm.is_outdated(names, request.agent, request.proof) then return {} end
  if not owner then rm.issue_owner(names, request.agent, request.candidate, request.proof) end
  return {owner = owner or request.candidate}
end)

local SAME_BUCKETS, SAME_DIGITS, SAME_READ = 1024, 16, 1000

-- Where a memory with some content is recorded: `same` is `same:<owner>:<content hash>`. A bucket holds many contents
-- of an owner as `<hash><id>`, by expiry in microseconds, because a key for each content takes three times the memory.
local function bucket_of(same)
  local start, hash = string.match(same, '^(.*:)([^:]*)$')
  local number = (tonumber(string.sub(hash, 1, 3), 16) or 0) % SAME_BUCKETS
  return start .. string.format('%03x', number), string.sub(hash, 1, SAME_DIGITS)
end

-- Record that a memory has the content that `same` stands for, until it expires; without `expires_at`, that it no
-- longer has. The bucket expires with its last memory. Earlier versions kept the ids in the key `same` itself.
function rm.track_content(same, id, expires_at)
  local bucket, hash = bucket_of(same)
  redis.call('ZREM', same, id)
  if expires_at then
    local expires = expires_at == 'inf' and 'inf' or rm.integer(tonumber(expires_at) * 1000000)
    redis.call('ZADD', bucket, expires, hash .. id)
  else
    redis.call('ZREM', bucket, hash .. id)
  end
  local last = redis.call('ZRANGE', bucket, -1, -1, 'WITHSCORES')[2]
  if last == 'inf' then
    redis.call('PERSIST', bucket)
  elseif last then
    redis.call('PEXPIREAT', bucket, rm.integer(math.ceil(tonumber(last) / 1000)))
  end
end

-- A memory with the same content that has not expired.
local function find_duplicate(same, now)
  local bucket, hash = bucket_of(same)
  redis.call('ZREMRANGEBYSCORE', bucket, '-inf', rm.integer(now))
  redis.call('ZREMRANGEBYSCORE', same, '-inf', rm.seconds(now))
  for _, entry in ipairs(redis.call('ZREVRANGE', bucket, 0, SAME_READ - 1)) do
    if string.sub(entry, 1, #hash) == hash then return string.sub(entry, #hash + 1) end
  end
  return redis.call('ZRANGE', same, -1, -1)[1]
end

function rm.has_expired(expires_at)
  return expires_at ~= 'inf' and tonumber(expires_at) * 1000000 <= rm.now()
end

-- When a new memory expires: as stored, and in microseconds (nil for never).
function rm.expiry(item, now)
  if item.expires_at == 'inf' then return 'inf' end
  if item.expires_at then return item.expires_at, tonumber(item.expires_at) * 1000000 end
  if not item.ttl then return 'inf' end
  return rm.seconds(now + item.ttl * 1000000), now + item.ttl * 1000000
end

-- Raise the last sequence number in an owner's context, for a memory that expires then. The number expires with the
-- last of the memories, so that a context that is no longer used leaves nothing.
function rm.raise_number(seq, context, step, expires_at, grace)
  local ends = redis.call('HPEXPIRETIME', seq, 'FIELDS', 1, context)[1]
  local number = redis.call('HINCRBY', seq, context, step)
  if expires_at == 'inf' then
    redis.call('HPERSIST', seq, 'FIELDS', 1, context)
  elseif ends ~= -1 then
    local last = math.max(ends or 0, math.ceil((tonumber(expires_at) + grace) * 1000))
    redis.call('HPEXPIREAT', seq, rm.integer(last), 'FIELDS', 1, context)
  end
  return number
end

-- Set when Redis removes a memory's keys: a grace period after it expires.
function rm.expire(keys, microseconds, grace)
  for _, key in ipairs(keys) do
    if microseconds then
      redis.call('PEXPIREAT', key, rm.integer(microseconds / 1000 + grace * 1000))
    else
      redis.call('PERSIST', key)
    end
  end
end

-- Record that the further chunks of a memory must follow it; `most` is the highest number of chunks that may exist.
function rm.add_chore(names, id, most, microseconds)
  if most > 1 then redis.call('ZADD', names.chores, rm.seconds(microseconds), id .. ':' .. most) end
end

local function emit_memory(names, op, id, by, scope, embedded)
  rm.emit(names, 'memory', op, id, by, {scope = scope, extra = {'piece', 0, 'vector', embedded and 1 or 0}})
end

-- Write an event about a memory that was stored or updated.
function rm.emit_written(names, op, id, by, mem)
  emit_memory(names, op, id, by, redis.call('HGET', mem, 'scope'), rm.is_embedded(names, mem))
end

-- Why a memory cannot be written; nil if it can be.
function rm.write_problem(names, mem, data_key, item)
  if rm.needs_seal(names, item.seal) then return 'key_missing' end
  if item.full then return 'full' end
  if rm.is_altered(mem, item.was) then return 'altered' end
  if rm.key_changed(data_key, item.key) then return 'key_changed' end
  if rm.is_invalid(item.vector) then return 'bad_vector' end
end

-- Write a new memory with its embed job. Returns when it was created and when it expires.
function rm.insert_memory(names, mem, same, item, order, rev, grace, now)
  local created_at = item.created_at or rm.seconds(now)
  local expires_at, expires = rm.expiry(item, now)
  local fields = rm.append(item.fields, 'created_at', created_at, 'updated_at', item.updated_at or created_at,
    'expires_at', expires_at, 'seq', order, 'rev', rev)
  rm.add_mac(names, mem, fields, {}, item.seal)
  redis.call('HSET', mem, unpack(rm.add_vector(names, fields, item.vector)))
  rm.track_content(same, item.id, expires_at)
  rm.expire({mem}, expires, grace)
  rm.enqueue(names, mem, item.id, 0, item.job)
  rm.add_chore(names, item.id, item.pieces, now)
  return created_at, expires_at
end

-- rm1_store: one memory with its sequence number, embed job, audit entry and idempotency key.
-- A repeated call with the same id changes nothing while the memory lives, so a lost answer may be retried at once.
-- KEYS: mem, agent, jobs, audit, seq, same, counters, idem, chores, events, key
-- Answer: {status = stored | replayed | owner_changed | key_changed | idempotency_conflict | key_missing | full |
--          bad_vector, id, created_at, expires_at, seq, duplicate_of}
rm.serve('rm1_store', function(request, keys, names)
  local mem, agent, _, _, seq, same, _, idem, _, _, data_key = unpack(keys)
  if redis.call('HGET', agent, 'owner') ~= request.owner then return {status = 'owner_changed'} end
  if redis.call('EXISTS', mem) == 1 then
    local known = redis.call('HMGET', mem, 'created_at', 'expires_at', 'seq')
    rm.already_audited(request.audit)
    return {status = 'stored', id = request.id, created_at = known[1], expires_at = known[2], seq = tonumber(known[3])}
  end
  local idempotency = request.idempotency
  local earlier = idempotency and rm.replay(idem, 'memory_id', names.memory, idempotency)
  if earlier then return earlier end
  local problem = rm.write_problem(names, mem, data_key, request)
  if problem then return {status = problem} end

  local now = rm.tick(names)
  local order = rm.raise_number(seq, request.context, 1, rm.expiry(request, now), request.grace)
  local duplicate = find_duplicate(same, now)
  local created_at, expires_at = rm.insert_memory(names, mem, same, request, order, 1, request.grace, now)
  rm.audit(names, now, request.audit)
  rm.emit_written(names, 'stored', request.id, request.audit.who, mem)
  if idempotency then
    rm.remember(idem, idempotency, 'memory_id', request.id, 'created_at', created_at, 'expires_at', expires_at)
  end
  return {status = 'stored', id = request.id, created_at = created_at, expires_at = expires_at, seq = order,
    duplicate_of = duplicate}
end)

-- The answer to an update that is refused, else nil; and the grants under which another agent's memory is written.
local function update_problem(names, keys, request, found)
  local mem, granted, agent, data_key = keys[1], keys[11], keys[12], keys[13]
  if not found[1] or rm.has_expired(found[3]) then return {status = 'gone'} end
  local lists = {{}}
  if not rm.contains(rm.owners_now(agent, request.owners), found[1]) then
    lists = rm.writing_grants(granted, agent, request.grants, found[4])
    if #lists == 0 then return {status = 'not_owner'} end
  end
  if tonumber(found[2]) ~= request.rev then return {status = 'stale', rev = tonumber(found[2])} end
  local grants = rm.grants_with_room(names, lists, request.growth, request.most_growth)
  if not grants then return {status = 'grant_full'} end
  local problem = rm.write_problem(names, mem, data_key, request)
  return problem and {status = problem}, grants
end

-- rm1_update: change fields of a memory under the revision that the caller read. One of the `grants` must let the
-- caller write to another owner's memory, and its `growth` in chunks counts against that grant. A sensitive memory is
-- sealed again as a whole, its vector too, because the seal is bound to the revision.
-- KEYS: mem, jobs, audit, counters, use, same (old content), same (new content), chores, seq, events, granted, agent,
--       key
-- Answer: {status = updated | gone | not_owner | stale | grant_full | key_missing | altered | key_changed |
--          bad_vector, rev}
rm.serve('rm1_update', function(request, keys, names)
  local mem, _, _, _, use, old_same, new_same, _, seq = unpack(keys)
  local found = redis.call('HMGET', mem, 'owner', 'rev', 'expires_at', 'scope')
  local problem, grants = update_problem(names, keys, request, found)
  if problem then return problem end

  rm.count_growth(names, grants, request.growth)
  local now, expires_at = rm.tick(names), found[3]
  local fields = rm.append(request.fields, 'updated_at', rm.seconds(now), 'rev', request.rev + 1)
  if request.relive then
    local expires
    expires_at, expires = rm.expiry(request, now)
    rm.append(fields, 'expires_at', expires_at)
    rm.expire({mem, use}, expires, request.grace)
  end
  if request.context then
    rm.append(fields, 'seq', rm.raise_number(seq, request.context, 1, expires_at, request.grace))
  elseif request.relive and request.old_context then
    rm.raise_number(seq, request.old_context, 0, expires_at, request.grace)
  end
  if request.content_changed or request.key then rm.add_vector(names, fields, request.vector, request.remove) end
  rm.add_mac(names, mem, fields, request.remove, request.seal)
  if #request.remove > 0 then redis.call('HDEL', mem, unpack(request.remove)) end
  redis.call('HSET', mem, unpack(fields))
  local scope = redis.call('HGET', mem, 'scope')
  if scope ~= found[4] then rm.narrow_grants(names, request.id, scope) end
  if request.content_changed then rm.track_content(old_same, request.id) end
  if request.content_changed or request.relive then rm.track_content(new_same, request.id, expires_at) end
  rm.enqueue(names, mem, request.id, 0, request.job)
  rm.add_chore(names, request.id, request.pieces, now)
  rm.audit(names, now, request.audit)
  rm.emit_written(names, 'updated', request.id, request.audit.who, mem)
  return {status = 'updated', rev = request.rev + 1}
end)

-- rm1_add_reader: let the holder of an owner id read a memory that is not sensitive, if it has the revision that the server
-- read. The revision stays, because vectors on their way are for it.
-- KEYS: mem, chores, events. Answer: {status = added | gone | stale | altered | key_missing}
rm.serve('rm1_add_reader', function(request, keys, names)
  local mem = keys[1]
  local found = redis.call('HMGET', mem, 'rev', 'expires_at', 'scope', 'pieces')
  if not found[1] or rm.has_expired(found[2]) then return {status = 'gone'} end
  if found[1] ~= tostring(request.rev) then return {status = 'stale'} end
  if rm.needs_seal(names, request.seal) then return {status = 'key_missing'} end
  if rm.is_altered(mem, request.was) then return {status = 'altered'} end
  local scope = rm.split(found[3])
  if rm.contains(scope, request.reader) then return {status = 'added'} end
  table.sort(rm.append(scope, request.reader))
  redis.call('HSET', mem, unpack(rm.add_mac(names, mem, {'scope', table.concat(scope, '\31')}, {}, request.seal)))
  rm.add_chore(names, request.id, tonumber(found[4] or '1'), rm.tick(names))
  rm.emit_written(names, 'updated', request.id, request.by, mem)
  return {status = 'added'}
end)

-- The owner ids whose memories a request may delete: those that its agent still has or, without one, deleted ones.
local function deletable_owners(names, request)
  if request.agent then return rm.owners_now(names.agent .. request.agent, request.owners) end
  local found = {}
  for _, owner in ipairs(request.owners) do
    if redis.call('SISMEMBER', names.tombstones, owner) == 1 then found[#found + 1] = owner end
  end
  return found
end

-- Whether a memory belongs to one of the owners or, for a purge, was written by the agent since the given time.
local function may_delete(request, owners, found)
  if not found[1] then return false end
  if not request.writer then return rm.contains(owners, found[1]) end
  return found[5] == request.writer and tonumber(found[6]) >= request.since
end

-- rm1_delete: delete those of the named memories that belong to `agent`, to a deleted owner, or that `writer` wrote; one
-- audit entry.
-- KEYS: audit, counters, chores, events, then a mem and a use key for each id.
-- Answer: {deleted = [id, ...], long = [id:chunks]}
rm.serve('rm1_delete', 'allow-oom', function(request, keys, names)
  local now, owners, deleted, long = rm.tick(names), deletable_owners(names, request), {}, {}
  for position, id in ipairs(request.ids) do
    local mem, use = keys[3 + position * 2], keys[4 + position * 2]
    local found = redis.call('HMGET', mem, 'owner', 'hash', 'pieces', 'scope', 'writer', 'updated_at')
    if may_delete(request, owners, found) then
      redis.call('DEL', mem, use)
      rm.track_content(names.same_prefix .. found[1] .. ':' .. (found[2] or ''), id)
      deleted[#deleted + 1] = id
      emit_memory(names, 'deleted', id, request.audit.who, found[4])
      if found[3] then
        rm.add_chore(names, id, tonumber(found[3]), now)
        long[#long + 1] = id .. ':' .. found[3]
      end
    end
  end
  if #deleted > 0 then rm.audit(names, now, request.audit, deleted) end
  return {deleted = deleted, long = long}
end)

-- rm1_touch: count reads of memories that still exist, outside the indexed hashes.
-- KEYS: a mem and a use key for each count. Answer: {status}
rm.serve('rm1_touch', function(request, keys)
  for position, count in ipairs(request.counts) do
    local mem, use = keys[position * 2 - 1], keys[position * 2]
    local left = redis.call('PTTL', mem)
    if left ~= -2 then
      redis.call('HINCRBY', use, 'count', count)
      redis.call('HSET', use, 'last', request.at)
      if left > 0 then redis.call('PEXPIRE', use, left) end
    end
  end
  return {status = 'ok'}
end)
