-- Limits of the grants and offers that an agent holds.

-- What one agent holds, and what it holds of one other, which it did not ask for. `passing` is how many grants pass on
-- the same memory by its id: an update of it looks at all of them.
local MOST = {grants = 256, tokens = 4096, offers = 256, passing = 128}
local OF_PAIR = {grants = 64, tokens = 512, offers = 64}

local function count_tokens(entry)
  local number = #entry.own
  for _, part in pairs(entry.via) do number = number + #part.tokens end
  return number
end

-- How many entries there are besides one, and how many tokens they have; with `by`, only those of that grantor.
local function count_entries(entries, besides, by)
  local number, tokens = 0, 0
  for id, entry in pairs(entries) do
    if id ~= besides and (not by or entry.by == by) then
      number = number + 1
      tokens = tokens + count_tokens(entry)
    end
  end
  return number, tokens
end

-- The limit that a grantee would exceed with a grant; nil if none.
function rm.limit_problem(granted, id, entry)
  local new = count_tokens(entry)
  local number, tokens = count_entries(granted, id, entry.by)
  if number >= OF_PAIR.grants or tokens + new > OF_PAIR.tokens then return 'too_many_of_pair' end
  number, tokens = count_entries(granted, id)
  if number >= MOST.grants then return 'too_many_grants' end
  if tokens + new > MOST.tokens then return 'too_many_tokens' end
end

-- Whether an agent has as many offers waiting as it may.
function rm.has_all_offers(offers)
  return count_entries(offers) >= MOST.offers
end

-- The same for the offers of one other agent.
function rm.has_all_offers_of(offers, from)
  return count_entries(offers, nil, from) >= OF_PAIR.offers
end

-- The limit of grants that pass on the same memory by its id, if a grant would exceed it.
function rm.passing_problem(names, id, via)
  for _, part in pairs(via) do
    for _, token in ipairs(part.tokens) do
      local links = names.reshared .. string.sub(token, 3)
      if string.sub(token, 1, 2) == 'i:' and redis.call('SCARD', links) >= MOST.passing
        and redis.call('SISMEMBER', links, id) == 0 then
        return 'passed_on_too_often'
      end
    end
  end
end
