-- Vectors of memories and the jobs that produce them.

local MISSING, FAILED = 'none:', 'failed:'
local DEAD_JOBS_KEPT = 10000

-- A valid vector has the right length in bytes, is finite and has unit length.
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

-- A sealed vector cannot be checked here; the server checks it when it opens it.
function rm.is_invalid(vector)
  return vector and not vector.sealed and not is_unit_vector(vector.bytes, vector.dimension)
end

-- The models that the namespace keeps vectors of: the current one, and the other one while a change of model is under
-- way or can be undone. `wanted` models get their jobs at once. As memory_core/models.py.
function rm.models(names)
  local found = redis.call('HMGET', names.meta, 'model', 'field', 'dimension', 'other_model', 'other_field',
    'other_dimension', 'phase')
  if not found[2] then return {} end
  local models = {{name = found[1], field = found[2], dimension = tonumber(found[3]), wanted = true}}
  if found[4] and found[5] ~= found[2] and found[7] ~= 'dropping' then
    models[2] = {name = found[4], field = found[5], dimension = tonumber(found[6]), wanted = found[7] == 'building'}
  end
  return models
end

local function find_model(models, name)
  for _, model in ipairs(models) do
    if model.name == name then return model end
  end
end

local function has_vector(hash, model)
  return redis.call('HEXISTS', hash, model.field) == 1 or redis.call('HEXISTS', hash, 'sealed_' .. model.field) == 1
end

-- Whether a chunk has the vector of the current model.
function rm.is_embedded(names, hash)
  local model = rm.models(names)[1]
  return model ~= nil and has_vector(hash, model)
end

-- The parts of a chunk's field `model`, as a set.
local function known_state(hash)
  return rm.set(rm.split(redis.call('HGET', hash, 'model')))
end

-- The indexed field `model` of a chunk: of which models it has vectors, and which are missing or failed. `written` names
-- a model whose vector is about to be written. `known` holds the earlier failures; a new content (`hash` nil) has none.
local function vector_state(hash, models, written, known)
  local state = {}
  for position, model in ipairs(models) do
    local failed = FAILED .. model.name
    if model.name == written or hash and has_vector(hash, model) then
      state[position] = model.name
    else
      state[position] = known and known[failed] and failed or MISSING .. model.name
    end
  end
  return table.concat(state, '\31')
end

-- Write again of which models a chunk has vectors, if that changed.
function rm.mark_vectors(hash, models)
  rm.write_changes(hash, {'model', vector_state(hash, models, nil, known_state(hash))})
end

-- Whether the field `model` of a chunk says that one of the models failed to embed it.
function rm.has_failed(state)
  return string.find(state or '', FAILED, 1, true) ~= nil
end

-- Append the vector of a new content, if it is known, to the fields about to be written, and the vectors of the old
-- content to the fields about to be removed. A vector of a model that the namespace no longer uses is left out.
function rm.add_vector(names, fields, vector, removed)
  local models = rm.models(names)
  local model = vector and find_model(models, vector.model)
  for _, kept in ipairs(models) do
    if removed and kept ~= model then rm.append(removed, kept.field, 'sealed_' .. kept.field) end
  end
  rm.append(fields, 'model', vector_state(nil, models, model and model.name))
  if model then rm.append(fields, vector.sealed and 'sealed_' .. model.field or model.field, vector.bytes) end
  return fields
end

-- Add the embed jobs of a chunk under its current revision and content: for all wanted models whose vector is missing,
-- or for the named one. Returns how many.
function rm.enqueue(names, hash, id, chunk, job, name)
  local record = redis.call('HMGET', hash, 'rev', 'hash')
  local added = 0
  for _, model in ipairs(rm.models(names)) do
    if (name == model.name or not name and model.wanted) and not has_vector(hash, model) then
      local fields = {'v', 1, 'id', id, 'rev', record[1], 'hash', record[2], 'piece', chunk,
        'model', model.name, 'seal', job.seal or '', 'body', job.body}
      if job.trace and job.trace ~= '' then rm.append(fields, 'trace', job.trace) end
      redis.call('XADD', names.job_streams .. model.field, '*', unpack(fields))
      added = added + 1
    end
  end
  return added
end

-- Announce that a chunk has its vector, for agents that wait for memories similar to a text.
function rm.emit_embedded(names, hash, id, chunk)
  rm.emit(names, 'memory', 'embedded', id, '', {scope = redis.call('HGET', hash, 'scope'),
    extra = {'piece', chunk, 'vector', 1}})
end

local function verdict(mem, item, model)
  local found = redis.call('HMGET', mem, 'rev', 'hash', 'sealed')
  if not found[1] then return 'gone' end
  if not model or found[1] ~= tostring(item.rev) or found[2] ~= item.hash then return 'stale' end
  if (item.sealed or false) ~= (found[3] ~= false) or rm.is_invalid(item) then return 'bad_vector' end
  return item.dimension == model.dimension and 'ok' or 'bad_vector'
end

-- rm1_commit: write the vectors of memories that have not changed since they were embedded, and acknowledge their jobs.
-- A late plain HSET would bring a deleted memory back without owner or expiry. Vectors of a model that is not the
-- current one yet cause no event, and those of a model no longer used are stale.
-- KEYS: jobs, events, then a mem or chunk key for each item (at most 8, so that Redis never stalls).
-- Answer: {verdicts = [ok | gone | stale | bad_vector, ...]}
rm.serve('rm1_commit', function(request, keys, names)
  local verdicts, entries, models = {}, {}, rm.models(names)
  local model = find_model(models, request.model)
  for position, item in ipairs(request.items) do
    local mem = keys[position + 2]
    verdicts[position] = verdict(mem, item, model)
    if verdicts[position] == 'ok' then
      redis.call('HSET', mem, item.sealed and 'sealed_' .. model.field or model.field, item.bytes,
        'model', vector_state(mem, models, model.name, known_state(mem)))
      if model == models[1] then rm.emit_embedded(names, mem, item.id, item.piece) end
    end
    if verdicts[position] ~= 'bad_vector' then entries[#entries + 1] = item.entry end
  end
  if #entries > 0 then
    redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', #entries, unpack(entries))
  end
  return {verdicts = verdicts}
end)

-- Mark that a chunk's text failed too often, so that recovery leaves it, unless it changed since its job was added.
local function mark_failed(names, hash, request)
  local found, models = redis.call('HMGET', hash, 'rev', 'hash'), rm.models(names)
  if found[1] ~= tostring(request.rev) or found[2] ~= request.hash then return end
  local known = known_state(hash)
  known[FAILED .. request.model] = true
  rm.write_changes(hash, {'model', vector_state(hash, models, nil, known)})
end

-- rm1_bury: move a job that failed too often to the dead jobs. If its text failed, and not only the job, the chunk is
-- named and marked. KEYS: jobs, dead jobs, then at most one mem or chunk key. Answer: {status}
rm.serve('rm1_bury', 'allow-oom', function(request, keys, names)
  if keys[3] then mark_failed(names, keys[3], request) end
  redis.call('XADD', keys[2], 'MAXLEN', '~', DEAD_JOBS_KEPT, '*', 'id', request.id, 'rev', request.rev,
    'error', request.error)
  redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', 1, request.entry)
  return {status = 'ok'}
end)

-- Remove jobs that no sidecar can process, whether they were delivered or not.
local function drop_jobs(names, request)
  local model = #request.lost > 0 and find_model(rm.models(names), request.model)
  if not model then return end
  local jobs = names.job_streams .. model.field
  redis.call('XACKDEL', jobs, request.group, 'ACKED', 'IDS', #request.lost, unpack(request.lost))
  redis.call('XDEL', jobs, unpack(request.lost))
end

-- rm1_requeue: add jobs of one model again for chunks that lack its vector and that still have the revision and content
-- whose text the server read, and remove the `lost` jobs (at most 1,000).
-- KEYS: job streams, then a mem or chunk key for each item. Answer: {queued = number}
rm.serve('rm1_requeue', function(request, keys, names)
  local queued = 0
  drop_jobs(names, request)
  for position, item in ipairs(request.items) do
    local hash = keys[position + 1]
    local found = redis.call('HMGET', hash, 'rev', 'hash')
    if found[1] == tostring(item.rev) and found[2] == item.hash then
      queued = queued + rm.enqueue(names, hash, item.id, item.piece, item.job, request.model)
    end
  end
  return {queued = queued}
end)
