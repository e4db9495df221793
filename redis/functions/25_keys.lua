-- The data keys of sensitive memories, each wrapped under a master key that Redis never sees. The hash `key:<owner>`
-- maps versions to wrapped keys; `current` names the current version. During a rotation it holds several versions.

local LOOK = 8

-- Whether something was sealed under another version of the data key than the current one.
function rm.key_changed(hash, version)
  return version and redis.call('HGET', hash, 'current') ~= version
end

-- Remove some owner ids whose data key expired with their memories, more than are added.
local function drop_expired(names)
  for _, owner in ipairs(redis.call('SRANDMEMBER', names.keyed, LOOK)) do
    if redis.call('EXISTS', names.data_key .. owner) == 0 then redis.call('SREM', names.keyed, owner) end
  end
end

-- rm1_key_issue: give an owner a data key, unless it has one.
-- KEYS: key, owner, tombstones, keyed, audit, counters. Answer: {status = issued | kept | unknown_owner}
rm.serve('rm1_key_issue', function(request, keys, names)
  local key, owner, tombstones, keyed = unpack(keys)
  if redis.call('EXISTS', owner) == 0 or redis.call('SISMEMBER', tombstones, request.owner) == 1 then
    return {status = 'unknown_owner'}
  end
  if redis.call('HEXISTS', key, 'current') == 1 then return {status = 'kept'} end
  redis.call('HSET', key, request.version, request.wrapped, 'current', request.version)
  redis.call('SADD', keyed, request.owner)
  drop_expired(names)
  rm.audit(names, rm.tick(names), request.audit)
  return {status = 'issued'}
end)

-- rm1_key_turn: make a new version the current one; the one before stays.
-- KEYS: key, audit, counters. Answer: {status = turned | stale}
rm.serve('rm1_key_turn', function(request, keys, names)
  if redis.call('HGET', keys[1], 'current') ~= request.before then return {status = 'stale'} end
  redis.call('HSET', keys[1], request.version, request.wrapped, 'current', request.version)
  rm.audit(names, rm.tick(names), request.audit)
  return {status = 'turned'}
end)

-- rm1_key_drop: delete a version under which nothing is sealed any more.
-- KEYS: key, audit, counters. Answer: {status = dropped | in_force}
rm.serve('rm1_key_drop', 'allow-oom', function(request, keys, names)
  if redis.call('HGET', keys[1], 'current') == request.version then return {status = 'in_force'} end
  if redis.call('HDEL', keys[1], request.version) == 1 then rm.audit(names, rm.tick(names), request.audit) end
  return {status = 'dropped'}
end)

-- rm1_key_rewrap: replace a wrapped key by the same key under another master key.
-- KEYS: key, audit, counters. Answer: {status = rewrapped | stale}
rm.serve('rm1_key_rewrap', function(request, keys, names)
  if redis.call('HGET', keys[1], request.version) ~= request.before then return {status = 'stale'} end
  redis.call('HSET', keys[1], request.version, request.wrapped)
  rm.audit(names, rm.tick(names), request.audit)
  return {status = 'rewrapped'}
end)

-- rm1_reseal: replace the sealed parts of a memory by the same under the current key, unless it changed since it was
-- opened. Readers see no difference: revision and times stay.
-- KEYS: mem, key, jobs, chores, same (old hash), same (new hash), audit, counters
-- Answer: {status = resealed | stale | key_changed}
rm.serve('rm1_reseal', function(request, keys, names)
  local mem, key, _, _, old_same, new_same = unpack(keys)
  local found = redis.call('HMGET', mem, 'rev', 'sealed', 'expires_at')
  if not found[1] or tonumber(found[1]) ~= request.rev or found[2] ~= request.before then
    return {status = 'stale'}
  end
  if rm.needs_seal(names, request.seal) or rm.is_altered(mem, request.was) then return {status = 'stale'} end
  if rm.key_changed(key, request.key) then return {status = 'key_changed'} end
  local now = rm.tick(names)
  local removed = {}
  rm.add_mac(names, mem, request.fields, {}, request.seal)
  rm.add_vector(names, request.fields, request.vector, removed)
  if #removed > 0 then redis.call('HDEL', mem, unpack(removed)) end
  redis.call('HSET', mem, unpack(request.fields))
  rm.track_content(old_same, request.id)
  rm.track_content(new_same, request.id, found[3])
  rm.enqueue(names, mem, request.id, 0, request.job)
  rm.add_chore(names, request.id, request.pieces, now)
  rm.audit(names, now, request.audit)
  return {status = 'resealed'}
end)
