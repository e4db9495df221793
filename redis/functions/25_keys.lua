-- The data keys of sensitive memories, each wrapped under a master key that Redis never sees. The hash `key:<owner>`
-- maps versions to wrapped keys; `current` names the one in force. More than one are there while a rotation goes on.

-- rm1_key_issue: give an owner a data key, unless it has one.
-- KEYS: key, owner, tombstones, keyed, audit, counters. Answer: {status = issued | kept | unknown_owner}
local function issue(keys, args)
  local key, owner, tombstones, keyed, log, counters = unpack(keys)
  local request = cmsgpack.unpack(args[1])
  if redis.call('EXISTS', owner) == 0 or redis.call('SISMEMBER', tombstones, request.owner) == 1 then
    return answer({status = 'unknown_owner'})
  end
  if redis.call('HEXISTS', key, 'current') == 1 then return answer({status = 'kept'}) end
  redis.call('HSET', key, request.version, request.wrapped, 'current', request.version)
  redis.call('SADD', keyed, request.owner)
  audit(log, counters, tick(counters), request.audit)
  return answer({status = 'issued'})
end

-- rm1_key_turn: put a new version in force beside the one that was.
-- KEYS: key, audit, counters. Answer: {status = turned | stale}
local function turn(keys, args)
  local request = cmsgpack.unpack(args[1])
  if redis.call('HGET', keys[1], 'current') ~= request.before then return answer({status = 'stale'}) end
  redis.call('HSET', keys[1], request.version, request.wrapped, 'current', request.version)
  audit(keys[2], keys[3], tick(keys[3]), request.audit)
  return answer({status = 'turned'})
end

-- rm1_key_drop: forget a version that nothing is sealed under any more.
-- KEYS: key, audit, counters. Answer: {status = dropped | in_force}
local function drop(keys, args)
  local request = cmsgpack.unpack(args[1])
  if redis.call('HGET', keys[1], 'current') == request.version then return answer({status = 'in_force'}) end
  if redis.call('HDEL', keys[1], request.version) == 1 then
    audit(keys[2], keys[3], tick(keys[3]), request.audit)
  end
  return answer({status = 'dropped'})
end

-- rm1_key_rewrap: replace a wrapped key by the same key under another master key.
-- KEYS: key, audit, counters. Answer: {status = rewrapped | stale}
local function rewrap(keys, args)
  local request = cmsgpack.unpack(args[1])
  if redis.call('HGET', keys[1], request.version) ~= request.before then return answer({status = 'stale'}) end
  redis.call('HSET', keys[1], request.version, request.wrapped)
  audit(keys[2], keys[3], tick(keys[3]), request.audit)
  return answer({status = 'rewrapped'})
end

-- rm1_reseal: replace what of a memory is sealed by the same under the key in force, if it still is what was opened.
-- Nobody sees a difference: neither its revision nor its times change.
-- KEYS: mem, key, jobs, chores, same (old hash), same (new hash), audit, counters
-- Answer: {status = resealed | stale | key_changed}
local function reseal(keys, args)
  local mem, key, jobs, chores, old_same, new_same, log, counters = unpack(keys)
  local request = cmsgpack.unpack(args[1])
  local found = redis.call('HMGET', mem, 'rev', 'sealed', 'expires_at')
  if not found[1] or tonumber(found[1]) ~= request.rev or found[2] ~= request.before then
    return answer({status = 'stale'})
  end
  if needs_seal(counters, request.seal) or is_altered(mem, request.was) then return answer({status = 'stale'}) end
  if other_key(key, request.key) then return answer({status = 'key_changed'}) end
  local now = tick(counters)
  with_code(counters, mem, request.fields, {}, request.seal)
  redis.call('HSET', mem, unpack(with_vector(mem, request.fields, request.vector)))
  note_same(old_same, request.id)
  note_same(new_same, request.id, found[3])
  enqueue(jobs, mem, request.id, 0, request.job)
  note_chore(chores, request.id, request.pieces, now)
  audit(log, counters, now, request.audit)
  return answer({status = 'resealed'})
end

serve('rm1_key_issue', issue)
serve('rm1_key_turn', turn)
serve('rm1_key_drop', drop)
serve('rm1_key_rewrap', rewrap)
serve('rm1_reseal', reseal)
