-- What comes from elsewhere: memories with ids of their own, and who may see them. Each Function changes nothing where
-- the same is there already, so an import that was stopped is run again from its beginning.

do
  local FIXED, EACH = 6, 5

  -- What is to become of one memory: new, or why not.
  local function fate(item, own, tombstones, now)
    local found = redis.call('HMGET', own.mem, 'owner', 'rev', 'hash')
    if found[1] then
      if not contains(item.owners, found[1]) then return 'taken' end
      return (found[2] == tostring(item.rev) and found[3] == item.hash) and 'kept' or 'differs'
    end
    if redis.call('EXISTS', own.owner) == 0 or redis.call('SISMEMBER', tombstones, item.owner) == 1 then
      return 'unknown_owner'
    end
    if item.expires_at and item.expires_at ~= 'inf' and tonumber(item.expires_at) * 1000000 <= now then
      return 'expired'
    end
    return 'new'
  end

  local function keys_of(keys, position)
    local mem, owner, seq, same, key = unpack(keys, FIXED + 1 + EACH * (position - 1), FIXED + EACH * position)
    return {mem = mem, owner = owner, seq = seq, same = same, key = key}
  end

  -- Its place among its owner's memories of a context: the one that it had, below which no later one falls, or the next.
  local function place(own, item)
    if not item.seq then return redis.call('HINCRBY', own.seq, item.context, 1) end
    if item.seq > tonumber(redis.call('HGET', own.seq, item.context) or '0') then
      redis.call('HSET', own.seq, item.context, string.format('%.0f', item.seq))
    end
    return string.format('%.0f', item.seq)
  end

  local function lifetime(item, now)
    if item.expires_at == 'inf' then return 'inf' end
    if item.expires_at then return item.expires_at, tonumber(item.expires_at) * 1000000 end
    if not item.ttl then return 'inf' end
    return stamp(now + item.ttl * 1000000), now + item.ttl * 1000000
  end

  local function write(own, item, shared, request)
    local now = tick(shared.counters)
    local created_at = item.created_at or stamp(now)
    local expires_at, expires = lifetime(item, now)
    local fields = item.fields
    for _, part in ipairs({'created_at', created_at, 'updated_at', item.updated_at or created_at, 'expires_at',
      expires_at, 'seq', place(own, item), 'rev', string.format('%.0f', item.rev)}) do
      fields[#fields + 1] = part
    end
    with_code(shared.counters, own.mem, fields, {}, item.seal)
    redis.call('HSET', own.mem, unpack(with_vector(own.mem, fields, item.vector)))
    note_same(own.same, item.id, expires_at)
    expire({own.mem}, expires, request.grace)
    enqueue(shared.jobs, own.mem, item.id, 0, item.job)
    note_chore(shared.chores, item.id, item.pieces, now)
    tell_of_memory(shared.events, 'stored', item.id, item.writer, redis.call('HGET', own.mem, 'scope'), is_ready(own.mem))
  end

  -- rm1_import: memories that are not here yet, in one audit entry. Those given without times and place get Redis's.
  -- KEYS: audit, counters, jobs, chores, events, tombstones, then mem, owner, seq, same and key of each
  -- Answer: {status = imported | key_missing | key_changed | bad_vector, id,
  --          fates = [new | kept | differs | taken | unknown_owner | expired, ...]}
  local function import(keys, args)
    local request, fates, done = cmsgpack.unpack(args[1]), {}, {}
    local log, counters, jobs, chores, events, tombstones = unpack(keys, 1, FIXED)
    local now = wall_clock()
    for position, item in ipairs(request.items) do
      local own = keys_of(keys, position)
      fates[position] = fate(item, own, tombstones, now)
      if fates[position] == 'new' then
        if needs_seal(counters, item.seal) then return answer({status = 'key_missing'}) end
        if other_key(own.key, item.key) then return answer({status = 'key_changed', id = item.id}) end
        if is_bad(item.vector) then return answer({status = 'bad_vector', id = item.id}) end
        done[#done + 1] = item.id
      end
    end
    local shared = {counters = counters, jobs = jobs, chores = chores, events = events}
    for position, item in ipairs(request.items) do
      if fates[position] == 'new' then write(keys_of(keys, position), item, shared, request) end
    end
    if #done > 0 then
      request.audit.done = done
      audit(log, counters, tick(counters), request.audit)
    end
    return answer({status = 'imported', fates = fates})
  end

  -- rm1_import_agent: give a name the owner ids that it has elsewhere, but for those that are another's or deleted here.
  -- KEYS: agent, audit, counters, tombstones, then owner:<id> for each. Answer: {status = imported | kept}
  local function import_agent(keys, args)
    local request = cmsgpack.unpack(args[1])
    local found = redis.call('HMGET', keys[1], 'owner', 'owners')
    local owners, added = split(found[2]), {}
    for position, owner in ipairs(request.owners) do
      local held, deleted = redis.call('HGET', keys[4 + position], 'agent'), redis.call('SISMEMBER', keys[4], owner)
      local its_own = not held or held == request.agent
      if its_own and deleted == 0 and not contains(owners, owner) then added[owner] = keys[4 + position] end
    end
    if not next(added) then return answer({status = 'kept'}) end
    local first, done = not found[1] and #owners == 0 and added[request.owner or ''], {}
    for _, owner in ipairs(request.owners) do
      if added[owner] then
        owners[#owners + 1] = owner
        done[#done + 1] = owner
        redis.call('HSET', added[owner], 'agent', request.agent)
      end
    end
    redis.call('HSET', keys[1], 'owners', table.concat(owners, '\31'))
    if first then redis.call('HSET', keys[1], 'owner', request.owner) end
    request.audit.done = done
    audit(keys[2], keys[3], tick(keys[3]), request.audit)
    return answer({status = 'imported'})
  end

  -- What a grant hangs on must be in force here.
  local function lacks_parent(prefix, request, now)
    for parent in pairs(request.via) do
      local packed = redis.call('HGET', prefix .. 'granted:' .. request.from, parent)
      if not in_force(packed, redis.call('HGET', prefix .. 'agent:' .. request.from, 'owner'), now) then return true end
    end
    return false
  end

  local function refusal(prefix, request, ends, entry, now)
    local from_owner = redis.call('HGET', prefix .. 'agent:' .. request.from, 'owner')
    local to_owner = redis.call('HGET', prefix .. 'agent:' .. request.to, 'owner')
    if from_owner ~= request.from_owner or to_owner ~= request.to_owner then return 'other_agents' end
    if ends <= now then return 'expired' end
    if lacks_parent(prefix, request, now) then return 'no_parent' end
    return within_caps(entries_of(prefix .. 'granted:' .. request.to, to_owner, now), request.id, entry)
  end

  local function micros(seconds)
    return seconds == 'inf' and math.huge or tonumber(string.format('%.0f', tonumber(seconds) * 1000000))
  end

  -- rm1_import_grant: a grant between agents that have the same owner ids here as elsewhere.
  -- KEYS: audit, counters. Answer: {status = imported | kept | other_agents | expired | no_parent | too_many_grants |
  --   too_many_tokens}
  local function import_grant(keys, args)
    local request, now = cmsgpack.unpack(args[1]), wall_clock()
    local prefix, id, ends = request.prefix, request.id, micros(request.ends)
    if redis.call('EXISTS', prefix .. 'grant:' .. id) == 1 then return answer({status = 'kept'}) end
    local entry = {owner = request.to_owner, by = request.from, by_owner = request.from_owner, ends = ends,
      permission = request.permission, selector = request.selector, at = micros(request.since), own = request.own,
      via = {}}
    for parent, part in pairs(request.via) do
      entry.via[parent] = {tokens = part.tokens, at = micros(part.since), ends = micros(part.ends)}
    end
    local refused = refusal(prefix, request, ends, entry, now)
    if refused then return answer({status = refused}) end
    for parent, part in pairs(entry.via) do
      redis.call('SADD', prefix .. 'children:' .. parent, id)
      for _, token in ipairs(part.tokens) do
        if request.kind == 'i' then redis.call('SADD', prefix .. 'reshared:' .. string.sub(token, 3), id) end
      end
    end
    redis.call('HSET', prefix .. 'granted:' .. request.to, id, cmsgpack.pack(entry))
    write_record(prefix, id, 'active', request, entry, micros(request.at))
    audit(keys[1], keys[2], tick(keys[2]), request.audit)
    tell_both(prefix, 'granted', id, request.from, request.from, request.to)
    return answer({status = 'imported'})
  end

  serve('rm1_import', import)
  serve('rm1_import_agent', import_agent)
  serve('rm1_import_grant', import_grant)
end
