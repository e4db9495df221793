-- Transfers of all memories of an agent that left. A transfer is an offer: its receiver accepts or declines it. Until
-- then, and if it is declined or expires, the memories are kept: no agent has their owner ids, which are listed in
-- `kept` of the agent's hash, with their codes in `kept_proofs`. The offer holds the codes that give them to its
-- receiver: the server makes them when it offers, from owner ids that passed their check.

local WHOLE = 'o'  -- the selector of an offer of owner ids, which no selector of a grant equals

local function save_list(key, field, items)
  if #items == 0 then return redis.call('HDEL', key, field) end
  redis.call('HSET', key, field, table.concat(items, '\31'))
end

-- Save the owner ids that a name keeps, except those that expired with their memories.
local function save_kept(names, name, kept)
  local key, owners, proofs = names.agent .. name, {}, {}
  for _, owner in ipairs(kept) do
    if #kept > rm.OWNERS_READ or redis.call('EXISTS', names.owner .. owner) == 1 then owners[#owners + 1] = owner end
  end
  local left = rm.set(owners)
  for _, proof in ipairs(rm.split(redis.call('HGET', key, 'kept_proofs'))) do
    if left[string.match(proof, '^[^=]*')] then proofs[#proofs + 1] = proof end
  end
  save_list(key, 'kept', owners)
  save_list(key, 'kept_proofs', proofs)
  rm.keep_name(names, name)
end

local function load_kept(names, name)
  return rm.split(redis.call('HGET', names.agent .. name, 'kept') or '')
end

-- Keep owner ids that an agent left. `proofs` are their codes as kept ones; nil without a key.
function rm.keep_owners(names, name, owners, proofs, marks)
  rm.write_holder(names, owners, name, marks)
  if proofs then rm.push_proofs(names.agent .. name, 'kept_proofs', owners, proofs) end
  save_kept(names, name, rm.append(load_kept(names, name), unpack(owners)))
end

local function waiting_offers(names, target, now)
  return rm.load_entries(names.offers .. target, redis.call('HGET', names.agent .. target, 'owner'), now)
end

-- Why an agent's memories cannot be offered to another; nil if they can. One offer at a time of a name to a receiver.
function rm.transfer_problem(names, name, target, now)
  if not rm.load_agent(names, target) then return 'unknown_agent' end
  local offers = waiting_offers(names, target, now)
  for _, offer in pairs(offers) do
    if offer.by == name and offer.selector == WHOLE then return 'offer_waits' end
  end
  if rm.has_all_offers(offers) then return 'too_many_offers' end
end

-- Whether the server signed an offer for another receiver, or for other owner ids.
function rm.is_other_offer(names, request, owners)
  local receiver = redis.call('HGET', names.agent .. request.target, 'owner')
  return request.given and (request.to_owner ~= receiver or request.by_owner ~= owners[#owners])
end

-- Offer kept owner ids to an agent. Request: id, agent, target, offer_seconds, count (of memories, for display), and
-- what the server signed: mac, and `given`, the code of each owner id for the receiver; nil without a key
function rm.offer_transfer(names, request, owners)
  local now, own = rm.tick(names), {}
  for _, owner in ipairs(owners) do own[#own + 1] = 'o:' .. owner end
  local described = {from = request.agent, to = request.target, permission = 'write', kind = WHOLE,
    shown = {request.count}, note = '', mac = request.mac}
  local entry = {owner = redis.call('HGET', names.agent .. request.target, 'owner'), by = request.agent,
    by_owner = owners[#owners], selector = WHOLE, permission = 'write', at = now,
    ends = now + request.offer_seconds * 1000000, own = own, via = {}, proofs = request.given}
  rm.write_offer(names, request.id, described, entry, now)
end

-- rm1_offer_kept: offer an agent what former holders of a name left.
-- KEYS: agent (the name)
-- Answer: {status = offered | changed | nothing_kept | unknown_agent | offer_waits | too_many_offers}
rm.serve('rm1_offer_kept', function(request, _, names)
  local now = rm.now()
  local owners = rm.proven_owners(load_kept(names, request.agent), request.known, request.given)
  if not owners then return {status = 'changed'} end
  if #owners == 0 then return {status = 'nothing_kept'} end
  local problem = rm.transfer_problem(names, request.agent, request.target, now)
  if problem then return {status = problem} end
  if rm.is_other_offer(names, request, owners) then return {status = 'changed'} end
  rm.offer_transfer(names, request, owners)
  rm.audit(names, now, request.audit)
  return {status = 'offered'}
end)

-- The offered owner ids that are still kept, and the other kept ones. With `proofs`, the codes that the server has
-- checked, only ids with a code are offered.
local function divide_kept(names, name, tokens, proofs)
  local offered, found, rest = rm.set(tokens), {}, {}
  for _, owner in ipairs(load_kept(names, name)) do
    local list = offered['o:' .. owner] and (not proofs or proofs[owner]) and found or rest
    list[#list + 1] = owner
  end
  return found, rest
end

-- rm1_accept_transfer: give an agent the owner ids that an offer transfers to it. `proofs` are the codes of the offer
-- that the server has checked.
-- KEYS: audit, counters, agent. Answer: {status = accepted | not_found | too_many_owner_ids}
rm.serve('rm1_accept_transfer', function(request, _, names)
  local name, now = request.agent, rm.now()
  local offer = waiting_offers(names, name, now)[request.id]
  if not offer or offer.selector ~= WHOLE then return {status = 'not_found'} end
  local owners, rest = divide_kept(names, offer.by, offer.own, request.proofs)
  if #owners == 0 then return {status = 'not_found'} end
  local own = rm.split(redis.call('HGET', names.agent .. name, 'owners'))
  if #own + #owners > rm.OWNERS_READ then return {status = 'too_many_owner_ids'} end
  save_kept(names, offer.by, rest)
  rm.add_owners(names, name, owners, request.proofs)
  for _, owner in ipairs(owners) do
    for _, key in ipairs({names.owner, names.data_key}) do redis.call('PERSIST', key .. owner) end
  end
  rm.keep_name(names, name)
  rm.end_offer(names, request.id, 'accepted', name)
  rm.audit(names, rm.tick(names), request.audit)
  return {status = 'accepted'}
end)
