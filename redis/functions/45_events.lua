-- Dropping of old events. The server decides which, so that no agent's events push out another's.

-- rm1_drop_events: drop some events by their stream ids, and write in their place which agents may miss them.
-- KEYS: events. Answer: {dropped}
rm.serve('rm1_drop_events', 'allow-oom', function(request, keys, names)
  for _, lost in ipairs(request.lost) do
    rm.emit(names, 'lost', 'dropped', lost.id, '', {scope = lost.scope, to = lost.to})
  end
  return {dropped = redis.call('XDEL', keys[1], unpack(request.drop))}
end)
