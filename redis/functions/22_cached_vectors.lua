-- Cached vectors of texts that agents used: a hash for each agent and model, bounded in number and time.

local AGENTS = 200

-- Remove the entries over `most`. HKEYS has them in no order that an agent controls.
local function drop_entries(key, most)
  local excess = redis.call('HLEN', key) - most
  if excess > 0 then redis.call('HDEL', key, unpack(redis.call('HKEYS', key), 1, excess)) end
end

-- rm1_cache_vectors: keep vectors for an agent for `seconds`, its `most` at a time, and those of the agents that added
-- some last. Request: seconds, most, vectors = [name, bytes, ...] (at most 100 pairs).
-- KEYS: the agent's cached vectors. Answer: {status}
rm.serve('rm1_cache_vectors', function(request, keys, names)
  local key, now, fields = keys[1], rm.now(), {}
  for position = 1, #request.vectors, 2 do fields[#fields + 1] = request.vectors[position] end
  redis.call('HSET', key, unpack(request.vectors))
  redis.call('HPEXPIREAT', key, rm.integer(now / 1000 + request.seconds * 1000), 'FIELDS', #fields, unpack(fields))
  drop_entries(key, request.most)
  redis.call('EXPIRE', key, request.seconds)
  redis.call('ZADD', names.caches, rm.seconds(now), key)
  for _, oldest in ipairs(redis.call('ZRANGE', names.caches, 0, -AGENTS - 1)) do
    redis.call('UNLINK', oldest)
    redis.call('ZREM', names.caches, oldest)
  end
  redis.call('EXPIRE', names.caches, request.seconds)
  return {status = 'ok'}
end)
