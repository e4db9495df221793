#!lua name=rm1
-- Library rm1: every write that touches more than one key. Each function checks all of its preconditions
-- before its first write, because Lua is atomic but never rolled back. Arguments and answers are msgpack maps.

local NO_VECTOR = 'none:'
local EVENTS_KEPT = 10000

-- Whether the slot of a key is on its way to another node of a cluster. What is there already is missing here, and a
-- function that found that out after its first write would leave half of what it does.
local function is_leaving(key)
  local tag = string.match(key, '{[^}]*}')
  local probe = tag and redis.pcall('EXISTS', 'rm:' .. tag .. ':mem:')
  return type(probe) == 'table' and string.find(probe.err, 'non local key', 1, true) ~= nil
end

-- Register a function, which refuses, before it does anything, where not all of its namespace is here.
local function serve(name, body)
  redis.register_function(name, function(keys, args)
    if keys[1] and is_leaving(keys[1]) then
      return redis.error_reply('TRYAGAIN the namespace is on its way to another node')
    end
    return body(keys, args)
  end)
end

-- Redis's clock, in whole microseconds.
local function wall_clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- A strictly rising clock per namespace, in whole microseconds, so that creation times order all memories.
local function tick(counters)
  local now = wall_clock()
  local last = tonumber(redis.call('HGET', counters, 'clock') or '0')
  if now <= last then now = last + 1 end
  redis.call('HSET', counters, 'clock', string.format('%.0f', now))
  return now
end

-- Microseconds as epoch seconds with six decimals, the way all times are kept.
local function stamp(microseconds)
  local seconds = math.floor(microseconds / 1000000)
  return string.format('%d.%06d', seconds, microseconds - seconds * 1000000)
end

-- The nonce of the entry written last. `answer` tells it, so that the server knows that its entry stands.
local audited

local function add_some(fields, entry, names)
  for _, name in ipairs(names) do
    if entry[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = entry[name]
    end
  end
end

-- Note what was done under the namespace's next number. The server says and signs who asked for what and from where;
-- where `done` is given, these are the ids that it came to, and those asked for stand beside them.
local function audit(key, counters, at, entry)
  local number = redis.call('HINCRBY', counters, 'audit', 1)
  local asked = table.concat(entry.ids or {}, ' ')
  local done = entry.done and table.concat(entry.done, ' ') or asked
  local fields = {'n', number, 'at', stamp(at), 'who', entry.by or entry.who, 'op', entry.op, 'ids', done,
    'outcome', entry.outcome or 'ok', 'from', entry.from or ''}
  if entry.by then add_some(fields, {as = entry.who}, {'as'}) end
  if done ~= asked then add_some(fields, {asked = asked}, {'asked'}) end
  add_some(fields, entry, {'shown', 'count', 'times', 'nonce', 'key', 'mac'})
  redis.call('XADD', key, '*', unpack(fields))
  audited = entry.nonce
end

-- Tell by the answer that the entry stands since an earlier try of the same call, whose answer was lost.
local function noted_before(entry)
  audited = entry and entry.nonce
end

-- Tell whoever waits for events. `subject` is what it is about and `by` who did it; of `about`, `scope` says by which
-- tokens a memory is read, `to` which agents are addressed, and `extra` is a list of more fields and values.
local function emit(events, kind, op, subject, by, about)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'kind', kind, 'op', op, 'id', subject, 'by', by or '',
    'scope', about.scope or '', 'to', about.to or '', unpack(about.extra or {}))
end

-- Tell that a piece of a memory has its vector now, for whoever waits for something close to it.
local function tell_of_vector(events, hash, id, piece)
  emit(events, 'memory', 'embedded', id, '', {scope = redis.call('HGET', hash, 'scope'),
    extra = {'piece', piece, 'vector', 1}})
end

local function contains(list, value)
  for _, item in ipairs(list) do
    if item == value then return true end
  end
  return false
end

-- Set the hard expiry of a memory and of what hangs on it, a grace after the soft one.
local function expire(keys, microseconds, grace)
  for _, key in ipairs(keys) do
    if microseconds then
      redis.call('PEXPIREAT', key, string.format('%.0f', microseconds / 1000 + grace * 1000))
    else
      redis.call('PERSIST', key)
    end
  end
end

-- A vector is kept only if it has the right length in bytes, is finite and is of unit length.
local function is_unit_vector(bytes, dimension)
  if #bytes ~= dimension * 4 then return false end
  local sum, position = 0, 1
  for _ = 1, dimension do
    local value
    value, position = struct.unpack('<f', bytes, position)
    sum = sum + value * value
  end
  return sum == sum and math.abs(sum - 1) < 1e-2
end

-- A sealed vector cannot be looked at here; the server does when it opens it.
local function is_bad(vector)
  return vector and not vector.sealed and not is_unit_vector(vector.bytes, vector.dimension)
end

-- Whether something was sealed under another version of an owner's data key than the one in force.
local function other_key(hash, version)
  return version and redis.call('HGET', hash, 'current') ~= version
end

-- The models that the namespace of a key keeps vectors of: the one that answers, and the other one while the model is
-- changed or can be changed back. Those `wanted` are asked for at once. As memory_core/models.py.
local function models_of(key)
  local meta = string.match(key, '^rm:{[^}]*}:') .. 'meta'
  local found = redis.call('HMGET', meta, 'model', 'field', 'dimension', 'other_model', 'other_field',
    'other_dimension', 'phase')
  if not found[2] then return {} end
  local models = {{name = found[1], field = found[2], dimension = tonumber(found[3]), wanted = true}}
  if found[4] and found[5] ~= found[2] and found[7] ~= 'dropping' then
    models[2] = {name = found[4], field = found[5], dimension = tonumber(found[6]), wanted = found[7] == 'building'}
  end
  return models
end

local function named(models, name)
  for _, model in ipairs(models) do
    if model.name == name then return model end
  end
end

local function has_vector(hash, model)
  return redis.call('HEXISTS', hash, model.field) == 1 or redis.call('HEXISTS', hash, 'sealed_' .. model.field) == 1
end

-- What the field `model` of a piece is to say, by which the piece is found: of which models it has vectors, and which
-- it waits for. One that is about to be written may be named.
local function state_of(hash, models, written)
  local said = {}
  for position, model in ipairs(models) do
    local there = model.name == written or has_vector(hash, model)
    said[position] = there and model.name or NO_VECTOR .. model.name
  end
  return table.concat(said, '\31')
end

-- Ask for vectors of a piece under the revision and content that its hash has now: those of all models that are wanted
-- and lacking, or those of the named one.
local function enqueue(streams, hash, id, piece, job, name)
  local record = redis.call('HMGET', hash, 'rev', 'hash')
  local asked = 0
  for _, model in ipairs(models_of(hash)) do
    if (name == model.name or not name and model.wanted) and not has_vector(hash, model) then
      local fields = {'v', 1, 'id', id, 'rev', record[1], 'hash', record[2], 'piece', piece,
        'model', model.name, 'seal', job.seal or '', 'body', job.body}
      if job.trace and job.trace ~= '' then
        fields[#fields + 1] = 'trace'
        fields[#fields + 1] = job.trace
      end
      redis.call('XADD', streams .. model.field, '*', unpack(fields))
      asked = asked + 1
    end
  end
  return asked
end

-- Note that the further pieces of a memory are to be written, rewritten or removed; `most` counts all that may exist.
local function note_chore(chores, id, most, microseconds)
  if most > 1 then redis.call('ZADD', chores, stamp(microseconds), id .. ':' .. most) end
end

-- Add what is known of the vectors of a content to the fields that are about to be written in its hash, which loses
-- those of another content. A vector of a model that the namespace has given up is left out.
local function with_vector(hash, fields, vector)
  local models = models_of(hash)
  local model = vector and named(models, vector.model)
  for _, kept in ipairs(models) do
    if kept ~= model then redis.call('HDEL', hash, kept.field, 'sealed_' .. kept.field) end
  end
  fields[#fields + 1] = 'model'
  fields[#fields + 1] = state_of(hash, models, model and model.name)
  if model then
    fields[#fields + 1] = vector.sealed and 'sealed_' .. model.field or model.field
    fields[#fields + 1] = vector.bytes
  end
  return fields
end

-- Whether a piece has the vector by which it is found now.
local function is_ready(hash)
  local model = models_of(hash)[1]
  return model ~= nil and has_vector(hash, model)
end

local function answer(map)
  map.audited, audited = audited, nil
  return cmsgpack.pack(map)
end
