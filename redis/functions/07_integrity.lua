-- Codes by which a record that was changed past the Functions is seen; memory_core/integrity.py says how and checks them.

-- The fields that a memory's code covers, as SIGNED_FIELDS in memory_core/records.py.
local SIGNED = {'content', 'type', 'priority', 'owner', 'writer', 'visibility', 'scope', 'tags', 'context', 'source',
  'seq', 'occurred_at', 'created_at', 'updated_at', 'expires_at', 'rev', 'metadata', 'pieces', 'hash', 'part', 'codec',
  'terms', 'sealed'}

local function raw(hex)
  return (string.gsub(hex, '..', function(digits) return string.char(tonumber(digits, 16)) end))
end

-- HMAC-SHA-1 over the signed fields, each with its length, by the two pads that a seal holds.
local function code_of(values, seal)
  local parts = {}
  for position, name in ipairs(SIGNED) do
    local value = values[name]
    parts[position] = value and #value .. ':' .. value or '-'
  end
  return redis.sha1hex(seal.outer .. raw(redis.sha1hex(seal.inner .. table.concat(parts))))
end

local function signed_values(hash)
  local values, known = {}, redis.call('HMGET', hash, unpack(SIGNED))
  for position, name in ipairs(SIGNED) do values[name] = known[position] or nil end
  return values
end

-- Add to the fields about to be written the code of the record that they leave in the hash. One HSET writes both, for
-- each inserts the vector anew.
local function with_code(counters, hash, fields, removed, seal)
  if not seal then return fields end
  redis.call('HSETNX', counters, 'signed', 1)
  local values = signed_values(hash)
  for _, name in ipairs(removed) do values[name] = nil end
  for position = 1, #fields, 2 do values[fields[position]] = tostring(fields[position + 1]) end
  for _, part in ipairs({'mac', code_of(values, seal), 'mac_key', seal.signer}) do fields[#fields + 1] = part end
  return fields
end

-- Whether a record, by the seal under which it was read, is not what it was then.
local function is_altered(hash, seal)
  if not seal then return false end
  return redis.call('HGET', hash, 'mac') ~= code_of(signed_values(hash), seal)
end

-- Whether a record must not be written without a code.
local function needs_seal(counters, seal)
  return not seal and redis.call('HEXISTS', counters, 'signed') == 1
end

-- rm1_adopt: sign those of some memories that have no code, or that of another key (`was`), and still are at the
-- revision that was read.
-- KEYS: audit, counters, chores, then a mem key for each item (at most 8, so that Redis never stalls).
-- Answer: {adopted = [id, ...]}
local function adopt(keys, args)
  local request, adopted = cmsgpack.unpack(args[1]), {}
  local now = tick(keys[2])
  for position, item in ipairs(request.items) do
    local mem = keys[3 + position]
    local found = redis.call('HMGET', mem, 'rev', 'mac', 'mac_key', 'pieces')
    local unsigned = not found[2] and not found[3]
    if found[1] == tostring(item.rev) and (unsigned or item.was and not is_altered(mem, item.was)) then
      redis.call('HSET', mem, unpack(with_code(keys[2], mem, {}, {}, item.seal)))
      note_chore(keys[3], item.id, tonumber(found[4] or '1'), now)
      adopted[#adopted + 1] = item.id
    end
  end
  if #adopted > 0 then
    request.audit.done = adopted
    audit(keys[1], keys[2], now, request.audit)
  end
  return answer({adopted = adopted})
end

serve('rm1_adopt', adopt)
