-- The audit: entries of operations that changed nothing, the seals over all entries, and trimming.

local BATCH_SECONDS = 600

-- rm1_audit: write the entries of operations that changed nothing or were refused. A repeated batch is written once.
-- A signed namespace takes no entries without a signature.
-- KEYS: audit, counters, batch. Answer: {status = noted | repeated | key_missing}
rm.serve('rm1_audit', function(request, keys, names)
  if rm.needs_seal(names, request.entries[1] and request.entries[1].mac) then return {status = 'key_missing'} end
  if not redis.call('SET', keys[3], '1', 'NX', 'EX', BATCH_SECONDS) then return {status = 'repeated'} end
  for _, entry in ipairs(request.entries) do rm.audit(names, rm.now(), entry) end
  return {status = 'noted'}
end)

-- rm1_seal: continue the chain of seals, unless another process continued it. A seal has the id of the last entry that
-- it covers. KEYS: seals, counters. Answer: {status = sealed | behind}
rm.serve('rm1_seal', 'allow-oom', function(request, keys, names)
  local last = redis.call('XREVRANGE', keys[1], '+', '-', 'COUNT', 1)[1]
  if (last and last[1] or '') ~= request.previous then return {status = 'behind'} end
  redis.call('XADD', keys[1], request.id, unpack(request.fields))
  redis.call('HSET', names.counters, 'sealed', request.last)
  return {status = 'sealed'}
end)

-- rm1_audit_trim: delete the entries before `keep_from`, and the seals before `base`. `base` covers the last deleted
-- entry; the chain then starts from it. An audit entry records the trim.
-- KEYS: audit, counters, seals. Answer: {status = trimmed | gone}
rm.serve('rm1_audit_trim', 'allow-oom', function(request, keys, names)
  if request.base and #redis.call('XRANGE', keys[3], request.base, request.base) == 0 then
    return {status = 'gone'}
  end
  if #redis.call('XRANGE', keys[1], request.keep_from, request.keep_from) == 0 then return {status = 'gone'} end
  redis.call('XTRIM', keys[1], 'MINID', request.keep_from)
  if request.base then redis.call('XTRIM', keys[3], 'MINID', request.base) end
  rm.audit(names, rm.now(), request.audit)
  return {status = 'trimmed'}
end)
