-- Dropping of old events. The server decides which, so that no agent's events push out another's.

-- rm1_drop_events: drop some events by their stream ids, and write in their place which agents may miss them.
-- They are dropped first: the sidecar's user may not, and so adds nothing by this above `maxmemory`.
-- KEYS: events. Answer: {dropped}
rm.serve('rm1_drop_events', 'allow-oom', function(request, keys, names)
  local dropped = redis.call('XDEL', keys[1], unpack(request.drop))
  for _, lost in ipairs(request.lost) do
    rm.emit(names, 'lost', 'dropped', lost.id, '', {scope = lost.scope, to = lost.to})
  end
  return {dropped = dropped}
end)
