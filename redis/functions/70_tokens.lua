-- Bearer tokens. A token's hash is read by its id alone, before its namespace is known, so it has its own slot. The
-- namespace keeps a list of its tokens, and their audit.

-- rm1_token_issue. KEYS: token. Request: fields, expires_at. Answer: {issued}
rm.serve('rm1_token_issue', function(request, keys)
  if redis.call('EXISTS', keys[1]) == 1 then return {issued = false} end
  redis.call('HSET', keys[1], unpack(request.fields))
  redis.call('PEXPIREAT', keys[1], rm.integer(request.expires_at * 1000))
  return {issued = true}
end)

-- rm1_token_revoke: without its hash and MAC the token cannot be revived. An expired token does not come back by it.
-- KEYS: token. Request: namespace. Answer: {revoked}
rm.serve('rm1_token_revoke', 'allow-oom', function(request, keys)
  if redis.call('HGET', keys[1], 'namespace') ~= request.namespace then return {revoked = false} end
  redis.call('HSET', keys[1], 'revoked', '1')
  redis.call('HDEL', keys[1], 'hash', 'mac')
  return {revoked = true}
end)

-- rm1_token_note: list and audit a token. The brief form audits a revocation.
-- KEYS: audit, counters, tokens. Request: id, expires_at, audit. Answer: {}
rm.serve('rm1_token_note', 'brief', function(request, keys, names)
  local now = rm.tick(names)
  redis.call('ZREMRANGEBYSCORE', keys[3], '-inf', '(' .. rm.seconds(now))
  if request.expires_at then redis.call('ZADD', keys[3], rm.seconds(request.expires_at * 1000000), request.id) end
  rm.audit(names, now, request.audit)
  return {}
end)
