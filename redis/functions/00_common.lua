-- Library rm1: every write that touches more than one key.
--
-- memory_core/store/functions.py joins these files into one library. Each file is a block: its locals stay in it.
-- `rm` is the table that all files share: `function rm.name` in one file is `rm.name(…)` in every other.
--
-- A Function checks all of its preconditions before its first write: Lua is atomic, but never rolls back.
-- Its body gets the request, KEYS and `names`: the keys of the namespace by their names in memory_core/records/keys.py. For
-- keys of single records, such as `names.task`, it is the beginning of the key. Times are whole microseconds.

local EVENTS_MOST = 100000
local NAMESPACES_CACHED = 1000
local NAME_SECONDS = 365 * 86400
-- How many owner ids of a name one call looks at, so that Redis never stalls.
rm.OWNERS_READ = 1000

local cache, cached = {}, 0

-- The namespace's keys; nil for a key outside a namespace.
function rm.names_of(key)
  local prefix = type(key) == 'string' and string.match(key, '^rm:{[^}]*}:')
  if not prefix then return nil end
  if not cache[prefix] then
    if cached == NAMESPACES_CACHED then cache, cached = {}, 0 end
    local names = {}
    for name, rest in pairs(rm.KEYS) do names[name] = prefix .. rest end
    cache[prefix], cached = names, cached + 1
  end
  return cache[prefix]
end

-- Whether the slot of a key is migrating to another cluster node. Keys that moved already look missing here, and a
-- Function that noticed after its first write would leave half of its writes. Probes a key that never exists.
local function is_migrating(key, names)
  local probe = redis.pcall('EXISTS', names and names.memory or key .. ':')
  return type(probe) == 'table' and string.find(probe.err, 'non local key', 1, true) ~= nil
end

-- The nonce of the last audit entry. The answer carries it, so that the server knows that its entry is written.
local audited

-- Pack an answer.
function rm.pack(answer)
  answer.audited, audited = audited, nil
  answer.damaged = rm.take_removed()
  return cmsgpack.pack(answer)
end

local function register(name, flag, body)
  redis.register_function{function_name = name, flags = {flag}, callback = function(keys, args)
    local names = rm.names_of(keys[1])
    if keys[1] and is_migrating(keys[1], names) then
      return redis.error_reply('TRYAGAIN the namespace is moving to another node')
    end
    audited = nil
    rm.take_removed()
    local answer = body(cmsgpack.unpack(args[1]), keys, names)
    return type(answer) == 'string' and answer or rm.pack(answer)
  end}
end

-- Register a Function. `body(request, keys, names)` returns the answer as a table, or packed already.
-- Above `maxmemory` Redis runs no Function but those with the flag 'allow-oom' before the body, which free memory or end
-- something and add little. With 'brief' it runs only requests whose texts are short, under the name <name>_brief.
function rm.serve(name, flag, body)
  if not body then flag, body = nil, flag end
  if flag == 'brief' then
    register(name .. '_brief', 'allow-oom', body)
    flag = nil
  end
  register(name, flag, body)
end

-- rm1_hold_lease: take or renew a lease that one process at a time holds. Redis refuses a plain SET above `maxmemory`.
-- KEYS: lease. Answer: {held}
rm.serve('rm1_hold_lease', 'allow-oom', function(request, keys)
  local holder = redis.call('GET', keys[1])
  local outlasts = redis.call('PTTL', keys[1]) > request.milliseconds  -- Redis's clock was set back since
  local held = not holder or holder == request.holder or outlasts
  if held then redis.call('SET', keys[1], request.holder, 'PX', request.milliseconds) end
  return {held = held}
end)

-- Time on Redis's clock.
function rm.now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Time on the namespace's clock, which never gives the same time twice: creation times order all memories.
function rm.tick(names)
  local now = rm.now()
  local last = rm.number(names.counters, 'clock')
  if now <= last then now = last + 1 end
  redis.call('HSET', names.counters, 'clock', rm.integer(now))
  return now
end

-- Microseconds as epoch seconds with six decimals: the form in which all times are stored.
function rm.seconds(microseconds)
  local seconds = math.floor(microseconds / 1000000)
  return string.format('%d.%06d', seconds, microseconds - seconds * 1000000)
end

-- A whole number as text, never in exponential notation.
function rm.integer(number)
  return string.format('%.0f', number)
end

function rm.contains(list, value)
  for _, item in ipairs(list) do
    if item == value then return true end
  end
  return false
end

function rm.without(list, value)
  local left = {}
  for _, item in ipairs(list) do
    if item ~= value then left[#left + 1] = item end
  end
  return left
end

function rm.append(list, ...)
  for _, item in ipairs({...}) do list[#list + 1] = item end
  return list
end

-- The items of a stored list.
function rm.split(text)
  local found = {}
  for item in string.gmatch(text or '', '[^\31]+') do found[#found + 1] = item end
  return found
end

function rm.set(list)
  local set = {}
  for _, item in ipairs(list) do set[item] = true end
  return set
end

-- Fields of a hash as a table; missing fields are nil.
function rm.read(key, ...)
  local fields, found = {...}, {}
  for position, value in ipairs(redis.call('HMGET', key, ...)) do found[fields[position]] = value or nil end
  return found
end

-- Write those of the fields that differ. Each HSET indexes a memory's hash again, even where nothing changes.
function rm.write_changes(key, fields)
  local asked, changed = {}, {}
  for position = 1, #fields, 2 do asked[#asked + 1] = fields[position] end
  local found = redis.call('HMGET', key, unpack(asked))
  for position, name in ipairs(asked) do
    local value = tostring(fields[2 * position])
    if found[position] ~= value then rm.append(changed, name, value) end
  end
  if #changed > 0 then redis.call('HSET', key, unpack(changed)) end
end

local function append_present(fields, entry, names)
  for _, name in ipairs(names) do
    if entry[name] then rm.append(fields, name, entry[name]) end
  end
end

-- Write an audit entry under the namespace's next number. The server fills in and signs the request's part of it.
-- `done` lists the affected ids where they differ from the requested ones; the entry then holds both.
function rm.audit(names, at, entry, done)
  local number = redis.call('HINCRBY', names.counters, 'audit', 1)
  local asked = table.concat(entry.ids or {}, ' ')
  local ids = done and table.concat(done, ' ') or asked
  local fields = {'n', number, 'at', rm.seconds(at), 'who', entry.by or entry.who, 'op', entry.op, 'ids', ids,
    'outcome', entry.outcome or 'ok', 'from', entry.from or ''}
  if entry.by then rm.append(fields, 'as', entry.who) end
  if ids ~= asked then rm.append(fields, 'asked', asked) end
  append_present(fields, entry, {'shown', 'count', 'times', 'nonce', 'key', 'mac'})
  redis.call('XADD', names.audit, '*', unpack(fields))
  audited = entry.nonce
end

-- Answer that the audit entry is written: by an earlier try of the same call, whose answer was lost.
function rm.already_audited(entry)
  audited = entry and entry.nonce
end

-- Write an event. The sweeper drops old ones, the same number from each agent (events/retention.py). `subject` is the
-- record and `by` the agent that acted. In `about`, `scope` lists the tokens that may read the memory, `to` the addressed
-- agents, and `extra` further fields and values. The token of the memory's id is left out, since the event has the id.
function rm.emit(names, kind, op, subject, by, about)
  if kind == 'memory' and about.scope then
    about.scope = table.concat(rm.without(rm.split(about.scope), 'i:' .. subject), '\31')
  end
  redis.call('XADD', names.events, 'MAXLEN', '~', EVENTS_MOST, '*', 'kind', kind, 'op', op, 'id', subject,
    'by', by or '', 'scope', about.scope or '', 'to', about.to or '', unpack(about.extra or {}))
end

-- Up to `limit` ids of a sorted set whose time has come.
function rm.due(key, now, limit)
  return redis.call('ZRANGEBYSCORE', key, '-inf', rm.seconds(now), 'LIMIT', 0, limit)
end

-- The answer to a repeated call under the same idempotency key; nil for a new key, or if its record was deleted.
function rm.replay(key, field, records, idempotency)
  local seen = rm.read(key, 'payload', field, 'created_at', 'expires_at')
  if not seen.payload or redis.call('EXISTS', records .. seen[field]) == 0 then return nil end
  if seen.payload ~= idempotency.payload then return {status = 'idempotency_conflict'} end
  return {status = 'replayed', id = seen[field], created_at = seen.created_at, expires_at = seen.expires_at}
end

-- Remember for `replay` what is stored under an idempotency key.
function rm.remember(key, idempotency, ...)
  redis.call('HSET', key, 'payload', idempotency.payload, ...)
  redis.call('EXPIRE', key, idempotency.ttl)
end

-- Those of the owner ids that the server proved which an agent still has: it may have left them since.
function rm.owners_now(agent, proved)
  local current, found = rm.set(rm.split(redis.call('HGET', agent, 'owners') or '')), {}
  for _, owner in ipairs(proved) do
    if current[owner] then found[#found + 1] = owner end
  end
  return found
end

-- Add items to a stored list.
function rm.push(key, field, items)
  if #items == 0 then return end
  local added, known = table.concat(items, '\31'), redis.call('HGET', key, field)
  redis.call('HSET', key, field, known and known .. '\31' .. added or added)
end

-- Add the codes of some owner ids to a stored list.
function rm.push_proofs(key, field, owners, proofs)
  local items = {}
  for _, owner in ipairs(owners) do
    if proofs[owner] then items[#items + 1] = owner .. '=' .. proofs[owner] end
  end
  rm.push(key, field, items)
end

-- Write whose some owner ids are, and with `marks` which file they came with.
function rm.write_holder(names, owners, name, marks)
  for _, owner in ipairs(owners) do
    local key = names.owner .. owner
    if marks then
      redis.call('HSET', key, 'agent', name, 'file', marks[owner])
    else
      redis.call('HSET', key, 'agent', name)
    end
  end
end

-- When the hash of a name may go, in milliseconds; nil while an agent has the name or left memories that may not expire,
-- or too many owner ids to look at.
-- What else it says, since when the name was left, hides older tasks and events from the next agent of the name.
local function end_of_name(names, found)
  if found.registered_at or found.owners then return nil end
  local kept, last = rm.split(found.kept), rm.now() / 1000 + NAME_SECONDS * 1000
  if #kept > rm.OWNERS_READ then return nil end
  for _, owner in ipairs(kept) do
    local ends = redis.call('PEXPIRETIME', names.owner .. owner)
    if ends == -1 then return nil end
    last = math.max(last, ends)
  end
  return last
end

-- Set when the hash of a name expires, after a change of its registration or owner ids.
function rm.keep_name(names, name)
  local key = names.agent .. name
  local ends = end_of_name(names, rm.read(key, 'registered_at', 'owners', 'kept'))
  if ends then redis.call('PEXPIREAT', key, rm.integer(ends)) else redis.call('PERSIST', key) end
end

-- Add owner ids to an agent. `proofs` are their codes for this name, which only the server can make; nil without a key.
function rm.add_owners(names, name, owners, proofs, marks)
  rm.push(names.agent .. name, 'owners', owners)
  if proofs then rm.push_proofs(names.agent .. name, 'proofs', owners, proofs) end
  rm.write_holder(names, owners, name, marks)
end

-- Whether a time is before the present holder of an agent's name: what is older is not that agent's.
function rm.is_before_holder(names, name, time)
  local since = redis.call('HGET', names.agent .. name, 'since') and rm.number(names.agent .. name, 'since')
  return since and (tonumber(time) or 0) < since
end

-- Whether the server may have signed a new owner id for another holder of the name: its code covers `since`.
function rm.is_outdated(names, name, proof)
  return proof and proof.since ~= (redis.call('HGET', names.agent .. name, 'since') or '')
end

-- Add an owner id to an agent that has no current one, and make it the current one. Servers without the key of the first
-- signed one are refused from then on.
function rm.issue_owner(names, name, owner, proof)
  if proof then redis.call('HSETNX', names.counters, 'signed', proof.signer) end
  redis.call('HSET', names.agent .. name, 'owner', owner)
  rm.add_owners(names, name, {owner}, proof and {[owner] = proof.code})
  rm.keep_name(names, name)
end

-- The owner ids that have a proof; nil if one is not `known` to the server, which then proves them again. The server
-- does not prove an id that fails its check: it is left behind.
function rm.proven_owners(owners, known, proofs)
  if not proofs then return owners end
  local found, seen = {}, rm.set(known)
  for _, owner in ipairs(owners) do
    if not seen[owner] then return nil end
    if proofs[owner] then found[#found + 1] = owner end
  end
  return found
end
