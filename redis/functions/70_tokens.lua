-- Bearer tokens. A token's hash is found by its id alone, before its namespace is known, and so has a slot of its own;
-- the namespace keeps a list of its tokens and the audit of what became of them.

-- KEYS: token. Request: fields, expires_at.
local function token_issue(keys, args)
  local request = cmsgpack.unpack(args[1])
  if redis.call('EXISTS', keys[1]) == 1 then return answer({issued = false}) end
  redis.call('HSET', keys[1], unpack(request.fields))
  redis.call('PEXPIREAT', keys[1], string.format('%.0f', request.expires_at * 1000))
  return answer({issued = true})
end

-- KEYS: token. Request: namespace. An expired token does not come back by being revoked.
local function token_revoke(keys, args)
  local request = cmsgpack.unpack(args[1])
  if redis.call('HGET', keys[1], 'namespace') ~= request.namespace then return answer({revoked = false}) end
  redis.call('HSET', keys[1], 'revoked', '1')
  return answer({revoked = true})
end

-- KEYS: audit, counters, the namespace's tokens. Request: id, expires_at, audit.
local function token_note(keys, args)
  local request = cmsgpack.unpack(args[1])
  local now = tick(keys[2])
  redis.call('ZREMRANGEBYSCORE', keys[3], '-inf', '(' .. stamp(now))
  if request.expires_at then redis.call('ZADD', keys[3], stamp(request.expires_at * 1000000), request.id) end
  audit(keys[1], keys[2], now, request.audit)
  return answer({})
end

serve('rm1_token_issue', token_issue)
serve('rm1_token_revoke', token_revoke)
serve('rm1_token_note', token_note)
