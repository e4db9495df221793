-- Quarantine: hides what an agent wrote since a given time from everyone but the agent. It is one write.

-- rm1_quarantine: quarantine an agent, change since when, or release it (no `since`).
-- KEYS: audit, counters, quarantined. Answer: {status = quarantined | lifted | not_quarantined | too_many}
rm.serve('rm1_quarantine', function(request, keys, names)
  local quarantined = keys[3]
  local known = redis.call('HEXISTS', quarantined, request.agent) == 1
  if not request.since and not known then return {status = 'not_quarantined'} end
  if request.since and not known and redis.call('HLEN', quarantined) >= request.most then
    return {status = 'too_many'}
  end
  if request.since then
    redis.call('HSET', quarantined, request.agent, request.since)
  else
    redis.call('HDEL', quarantined, request.agent)
  end
  rm.audit(names, rm.tick(names), request.audit)
  return {status = request.since and 'quarantined' or 'lifted'}
end)
