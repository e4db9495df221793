-- The trail of what was done: entries of what changed nothing, the seals over all entries, and what goes with age.

local BATCH_SECONDS = 600

-- rm1_audit: note operations that changed nothing, or were refused, in one call. The same batch again is noted once.
-- KEYS: audit, counters, batch. Answer: {status = noted | repeated}
local function audit_many(keys, args)
  local request = cmsgpack.unpack(args[1])
  if not redis.call('SET', keys[3], '1', 'NX', 'EX', BATCH_SECONDS) then return answer({status = 'repeated'}) end
  for _, entry in ipairs(request.entries) do audit(keys[1], keys[2], wall_clock(), entry) end
  return answer({status = 'noted'})
end

-- rm1_seal: continue the chain of seals, if the last one still is the one that was continued. A seal stands under the
-- id of the last entry that it covers. KEYS: seals, counters. Answer: {status = sealed | behind}
local function seal(keys, args)
  local request = cmsgpack.unpack(args[1])
  local last = redis.call('XREVRANGE', keys[1], '+', '-', 'COUNT', 1)[1]
  if (last and last[1] or '') ~= request.previous then return answer({status = 'behind'}) end
  redis.call('XADD', keys[1], request.id, unpack(request.fields))
  redis.call('HSET', keys[2], 'sealed', request.last)
  return answer({status = 'sealed'})
end

-- rm1_audit_trim: drop the entries before one, and the seals before the one that covers the last of those dropped,
-- which the chain then starts from; with an entry that says so.
-- KEYS: audit, counters, seals. Answer: {status = trimmed | gone}
local function trim(keys, args)
  local request = cmsgpack.unpack(args[1])
  if request.base and #redis.call('XRANGE', keys[3], request.base, request.base) == 0 then
    return answer({status = 'gone'})
  end
  if #redis.call('XRANGE', keys[1], request.keep_from, request.keep_from) == 0 then return answer({status = 'gone'}) end
  redis.call('XTRIM', keys[1], 'MINID', request.keep_from)
  if request.base then redis.call('XTRIM', keys[3], 'MINID', request.base) end
  audit(keys[1], keys[2], wall_clock(), request.audit)
  return answer({status = 'trimmed'})
end

serve('rm1_audit', audit_many)
serve('rm1_seal', seal)
serve('rm1_audit_trim', trim)
