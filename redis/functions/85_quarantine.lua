-- Quarantine: nobody but the agent itself is shown what it wrote since a time. One write, whatever it wrote.

-- rm1_quarantine: put an agent under quarantine, change since when, or lift it (no `since`).
-- KEYS: audit, counters, quarantined. Answer: {status = quarantined | lifted | not_quarantined | too_many}
local function quarantine(keys, args)
  local request = cmsgpack.unpack(args[1])
  local known = redis.call('HEXISTS', keys[3], request.agent) == 1
  if not request.since and not known then return answer({status = 'not_quarantined'}) end
  if request.since and not known and redis.call('HLEN', keys[3]) >= request.most then
    return answer({status = 'too_many'})
  end
  if request.since then
    redis.call('HSET', keys[3], request.agent, request.since)
  else
    redis.call('HDEL', keys[3], request.agent)
  end
  audit(keys[1], keys[2], tick(keys[2]), request.audit)
  return answer({status = request.since and 'quarantined' or 'lifted'})
end

serve('rm1_quarantine', quarantine)
