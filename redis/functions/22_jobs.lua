-- Jobs that have become pointless.

-- rm1_drop_jobs: acknowledge the jobs of memories that are gone or have changed: what rm1_commit does with them, for a
-- full Redis, which refuses vectors. KEYS: jobs, then a mem or chunk key for each item. Answer: {dropped = [bool, ...]}
rm.serve('rm1_drop_jobs', 'allow-oom', function(request, keys)
  local dropped = {}
  for position, item in ipairs(request.items) do
    local found = redis.call('HMGET', keys[position + 1], 'rev', 'hash')
    dropped[position] = found[1] ~= tostring(item.rev) or found[2] ~= item.hash
    if dropped[position] then redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', 1, item.entry) end
  end
  return {dropped = dropped}
end)
