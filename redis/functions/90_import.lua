-- Importing memories, owner ids and grants from another store. A Function changes nothing that is there already, so an
-- interrupted import can be run again from the beginning.

local FIXED, EACH = 6, 5

-- What becomes of one memory: `new`, or why it is not imported.
local function import_status(item, own, tombstones, now)
  local found = redis.call('HMGET', own.mem, 'owner', 'rev', 'hash')
  if found[1] then
    if not rm.contains(item.owners, found[1]) then return 'taken' end
    return (found[2] == tostring(item.rev) and found[3] == item.hash) and 'kept' or 'differs'
  end
  local owner = rm.read(own.owner, 'agent', 'file')
  if owner.agent ~= item.agent or (item.mark and owner.file ~= item.mark) or
    redis.call('SISMEMBER', tombstones, item.owner) == 1 then
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

-- The sequence number in the owner's context: the imported one, with later ones continuing above it, or the next.
local function sequence_number(own, item, expires_at, grace)
  local last = rm.number(own.seq, item.context)
  local step = item.seq and rm.integer(math.max(item.seq - last, 0)) or 1
  local number = rm.raise_number(own.seq, item.context, step, expires_at, grace)
  return rm.integer(item.seq or number)
end

local function write_memory(names, own, item, grace)
  local now, rev = rm.tick(names), rm.integer(item.rev)
  if redis.call('PERSIST', own.owner) == 1 then  -- of a name that its agent left
    redis.call('PERSIST', own.key)
    redis.call('PERSIST', names.agent .. item.agent)
  end
  local order = sequence_number(own, item, rm.expiry(item, now), grace)
  rm.insert_memory(names, own.mem, own.same, item, order, rev, grace, now)
  rm.emit_written(names, 'stored', item.id, item.writer, own.mem)
end

-- rm1_import: write memories that are not here yet, with one audit entry. Missing times and sequence numbers are set.
-- With a `mark`, of a file that no key signed, one goes only to an owner id that came with that file.
-- KEYS: audit, counters, jobs, chores, events, tombstones, then mem, owner, seq, same and key of each
-- Answer: {status = imported | key_missing | key_changed | bad_vector, id,
--          fates = [new | kept | differs | taken | unknown_owner | expired, ...]}
rm.serve('rm1_import', function(request, keys, names)
  local now, fates, done = rm.now(), {}, {}
  for position, item in ipairs(request.items) do
    local own = keys_of(keys, position)
    fates[position] = import_status(item, own, names.tombstones, now)
    if fates[position] == 'new' then
      local problem = rm.write_problem(names, own.mem, own.key, item)
      if problem then return {status = problem, id = item.id} end
      done[#done + 1] = item.id
    end
  end
  for position, item in ipairs(request.items) do
    if fates[position] == 'new' then write_memory(names, keys_of(keys, position), item, request.grace) end
  end
  if #done > 0 then rm.audit(names, rm.tick(names), request.audit, done) end
  return {status = 'imported', fates = fates}
end)

-- Whether a file that no key signed names an agent or an owner id that did not come with this very file.
local function is_known(request, keys, names, present)
  if not request.marks then return false end
  for _, owner in ipairs(rm.append({unpack(request.owners)}, unpack(rm.append({unpack(request.kept)}, unpack(present))))) do
    local found = rm.read(names.owner .. owner, 'agent', 'file')
    if found.agent and (found.agent ~= request.agent or found.file ~= request.marks[owner]) then return true end
  end
  return #present == 0 and redis.call('EXISTS', keys[1]) == 1
end

-- Those of the owner ids that are not here yet.
local function missing_owners(names, name, owners, present)
  local missing, known = {}, rm.set(present)
  for _, owner in ipairs(owners) do
    local holder = redis.call('HGET', names.owner .. owner, 'agent')
    local deleted = redis.call('SISMEMBER', names.tombstones, owner) == 1
    if (not holder or holder == name) and not deleted and not known[owner] then
      missing[#missing + 1] = owner
    end
  end
  return missing
end

-- rm1_import_agent: give a name its owner ids from elsewhere, except those that another agent has or that are deleted.
-- With `marks`, of a file that no key signed, each owner id is marked as one of that file. The server signs the marks.
-- KEYS: agent, audit, counters, tombstones, then owner:<id> for each
-- Answer: {status = imported | kept | other_agents | changed}
rm.serve('rm1_import_agent', function(request, keys, names)
  local found, name = redis.call('HMGET', keys[1], 'owner', 'owners', 'kept'), request.agent
  local owners = rm.split(found[2])
  local present = rm.append(rm.split(found[3]), unpack(owners))
  if is_known(request, keys, names, present) then return {status = 'other_agents'} end
  local added = missing_owners(names, name, request.owners, present)
  local kept = missing_owners(names, name, request.kept, rm.append(present, unpack(added)))
  if #added + #kept == 0 then return {status = 'kept'} end
  if rm.is_outdated(names, name, request.proofs) then return {status = 'changed'} end
  local first = not found[1] and #owners == 0 and rm.contains(added, request.owner or '')
  rm.add_owners(names, name, added, request.proofs and request.proofs.codes, request.marks)
  if #kept > 0 then rm.keep_owners(names, name, kept, request.proofs and request.proofs.kept, request.marks) end
  if first then redis.call('HSET', keys[1], 'owner', request.owner) end
  rm.keep_name(names, request.agent)
  rm.audit(names, rm.tick(names), request.audit, rm.append(added, unpack(kept)))
  return {status = 'imported'}
end)

-- Whether a grant that this one is based on is not active here.
local function lacks_parent(names, request, now)
  local owner = redis.call('HGET', names.agent .. request.from, 'owner')
  for parent in pairs(request.via) do
    if not rm.active_entry(names.granted .. request.from, parent, owner, now) then return true end
  end
  return false
end

local function import_problem(names, request, entry, now)
  local from_owner = redis.call('HGET', names.agent .. request.from, 'owner')
  local to_owner = redis.call('HGET', names.agent .. request.to, 'owner')
  if from_owner ~= request.from_owner or to_owner ~= request.to_owner then return 'other_agents' end
  if entry.ends <= now then return 'expired' end
  if lacks_parent(names, request, now) then return 'no_parent' end
  if #entry.own == 0 and not next(entry.via) then return 'no_memories' end
  return rm.limit_problem(rm.load_entries(names.granted .. request.to, to_owner, now), request.id, entry)
    or rm.passing_problem(names, request.id, request.from, entry.via)
end

local function microseconds(seconds)
  return seconds == 'inf' and math.huge or tonumber(rm.integer(tonumber(seconds) * 1000000))
end

-- Those of the tokens of a file that the grantor could give here and now: `own`, and `via` by parent.
local function derive_tokens(names, request, now)
  local owner, owners = unpack(redis.call('HMGET', names.agent .. request.from, 'owner', 'owners'))
  local parents = rm.parents_among(rm.load_entries(names.granted .. request.from, owner, now))
  local own, via, mine = {}, {}, rm.split(owners)
  for _, value in ipairs(request.values) do
    local found, passed = rm.select_tokens(names, {kind = request.kind, values = {value}}, mine, parents)
    for _, token in ipairs(found or {}) do
      if rm.contains(request.own, token) then own[#own + 1] = token end
    end
    for parent, part in pairs(found and passed or {}) do
      local named = request.via[parent]
      for _, token in ipairs(named and part.tokens or {}) do
        if rm.contains(named.tokens, token) then
          local ends = math.min(microseconds(named.ends), part.ends, microseconds(request.ends))
          via[parent] = via[parent] or {tokens = {}, at = math.min(microseconds(named.since), now), ends = ends}
          table.insert(via[parent].tokens, token)
        end
      end
    end
  end
  return own, via
end

-- rm1_import_grant: a grant between agents that have the same owner ids here as elsewhere. Its tokens are derived again.
-- KEYS: audit, counters
-- Answer: {status = imported | kept | other_agents | expired | no_parent | no_memories | too_many_grants |
--          too_many_tokens | too_many_of_pair | passed_on_too_often | changed}
rm.serve('rm1_import_grant', function(request, _, names)
  local now, id = rm.now(), request.id
  if redis.call('EXISTS', names.grant .. id) == 1 then return {status = 'kept'} end
  local entry = {owner = request.to_owner, by = request.from, by_owner = request.from_owner,
    ends = microseconds(request.ends), permission = request.permission, selector = request.selector,
    at = math.min(microseconds(request.since), now)}
  entry.own, entry.via = derive_tokens(names, request, now)
  local problem = import_problem(names, request, entry, now)
  if problem then return {status = problem} end
  if not rm.is_proven(entry, id, request.proof) then return {status = 'changed'} end
  rm.prove(entry, request.proof)
  rm.write_grant(names, id, request, entry, math.min(microseconds(request.at), now))
  rm.audit(names, rm.tick(names), request.audit)
  rm.emit_grant(names, 'granted', id, request.from)
  return {status = 'imported'}
end)
