-- Quarantine: hides what an agent wrote since a given time from everyone but the agent. It is one write.

-- rm1_quarantine: quarantine an agent, change since when, or release it (no `mark`). The server signs the mark.
-- KEYS: audit, counters, quarantined. Answer: {status = quarantined | lifted | not_quarantined | too_many}
rm.serve('rm1_quarantine', 'allow-oom', function(request, keys, names)
  local quarantined = keys[3]
  local known = redis.call('HEXISTS', quarantined, request.agent) == 1
  if not request.mark and not known then return {status = 'not_quarantined'} end
  if request.mark and not known and redis.call('HLEN', quarantined) >= request.most then
    return {status = 'too_many'}
  end
  if request.mark then
    redis.call('HSET', quarantined, request.agent, request.mark)
  else
    redis.call('HDEL', quarantined, request.agent)
  end
  rm.audit(names, rm.tick(names), request.audit)
  return {status = request.mark and 'quarantined' or 'lifted'}
end)
