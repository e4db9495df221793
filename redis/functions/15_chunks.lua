-- The further chunks of long memories. They follow their memory in slices, because changing all at once would stall
-- Redis. Until then, readers check them against the memory.

-- Bring one chunk up to date. If its content is current, only the fields that filter it are written, and a text that
-- failed gets another job.
local function settle_chunk(names, hash, item, request)
  local found = redis.call('HMGET', hash, 'hash', 'model')
  local known = found[1] == request.hash
  local fields = rm.append({unpack(request.fields)}, unpack(item.code))
  if not known then
    redis.call('DEL', hash)
    rm.append(fields, unpack(item.fields))
    rm.append(fields, 'hash', request.hash, 'rev', 1, 'part', 'more')
    rm.add_vector(names, fields, item.vector)
  elseif #request.remove > 0 then
    redis.call('HDEL', hash, unpack(request.remove))
  end
  rm.write_changes(hash, fields)
  if known and not rm.has_failed(found[2]) then return end
  if rm.is_embedded(names, hash) then rm.emit_embedded(names, hash, request.id, item.piece) end
  rm.enqueue(names, hash, request.id, item.piece, item.job)
end

-- rm1_pieces: bring a slice of chunks up to date with their memory (at most 8, so that Redis never stalls).
-- KEYS: mem, jobs, events, then a chunk key for each item.
-- Answer: {status = settled | gone | stale | key_missing | bad_vector}
rm.serve('rm1_pieces', function(request, keys, names)
  local found = redis.call('HMGET', keys[1], 'hash', 'rev', 'expires_at', 'updated_at', 'mac')
  if not found[1] then return {status = 'gone'} end
  if found[1] ~= request.hash or found[2] ~= tostring(request.rev) then return {status = 'stale'} end
  if found[5] and not request.signed then return {status = 'key_missing'} end
  for _, item in ipairs(request.items) do
    if rm.is_invalid(item.vector) then return {status = 'bad_vector'} end
  end
  rm.append(request.fields, 'expires_at', found[3], 'updated_at', found[4])
  local left = redis.call('PTTL', keys[1])
  for position, item in ipairs(request.items) do
    local hash = keys[3 + position]
    settle_chunk(names, hash, item, request)
    if left > 0 then redis.call('PEXPIRE', hash, left) else redis.call('PERSIST', hash) end
  end
  return {status = 'settled'}
end)

-- rm1_settled: remove a slice of chunks that no longer belong to the memory as it was read and, with `done`, the chore.
-- `hash` and `rev` are absent if the memory was gone.
-- KEYS: chores, mem, then chunk keys. Answer: {status = settled | stale}
rm.serve('rm1_settled', 'allow-oom', function(request, keys)
  local found = redis.call('HMGET', keys[2], 'hash', 'rev')
  if (found[1] or nil) ~= request.hash or (tonumber(found[2] or '') or nil) ~= request.rev then
    return {status = 'stale'}
  end
  for position = 3, #keys do redis.call('UNLINK', keys[position]) end
  if request.done then redis.call('ZREM', keys[1], request.chore) end
  return {status = 'settled'}
end)
