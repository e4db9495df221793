-- Changing the model of a namespace. Its `meta` names the current model and the version of its index, and the same for
-- the other model during a change, as memory_core/records/model.py reads it.

-- Whether the other model is the requested one in the requested format.
local function is_other(found, request)
  return found.other_model == request.model and found.other_field == request.field
end

-- The part of a vector field that names the model, whatever the format.
local function key_of(field)
  return (string.gsub(field, '^vec16_', 'vec_'))
end

-- Keep vectors of another model or format too, or rebuild the index, under the next version.
local function begin(names, request, found)
  if found.other_model then
    local same = is_other(found, request) and found.other_dimension == tostring(request.dimension)
      and found.phase ~= 'dropping'
    if same then redis.call('HSET', names.meta, 'phase', 'building') end
    return same and 'begun' or 'busy'
  end
  if found.model ~= request.model and key_of(found.field) == key_of(request.field) then return 'same_field' end
  redis.call('HSET', names.meta, 'other_model', request.model, 'other_field', request.field, 'other_dimension',
    request.dimension, 'other_version', redis.call('HINCRBY', names.meta, 'versions', 1) + 1, 'phase', 'building')
  return 'begun'
end

-- Make the other model the current one. The alias and what servers read change in the same moment.
local function switch(names, request, found, now)
  if not is_other(found, request) or found.phase ~= 'building' then return 'stale' end
  local moved = redis.pcall('FT.ALIASUPDATE', request.alias, request.index .. found.other_version)
  if type(moved) == 'table' and moved.err then return 'no_index' end
  redis.call('HSET', names.meta, 'model', found.other_model, 'field', found.other_field,
    'dimension', found.other_dimension, 'version', found.other_version,
    'other_model', found.model, 'other_field', found.field, 'other_dimension', found.dimension,
    'other_version', found.version or 1, 'phase', 'switched', 'switched_at', rm.seconds(now))
  redis.call('HINCRBY', names.meta, 'switches', 1)
  return 'switched'
end

-- Keep no more vectors of the other model. `forget` ends the change after the server removed those that exist.
local function drop(names, request, found, now)
  if not is_other(found, request) then return 'stale' end
  local since = found.phase == 'switched' and now - tonumber(found.switched_at) * 1000000
  if since and since < request.grace * 1000000 then return 'early' end
  redis.call('HSET', names.meta, 'phase', 'dropping')
  return 'dropping'
end

local function forget(names, request, found)
  if not is_other(found, request) or found.phase ~= 'dropping' then return 'stale' end
  redis.call('HDEL', names.meta, 'other_model', 'other_field', 'other_dimension', 'other_version', 'phase')
  return 'forgotten'
end

local STEPS = {begin = begin, switch = switch, drop = drop, forget = forget}
local AUDITED = {begun = true, switched = true, dropping = true}

-- rm1_change_model: one step of a change. KEYS: meta, audit, counters.
-- Answer: {status = begun | busy | same_field | switched | no_index | dropping | early | forgotten | stale}
rm.serve('rm1_change_model', 'allow-oom', function(request, _, names)
  local found = rm.read(names.meta, 'model', 'field', 'dimension', 'version', 'other_model', 'other_field',
    'other_dimension', 'other_version', 'phase', 'switched_at')
  local now = rm.tick(names)
  local status = STEPS[request.step](names, request, found, now)
  if AUDITED[status] then rm.audit(names, now, request.audit) end
  return {status = status}
end)

-- rm1_mark_vectors: write again of which models chunks have vectors, and remove those in a field no longer used (at
-- most 4, so that Redis never stalls). Sealed vectors stay if the model is still used in the other format.
-- KEYS: mem or chunk keys. Answer: {status}
rm.serve('rm1_mark_vectors', 'allow-oom', function(request, keys, names)
  local models, removed = rm.models(names), {}
  if request.remove then
    removed = {[request.remove] = true, ['sealed_' .. key_of(request.remove)] = true}
    for _, model in ipairs(models) do removed[model.field], removed[model.sealed] = nil, nil end
  end
  for _, hash in ipairs(keys) do
    if redis.call('EXISTS', hash) == 1 then
      for field in pairs(removed) do redis.call('HDEL', hash, field) end
      rm.mark_vectors(hash, models)
    end
  end
  return {status = 'ok'}
end)

-- rm1_convert_vectors: add the vectors in one format of a model from those in the other format, where these are valid
-- (at most 4, so that Redis never stalls). KEYS: mem or chunk keys. Answer: {status}
rm.serve('rm1_convert_vectors', function(request, keys, names)
  local models = rm.models(names)
  for _, hash in ipairs(keys) do
    if redis.call('EXISTS', hash) == 1 then
      local fields, written = rm.converted(hash, models, request.model)
      rm.mark_vectors(hash, models, written, fields)
    end
  end
  return {status = 'ok'}
end)

-- rm1_task_vectors: add vectors to the texts of open tasks. KEYS: a taskvec key for each item. Answer: {status}
rm.serve('rm1_task_vectors', function(request, keys)
  for position, bytes in ipairs(request.vectors) do
    if redis.call('EXISTS', keys[position]) == 1 then redis.call('HSET', keys[position], request.field, bytes) end
  end
  return {status = 'ok'}
end)

-- rm1_agent_vector: add a vector to an agent's profile, if its description is still the same. KEYS: agent.
-- Answer: {status}
rm.serve('rm1_agent_vector', function(request, keys)
  local found = redis.call('HMGET', keys[1], 'registered_at', 'description', 'capabilities')
  if found[1] and (found[2] or '') == request.description and (found[3] or '') == request.capabilities then
    redis.call('HSET', keys[1], 'profile', request.profile)
  end
  return {status = 'ok'}
end)
