-- Damage: a key of another type, an entry without its record, a value that cannot be read. It stops no Function: what is
-- damaged is removed, and the Function goes on. The answer and the stream `damaged` say what was removed.

local KEPT, KEPT_SECONDS, ANSWERED, SHOWN = 1000, 30 * 86400, 100, 200
local REMOVE = {'ZREM', 'SREM', 'HDEL', 'XDEL'}
-- Errors of commands whose arguments were read from damaged records. All other errors of commands end the Function.
local OF_DAMAGE = {'WRONGTYPE', 'not an integer', 'not a float', 'valid float', 'Invalid stream ID',
  'arguments must be strings'}

local removed = {}

-- What this call removed; nil for nothing.
function rm.take_removed()
  local found = #removed > 0 and removed or nil
  removed = {}
  return found
end

-- The beginning of a text in ASCII: an answer with other bytes cannot be unpacked.
local function shown(text)
  return (string.gsub(string.sub(text, 1, SHOWN), '[^\32-\126]', function(byte)
    return string.format('\\x%02x', string.byte(byte))
  end))
end

-- Remove an entry of a key of any type: the commands of other types change nothing.
local function remove_entry(key, entry)
  for _, command in ipairs(REMOVE) do
    if type(redis.pcall(command, key, entry)) == 'number' then return end
  end
  redis.pcall('LREM', key, 0, entry)
end

-- Remove a damaged entry of a key, or without `entry` the key, and report it. The stream names what is in a namespace.
function rm.discard(key, entry, why)
  if entry then remove_entry(key, entry) else redis.call('UNLINK', key) end
  local found = {shown(key), shown(entry or ''), shown(why)}
  if #removed < ANSWERED then removed[#removed + 1] = found end
  local names = rm.names_of(key)
  if not names then return end
  redis.call('XADD', names.damaged, 'MAXLEN', '~', KEPT, '*', 'key', found[1], 'entry', found[2],
    'why', found[3])
  if #removed == 1 then redis.call('EXPIRE', names.damaged, KEPT_SECONDS) end
end

local function is_damage(err)
  for _, text in ipairs(OF_DAMAGE) do
    if string.find(err, text, 1, true) then return true end
  end
  return false
end

-- Remove what a command failed at, so that it finds nothing there; false if that is not why it failed.
local function repair(err, command, key, field)
  if type(key) ~= 'string' or string.sub(key, 1, 3) ~= 'rm:' then return false end
  local names = rm.names_of(key)
  -- A backup may restore a data key. Without it, sensitive memories are lost.
  if names and string.sub(key, 1, #names.data_key) == names.data_key then return false end
  if string.find(err, 'WRONGTYPE', 1, true) == 1 then
    rm.discard(key, nil, 'the key is of another type')
    return true
  end
  if command == 'HINCRBY' and string.find(err, 'not an integer', 1, true) then
    rm.discard(key, field, 'not a number')
    return true
  end
  return false
end

-- All Functions run their commands by this.
function redis.call(...)
  local answer = redis.pcall(...)
  if type(answer) ~= 'table' or not answer.err then return answer end
  if not repair(answer.err, ...) then error(answer) end
  return redis.call(...)
end

-- Handle an entry of a walk. If `handle` fails because of what it read, the entry is removed, so that the walk goes on.
-- Returns what `handle` returns.
function rm.attempt(key, entry, handle, ...)
  local ok, found = pcall(handle, ...)
  if ok then return found end
  if type(found) == 'table' and not is_damage(found.err) then error(found) end
  rm.discard(key, entry, type(found) == 'table' and found.err or found)
end

-- A number in a hash, 0 if there is none. One that cannot be read is removed.
function rm.number(key, field)
  local found = tonumber(redis.call('HGET', key, field) or '0')
  if found and found > -math.huge and found < math.huge then return found end
  rm.discard(key, field, 'not a number')
  return 0
end

-- Unpack a value; nil if it is no msgpack map.
function rm.unpack(packed)
  local ok, found = pcall(cmsgpack.unpack, packed or '')
  return ok and type(found) == 'table' and found or nil
end

-- rm1_discard: remove entries of a key that a server could not read. KEYS: the key. Request: entries, why.
-- Answer: {status}
rm.serve('rm1_discard', 'allow-oom', function(request, keys)
  for _, entry in ipairs(request.entries) do rm.discard(keys[1], entry, request.why) end
  return {status = 'ok'}
end)
