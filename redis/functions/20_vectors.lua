-- Vectors of memories and the jobs that produce them.

local MISSING, FAILED = 'none:', 'failed:'
local DEAD_JOBS_KEPT, ID_BYTES, ERROR_BYTES = 10000, 64, 1024

-- A sealed vector cannot be checked here; the server checks it when it opens it.
function rm.is_invalid(vector)
  return vector and not vector.sealed and not rm.is_unit_vector(vector.bytes, vector.dimension)
end

-- One model and the format of its vectors: half precision in fields `vec16_…`, float32 in fields `vec_…`. `label` stands
-- for both in the indexed field `model`, `key` for the model in the names of streams.
local function describe(name, field, dimension, wanted)
  local half = string.sub(field, 1, 6) == 'vec16_'
  local key = half and 'vec_' .. string.sub(field, 7) or field
  return {name = name, field = field, dimension = tonumber(dimension), wanted = wanted, half = half, key = key,
    sealed = 'sealed_' .. key, label = half and field or name}
end

-- The models that the namespace keeps vectors of: the current one, and the other one while a change of model is under
-- way or can be undone. `wanted` models get their jobs at once. While a change of format is under way or can be undone,
-- both have the same name. As memory_core/records/model.py.
function rm.models(names)
  local found = redis.call('HMGET', names.meta, 'model', 'field', 'dimension', 'other_model', 'other_field',
    'other_dimension', 'phase')
  if not found[2] then return {} end
  local models = {describe(found[1], found[2], found[3], true)}
  if found[4] and found[5] ~= found[2] and found[7] ~= 'dropping' then
    models[2] = describe(found[4], found[5], found[6], found[7] == 'building')
  end
  return models
end

local function find_model(models, name)
  for _, model in ipairs(models) do
    if model.name == name then return model end
  end
end

local function has_vector(hash, model)
  return redis.call('HEXISTS', hash, model.field) == 1 or redis.call('HEXISTS', hash, model.sealed) == 1
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

-- The indexed field `model` of a chunk: of which models it has vectors, and which are missing or failed. `written` has
-- the labels of the vectors that are about to be written. `known` holds the earlier failures; a new content (`hash` nil)
-- has none.
local function vector_state(hash, models, written, known)
  local state = {}
  for position, model in ipairs(models) do
    local failed = FAILED .. model.label
    if written and written[model.label] or hash and has_vector(hash, model) then
      state[position] = model.label
    else
      state[position] = known and known[failed] and failed or MISSING .. model.label
    end
  end
  return table.concat(state, '\31')
end

-- The fields that a vector is written to, in every format that is kept of its model, and the set of these fields and of
-- their labels. A sealed vector stays as it is: its format can be seen only inside.
local function vector_fields(models, vector)
  local fields, written = {}, {}
  for _, model in ipairs(models) do
    if vector and model.name == vector.model then
      local field = vector.sealed and model.sealed or model.field
      if not written[field] then
        rm.append(fields, field, vector.sealed and vector.bytes
          or rm.to_format(vector.bytes, model.dimension, model.half))
      end
      written[field], written[model.label] = true, true
    end
  end
  return fields, written
end

-- The fields of a chunk's vector in every format, from a stored valid one, and the set as of `vector_fields`.
function rm.converted(hash, models, name)
  for _, model in ipairs(models) do
    local bytes = model.name == name and redis.call('HGET', hash, model.field)
    if bytes and rm.is_unit_vector(bytes, model.dimension) then
      return vector_fields(models, {model = name, bytes = bytes})
    end
  end
  return {}, {}
end

-- Write again of which models a chunk has vectors and, with them, vectors that `written` has the labels of.
function rm.mark_vectors(hash, models, written, vectors)
  local state = vector_state(hash, models, written, known_state(hash))
  rm.write_changes(hash, rm.append({'model', state}, unpack(vectors or {})))
end

-- Whether the field `model` of a chunk says that one of the models failed to embed it.
function rm.has_failed(state)
  return string.find(state or '', FAILED, 1, true) ~= nil
end

-- Append the vector of a new content, if it is known, to the fields about to be written, and the vectors of the old
-- content to the fields about to be removed. A vector of a model that the namespace no longer uses is left out.
function rm.add_vector(names, fields, vector, removed)
  local models = rm.models(names)
  local vectors, written = vector_fields(models, vector)
  for _, kept in ipairs(models) do
    for _, field in ipairs({kept.field, kept.sealed}) do
      if removed and not written[field] then rm.append(removed, field) end
    end
  end
  rm.append(fields, 'model', vector_state(nil, models, written))
  return rm.append(fields, unpack(vectors))
end

-- Whether all formats that are kept of a model are half precision, so that its sidecar can send that.
local function takes_halves(models, name)
  for _, model in ipairs(models) do
    if model.name == name and not model.half then return false end
  end
  return true
end

-- Add the embed jobs of a chunk under its current revision and content: for all wanted models whose vector is missing,
-- or for the named one. One job serves both formats of a model. Returns how many.
function rm.enqueue(names, hash, id, chunk, job, name)
  local record, models = redis.call('HMGET', hash, 'rev', 'hash'), rm.models(names)
  local added, asked = 0, {}
  for _, model in ipairs(models) do
    local chosen = name == model.name or not name and model.wanted
    if chosen and not asked[model.name] and not has_vector(hash, model) then
      local fields = {'v', 1, 'id', id, 'rev', record[1], 'hash', record[2], 'piece', chunk,
        'model', model.name, 'seal', job.seal or '', 'body', job.body}
      if takes_halves(models, model.name) then rm.append(fields, 'half', 1) end
      if job.trace and job.trace ~= '' then rm.append(fields, 'trace', job.trace) end
      redis.call('XADD', names.job_streams .. model.key, '*', unpack(fields))
      added, asked[model.name] = added + 1, true
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
      item.model = request.model
      local fields, written = vector_fields(models, item)
      redis.call('HSET', mem, 'model', vector_state(mem, models, written, known_state(mem)), unpack(fields))
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
  for _, model in ipairs(models) do
    if model.name == request.model then known[FAILED .. model.label] = true end
  end
  rm.write_changes(hash, {'model', vector_state(hash, models, nil, known)})
end

-- rm1_bury: move a job that failed too often to the dead jobs. If its text failed, and not only the job, the chunk is
-- named and marked. A job that is gone adds nothing, so that nobody grows Redis by this above `maxmemory`.
-- KEYS: jobs, dead jobs, then at most one mem or chunk key. Answer: {status}
rm.serve('rm1_bury', 'allow-oom', function(request, keys, names)
  if keys[3] then mark_failed(names, keys[3], request) end
  if redis.call('XACKDEL', keys[1], request.group, 'ACKED', 'IDS', 1, request.entry)[1] ~= -1 then
    redis.call('XADD', keys[2], 'MAXLEN', '~', DEAD_JOBS_KEPT, '*', 'id', string.sub(request.id, 1, ID_BYTES), 'rev',
      request.rev, 'error', string.sub(request.error, 1, ERROR_BYTES))
  end
  return {status = 'ok'}
end)

-- Remove jobs that no sidecar can process, whether they were delivered or not.
local function drop_jobs(names, request)
  local model = #request.lost > 0 and find_model(rm.models(names), request.model)
  if not model then return end
  local jobs = names.job_streams .. model.key
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
