-- Write permission by grants. `granted:<name>` holds an entry for each grant to that agent:
-- {owner, by, by_owner, permission, selector, at, ends, own = [token], via = {parent = {tokens, at, ends}}}.
-- An entry is active while `owner` is the agent's owner id, and until `ends` (microseconds, or inf). `own` lists tokens
-- of the grantor's own memories, `via` those of others that the grantor passes on under a grant that it holds. `proof`
-- is what the server signed of the entry, the most that it may give, and `code` the signature; without a key there are
-- none. A Function only narrows an entry: it cannot sign.

function rm.intersects(tokens, set)
  for _, token in ipairs(tokens) do
    if set[token] then return true end
  end
  return false
end

-- Add to an entry what the server signed of it.
function rm.prove(entry, proof)
  if proof then entry.proof, entry.code = proof.body, proof.code end
end

-- Whether the server signed all that an entry gives. Without a key it signs nothing.
function rm.is_proven(entry, id, proof)
  if not proof then return true end
  local signed = cjson.decode(proof.body)
  local allowed = rm.set(signed.tokens)
  local lists = {entry.own}
  for _, part in pairs(entry.via) do lists[#lists + 1] = part.tokens end
  for _, tokens in ipairs(lists) do
    for _, token in ipairs(tokens) do
      if not allowed[token] then return false end
    end
  end
  return signed.id == id and signed.permission == entry.permission and signed.by_owner == entry.by_owner
    and signed.owner == entry.owner and (signed.ends < 0 or entry.ends <= signed.ends)
end

local function is_part(part)
  return type(part) == 'table' and type(part.tokens) == 'table' and type(part.ends) == 'number'
end

local function is_entry(entry)
  if not entry or type(entry.own) ~= 'table' or type(entry.via) ~= 'table' or type(entry.ends) ~= 'number' then
    return false
  end
  for _, part in pairs(entry.via) do
    if not is_part(part) then return false end
  end
  return true
end

-- An entry of `granted` or `offers`; nil if there is none. One that cannot be read is removed: it gives nothing.
function rm.load_entry(key, id)
  local packed = redis.call('HGET', key, id)
  local entry = packed and rm.unpack(packed)
  if is_entry(entry) then return entry end
  if packed then rm.discard(key, id, 'unreadable') end
end

-- The parts of an entry that are active now; nil if none are.
function rm.active_entry(key, id, owner, now)
  local entry = rm.load_entry(key, id)
  if not entry or entry.owner ~= owner then return nil end
  if entry.ends <= now then entry.own = {} end
  for parent, part in pairs(entry.via) do
    if part.ends <= now then entry.via[parent] = nil end
  end
  if #entry.own == 0 and not next(entry.via) then return nil end
  return entry
end

-- The named grants that let an agent write to a memory with this scope. Each is a list: the grant, and the one that it
-- is passed on under, if any.
function rm.writing_grants(granted, agent, ids, scope)
  local owner, now, carried = redis.call('HGET', agent, 'owner'), rm.now(), rm.set(rm.split(scope))
  local found = {}
  for _, id in ipairs(ids) do
    local entry = rm.active_entry(granted, id, owner, now)
    if entry and entry.permission == 'write' then
      if rm.intersects(entry.own, carried) then found[#found + 1] = {id} end
      for parent, part in pairs(entry.via) do
        if rm.intersects(part.tokens, carried) then found[#found + 1] = {id, parent} end
      end
    end
  end
  return found
end

-- The first of these lists of grants whose holders may let memories grow by so many chunks; `most` 0 is any number.
function rm.grants_with_room(names, lists, growth, most)
  for _, grants in ipairs(lists) do
    local full = false
    for _, id in ipairs(growth > 0 and most > 0 and grants or {}) do
      full = full or rm.number(names.grant .. id, 'grown') + growth > most
    end
    if not full then return grants end
  end
end

-- Count the chunks by which the holder of grants changed the size of a memory.
function rm.count_growth(names, grants, growth)
  for _, id in ipairs(growth ~= 0 and grants or {}) do
    local grown = redis.call('HINCRBY', names.grant .. id, 'grown', growth)
    if grown < 0 then redis.call('HDEL', names.grant .. id, 'grown') end
  end
end
