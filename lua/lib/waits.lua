-- waits(sample, limit): why the `sample` oldest waiting tasks wait, as a flat list of reason and count,
-- and the `limit` keys under which most tasks wait (see limit_row). Of a queue with more than a thousand
-- facts about its keys, only those keys are looked at under which the oldest and the newest wait.
local function waits(sample, limit)
  local counts, keys, seen = {}, {}, {}
  local function note(key)
    if key and key ~= '' and not seen[key] then
      seen[key] = true
      keys[#keys + 1] = key
    end
  end
  local function at(refs, count)
    for i = 1, #refs do
      local found = look({}, 'HMGET', record_of(refs[i]), 'reason', 'under')
      local reason = found[1] or ''
      if count then counts[reason] = (counts[reason] or 0) + 1 end
      if reason ~= 'parents' then note(found[2]) end
    end
  end
  local facts = look(0, 'HLEN', LIMITS)
  at(look({}, 'ZRANGE', WAITING, 0, sample - 1), true)
  if facts > 1000 then
    at(look({}, 'ZREVRANGE', WAITING, 0, sample - 1), false)
  elseif facts > 0 then
    local names = look({}, 'HKEYS', LIMITS)
    for i = 1, #names do note(string.sub(names[i], 2)) end
  end
  local rows, reasons, facts_of = {}, {}, {}
  for from = 1, #keys, 1000 do
    local names, to = {}, math.min(from + 999, #keys)
    for i = from, to do
      names[#names + 1] = 'w' .. keys[i]
      names[#names + 1] = 's' .. keys[i]
      names[#names + 1] = 'r' .. keys[i]
    end
    local found = look({}, 'HMGET', LIMITS, unpack(names, 1, #names))
    for i = from, to do
      local at = 3 * (i - from)
      facts_of[keys[i]] = { tonumber(found[at + 1] or 0) or 0, tonumber(found[at + 2] or 0) or 0,
        found[at + 3] and 1 or 0 }
    end
  end
  table.sort(keys, function(a, b)
    local one, other = facts_of[a], facts_of[b]
    if one[1] ~= other[1] then return one[1] > other[1] end
    if one[3] ~= other[3] then return one[3] > other[3] end
    if one[2] ~= other[2] then return one[2] > other[2] end
    return a < b
  end)
  for i = 1, math.min(limit, #keys) do rows[i] = limit_row(keys[i]) end
  for reason, count in pairs(counts) do
    reasons[#reasons + 1] = reason
    reasons[#reasons + 1] = tostring(count)
  end
  return reasons, rows
end
