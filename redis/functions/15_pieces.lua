-- The further pieces of long memories. They follow their memory in slices, because changing all at once would stall
-- Redis; until they have followed, what is read of them is checked against the memory.

-- Bring one piece up to date. Where its content is right already, only the fields that filter it are written.
local function settle_piece(hash, id, item, request, jobs, events)
  local fields = request.fields
  local known = redis.call('HGET', hash, 'hash') == request.hash
  local all = {unpack(fields)}
  for _, part in ipairs(item.code) do all[#all + 1] = part end
  if not known then
    redis.call('DEL', hash)
    for _, part in ipairs(item.fields) do all[#all + 1] = part end
    for _, part in ipairs({'hash', request.hash, 'rev', 1, 'part', 'more'}) do all[#all + 1] = part end
    with_vector(hash, all, item.vector)
  elseif #request.remove > 0 then
    redis.call('HDEL', hash, unpack(request.remove))
  end
  redis.call('HSET', hash, unpack(all))
  if known then return end
  if is_ready(hash) then tell_of_vector(events, hash, id, item.piece) end
  enqueue(jobs, hash, id, item.piece, item.job)
end

-- rm1_pieces: bring a slice of pieces up to date with their memory (at most 8, so that Redis never stalls).
-- KEYS: mem, jobs, events, then a chunk key for each item.
-- Answer: {status = settled | gone | stale | key_missing | bad_vector}
local function pieces(keys, args)
  local request = cmsgpack.unpack(args[1])
  local found = redis.call('HMGET', keys[1], 'hash', 'rev', 'expires_at', 'updated_at', 'mac')
  if not found[1] then return answer({status = 'gone'}) end
  if found[1] ~= request.hash or found[2] ~= tostring(request.rev) then return answer({status = 'stale'}) end
  if found[5] and not request.signed then return answer({status = 'key_missing'}) end
  for _, item in ipairs(request.items) do
    if is_bad(item.vector) then return answer({status = 'bad_vector'}) end
  end
  for _, part in ipairs({'expires_at', found[3], 'updated_at', found[4]}) do
    request.fields[#request.fields + 1] = part
  end
  local left = redis.call('PTTL', keys[1])
  for position, item in ipairs(request.items) do
    local hash = keys[3 + position]
    settle_piece(hash, request.id, item, request, keys[2], keys[3])
    if left > 0 then redis.call('PEXPIRE', hash, left) else redis.call('PERSIST', hash) end
  end
  return answer({status = 'settled'})
end

-- rm1_settled: remove a slice of pieces that no longer belong to the memory as it was read and, with `done`, the
-- chore. `hash` and `rev` are absent where the memory was gone.
-- KEYS: chores, mem, then chunk keys. Answer: {status = settled | stale}
local function settled(keys, args)
  local request = cmsgpack.unpack(args[1])
  local found = redis.call('HMGET', keys[2], 'hash', 'rev')
  if (found[1] or nil) ~= request.hash or (tonumber(found[2] or '') or nil) ~= request.rev then
    return answer({status = 'stale'})
  end
  for position = 3, #keys do redis.call('UNLINK', keys[position]) end
  if request.done then redis.call('ZREM', keys[1], request.chore) end
  return answer({status = 'settled'})
end

serve('rm1_pieces', pieces)
serve('rm1_settled', settled)
