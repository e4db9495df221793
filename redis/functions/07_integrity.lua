-- MACs of memories, which reveal changes made outside the Functions. The server makes those of authorisation records.
-- memory_core/crypto/integrity.py verifies both.

-- The fields that a memory's MAC covers, as SIGNED_FIELDS in memory_core/records/memory.py.
local SIGNED = {'content', 'type', 'priority', 'owner', 'writer', 'visibility', 'scope', 'tags', 'context', 'source',
  'seq', 'occurred_at', 'created_at', 'updated_at', 'expires_at', 'rev', 'metadata', 'pieces', 'hash', 'part', 'codec',
  'terms', 'sealed'}

local function from_hex(hex)
  return (string.gsub(hex, '..', function(digits) return string.char(tonumber(digits, 16)) end))
end

-- HMAC-SHA-1 over the signed fields, each after its length, in hex. The seal holds the inner and the outer pad.
local function mac_of(values, seal)
  local parts = {}
  for position, name in ipairs(SIGNED) do
    local value = values[name]
    parts[position] = value and #value .. ':' .. value or '-'
  end
  return redis.sha1hex(seal.outer .. from_hex(redis.sha1hex(seal.inner .. table.concat(parts))))
end

-- Append to the fields about to be written the MAC of the resulting record. One HSET writes both, because each HSET
-- inserts the vector into the index again.
function rm.add_mac(names, hash, fields, removed, seal)
  if not seal then return fields end
  if redis.call('HGET', names.counters, 'signed') ~= seal.signer then
    redis.call('HSET', names.counters, 'signed', seal.signer)
  end
  local values = rm.read(hash, unpack(SIGNED))
  for _, name in ipairs(removed) do values[name] = nil end
  for position = 1, #fields, 2 do values[fields[position]] = tostring(fields[position + 1]) end
  return rm.append(fields, 'mac', from_hex(mac_of(values, seal)), 'mac_key', seal.signer)
end

-- Whether a record changed since it was read under this seal. Earlier versions stored the MAC in hex.
function rm.is_altered(hash, seal)
  if not seal then return false end
  local found, mac = redis.call('HGET', hash, 'mac'), mac_of(rm.read(hash, unpack(SIGNED)), seal)
  return found ~= mac and found ~= from_hex(mac)
end

-- Whether the namespace signs its records and the request brings no seal.
function rm.needs_seal(names, seal)
  return not seal and redis.call('HEXISTS', names.counters, 'signed') == 1
end

-- rm1_adopt: sign memories that have no MAC, or the MAC of another key (`was`), if they still have the revision read.
-- KEYS: audit, counters, chores, then a mem key for each item (at most 8, so that Redis never stalls).
-- Answer: {adopted = [id, ...]}
rm.serve('rm1_adopt', function(request, keys, names)
  local now, adopted = rm.tick(names), {}
  for position, item in ipairs(request.items) do
    local mem = keys[3 + position]
    local found = redis.call('HMGET', mem, 'rev', 'mac', 'mac_key', 'pieces')
    local unsigned = not found[2] and not found[3]
    if found[1] == tostring(item.rev) and (unsigned or item.was and not rm.is_altered(mem, item.was)) then
      redis.call('HSET', mem, unpack(rm.add_mac(names, mem, {}, {}, item.seal)))
      rm.add_chore(names, item.id, tonumber(found[4] or '1'), now)
      adopted[#adopted + 1] = item.id
    end
  end
  if #adopted > 0 then rm.audit(names, now, request.audit, adopted) end
  return {adopted = adopted}
end)

-- rm1_adopt_authority: replace fields of authorisation records by signed ones, where they are as the server read them.
-- KEYS: audit and counters, or for tokens none, then from the position `first` a key for each item
-- Answer: {adopted}
rm.serve('rm1_adopt_authority', function(request, keys, names)
  local adopted = 0
  for position, item in ipairs(request.items) do
    local key = keys[request.first + position - 1]
    if (redis.call('HGET', key, item.field) or nil) == item.was then
      redis.call('HSET', key, item.field, item.value)
      adopted = adopted + 1
    end
  end
  if request.audit and adopted > 0 then rm.audit(names, rm.tick(names), request.audit) end
  return {adopted = adopted}
end)
