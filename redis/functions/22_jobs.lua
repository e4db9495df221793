-- Jobs that no vector can end.

-- rm1_drop_jobs: acknowledge the jobs of memories that are gone or have changed, as rm1_commit does. For a full Redis,
-- which refuses vectors. KEYS: jobs, then a mem or chunk key for each item. Answer: {dropped}
rm.serve('rm1_drop_jobs', 'allow-oom', function(request, keys)
  local entries = {}
  for position, item in ipairs(request.items) do
    local found = redis.call('HMGET', keys[position + 1], 'rev', 'hash')
    if found[1] ~= tostring(item.rev) or found[2] ~= item.hash then entries[#entries + 1] = item.entry end
  end
  if #entries > 0 then
    redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', #entries, unpack(entries))
  end
  return {dropped = #entries}
end)
