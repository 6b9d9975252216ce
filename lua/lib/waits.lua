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
  local rows, reasons = {}, {}
  for i = 1, #keys do rows[i] = limit_row(keys[i]) end
  table.sort(rows, function(a, b)
    if tonumber(a[5]) ~= tonumber(b[5]) then return tonumber(a[5]) > tonumber(b[5]) end
    if (a[2] == '') ~= (b[2] == '') then return b[2] == '' end
    if tonumber(a[4]) ~= tonumber(b[4]) then return tonumber(a[4]) > tonumber(b[4]) end
    return a[1] < b[1]
  end)
  for i = #rows, limit + 1, -1 do rows[i] = nil end
  for reason, count in pairs(counts) do
    reasons[#reasons + 1] = reason
    reasons[#reasons + 1] = tostring(count)
  end
  return reasons, rows
end
