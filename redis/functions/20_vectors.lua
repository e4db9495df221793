-- What sidecars write.

local function verdict(mem, item, model)
  local found = redis.call('HMGET', mem, 'rev', 'hash', 'sealed')
  if not found[1] then return 'gone' end
  if not model or found[1] ~= tostring(item.rev) or found[2] ~= item.hash then return 'stale' end
  if (item.sealed or false) ~= (found[3] ~= false) or is_bad(item) then return 'bad_vector' end
  return item.dimension == model.dimension and 'ok' or 'bad_vector'
end

-- rm1_commit: write vectors whose memory still is what was embedded, and acknowledge their jobs.
-- A late plain HSET would bring a deleted memory back without owner or expiry. Nobody is told of vectors by which
-- nothing is found yet, and those of a model that was given up are stale.
-- KEYS: jobs, events, then a mem key for each item (at most 8, so that Redis never stalls).
-- Answer: {verdicts = [ok | gone | stale | bad_vector, ...]}
local function commit(keys, args)
  local request = cmsgpack.unpack(args[1])
  local verdicts, entries, models = {}, {}, models_of(keys[1])
  local model = named(models, request.model)
  for position, item in ipairs(request.items) do
    local mem = keys[position + 2]
    verdicts[position] = verdict(mem, item, model)
    if verdicts[position] == 'ok' then
      redis.call('HSET', mem, item.sealed and 'sealed_' .. model.field or model.field, item.bytes,
        'model', state_of(mem, models, model.name))
      if model == models[1] then tell_of_vector(keys[2], mem, item.id, item.piece) end
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

-- rm1_requeue: ask again for the vectors of one model, for pieces that have none.
-- KEYS: job streams, then a mem or chunk key for each item. Answer: {queued = number}
local function requeue(keys, args)
  local request = cmsgpack.unpack(args[1])
  local queued = 0
  for position, item in ipairs(request.items) do
    local hash = keys[position + 1]
    if redis.call('EXISTS', hash) == 1 then
      queued = queued + enqueue(keys[1], hash, item.id, item.piece, item.job, request.model)
    end
  end
  return answer({queued = queued})
end

serve('rm1_commit', commit)
serve('rm1_bury', bury)
serve('rm1_requeue', requeue)
