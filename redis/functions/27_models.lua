-- Changing the model of a namespace. Its `meta` says which model answers and by which version of the index, and the
-- same of the other one, as memory_core/models.py reads it.

do
  -- Keep vectors of another model too, or have the index made anew, under the next version.
  local function begin(keys, request, found)
    if found.other_model then
      local same = found.other_model == request.model and found.other_dimension == tostring(request.dimension)
        and found.phase ~= 'dropping'
      if same then redis.call('HSET', keys[1], 'phase', 'building') end
      return same and 'begun' or 'busy'
    end
    if found.field == request.field and found.model ~= request.model then return 'same_field' end
    redis.call('HSET', keys[1], 'other_model', request.model, 'other_field', request.field, 'other_dimension',
      request.dimension, 'other_version', redis.call('HINCRBY', keys[1], 'versions', 1) + 1, 'phase', 'building')
    return 'begun'
  end

  -- Let the other one answer. The alias and what servers read change in the same moment.
  local function switch(keys, request, found, now)
    if found.other_model ~= request.model or found.phase ~= 'building' then return 'stale' end
    local moved = redis.pcall('FT.ALIASUPDATE', request.alias, request.index .. found.other_version)
    if type(moved) == 'table' and moved.err then return 'no_index' end
    redis.call('HSET', keys[1], 'model', found.other_model, 'field', found.other_field,
      'dimension', found.other_dimension, 'version', found.other_version,
      'other_model', found.model, 'other_field', found.field, 'other_dimension', found.dimension,
      'other_version', found.version or 1, 'phase', 'switched', 'switched_at', stamp(now))
    redis.call('HINCRBY', keys[1], 'switches', 1)
    return 'switched'
  end

  -- Keep no more vectors of the other one. What is left of it is removed afterwards, and `forget` ends that.
  local function drop(keys, request, found, now)
    if found.other_model ~= request.model then return 'stale' end
    local since = found.phase == 'switched' and now - tonumber(found.switched_at) * 1000000
    if since and since < request.grace * 1000000 then return 'early' end
    redis.call('HSET', keys[1], 'phase', 'dropping')
    return 'dropping'
  end

  local function forget(keys, request, found)
    if found.other_model ~= request.model or found.phase ~= 'dropping' then return 'stale' end
    redis.call('HDEL', keys[1], 'other_model', 'other_field', 'other_dimension', 'other_version', 'phase')
    return 'forgotten'
  end

  local STEPS = {begin = begin, switch = switch, drop = drop, forget = forget}
  local FIELDS = {'model', 'field', 'dimension', 'version', 'other_model', 'other_field', 'other_dimension',
    'other_version', 'phase', 'switched_at'}

  -- rm1_change_model: one step of a change. KEYS: meta, audit, counters.
  -- Answer: {status = begun | busy | same_field | switched | no_index | dropping | early | forgotten | stale}
  local function change_model(keys, args)
    local request, found = cmsgpack.unpack(args[1]), {}
    for position, value in ipairs(redis.call('HMGET', keys[1], unpack(FIELDS))) do
      found[FIELDS[position]] = value or nil
    end
    local now = tick(keys[3])
    local status = STEPS[request.step](keys, request, found, now)
    if status == 'begun' or status == 'switched' or status == 'dropping' then
      audit(keys[2], keys[3], now, request.audit)
    end
    return answer({status = status})
  end

  -- rm1_mark_vectors: say anew in pieces of which models they have vectors, and remove those of a model given up (at
  -- most 8, so that Redis never stalls). KEYS: mem or chunk keys. Answer: {status}
  local function mark_vectors(keys, args)
    local request, models = cmsgpack.unpack(args[1]), models_of(keys[1])
    for _, hash in ipairs(keys) do
      if redis.call('EXISTS', hash) == 1 then
        local field = request.remove
        for _, model in ipairs(models) do
          if model.field == field then field = nil end
        end
        if field then redis.call('HDEL', hash, field, 'sealed_' .. field) end
        redis.call('HSET', hash, 'model', state_of(hash, models))
      end
    end
    return answer({status = 'ok'})
  end

  -- rm1_task_vectors: put vectors to texts of open tasks. KEYS: a taskvec key for each item. Answer: {status}
  local function task_vectors(keys, args)
    local request = cmsgpack.unpack(args[1])
    for position, bytes in ipairs(request.vectors) do
      if redis.call('EXISTS', keys[position]) == 1 then redis.call('HSET', keys[position], request.field, bytes) end
    end
    return answer({status = 'ok'})
  end

  -- rm1_agent_vector: put a vector to what an agent says of itself, if it still says that. KEYS: agent.
  -- Answer: {status}
  local function agent_vector(keys, args)
    local request = cmsgpack.unpack(args[1])
    local found = redis.call('HMGET', keys[1], 'registered_at', 'description', 'capabilities')
    if found[1] and (found[2] or '') == request.description and (found[3] or '') == request.capabilities then
      redis.call('HSET', keys[1], 'profile', request.profile)
    end
    return answer({status = 'ok'})
  end

  serve('rm1_change_model', change_model)
  serve('rm1_mark_vectors', mark_vectors)
  serve('rm1_task_vectors', task_vectors)
  serve('rm1_agent_vector', agent_vector)
end
