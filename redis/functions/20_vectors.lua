-- What sidecars write.

local function verdict(mem, item)
  local found = redis.call('HMGET', mem, 'rev', 'hash', 'sealed')
  if not found[1] then return 'gone' end
  if found[1] ~= tostring(item.rev) or found[2] ~= item.hash then return 'stale' end
  if (item.sealed and item.field == 'sealed_vector') ~= (found[3] ~= false) or is_bad(item) then return 'bad_vector' end
  return 'ok'
end

-- rm1_commit: write vectors whose memory still is what was embedded, and acknowledge their jobs.
-- A late plain HSET would bring a deleted memory back without owner or expiry.
-- KEYS: jobs, events, then a mem key for each item (at most 8, so that Redis never stalls).
-- Answer: {verdicts = [ok | gone | stale | bad_vector, ...]}
local function commit(keys, args)
  local request = cmsgpack.unpack(args[1])
  local verdicts, entries = {}, {}
  for position, item in ipairs(request.items) do
    local mem = keys[position + 2]
    verdicts[position] = verdict(mem, item)
    if verdicts[position] == 'ok' then
      redis.call('HSET', mem, item.field, item.bytes, 'model', request.model)
      tell_of_vector(keys[2], mem, item.id, item.piece)
    end
    if verdicts[position] ~= 'bad_vector' then entries[#entries + 1] = item.entry end
  end
  if #entries > 0 then
    redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', #entries, unpack(entries))
  end
  return answer({verdicts = verdicts})
end

-- rm1_bury: set a job aside that failed too often. KEYS: jobs, dead jobs. Answer: {status}
local function bury(keys, args)
  local request = cmsgpack.unpack(args[1])
  redis.call('XADD', keys[2], 'MAXLEN', '~', 10000, '*', 'id', request.id, 'rev', request.rev,
    'error', request.error)
  redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', 1, request.entry)
  return answer({status = 'ok'})
end

-- rm1_requeue: ask again for the vectors of pieces that have none.
-- KEYS: jobs, then a mem or chunk key for each item. Answer: {queued = number}
local function requeue(keys, args)
  local request = cmsgpack.unpack(args[1])
  local queued = 0
  for position, item in ipairs(request.items) do
    local hash = keys[position + 1]
    if redis.call('HGET', hash, 'model') == NO_MODEL then
      enqueue(keys[1], hash, item.id, item.piece, item.job)
      queued = queued + 1
    end
  end
  return answer({queued = queued})
end

redis.register_function('rm1_commit', commit)
redis.register_function('rm1_bury', bury)
redis.register_function('rm1_requeue', requeue)
