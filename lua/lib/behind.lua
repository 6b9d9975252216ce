-- stand_behind(line, score, ref, term): a task stands in line, the first of this call there. Noted for undoing.
local function stand_behind(line, score, ref, term)
  add_to(line, score, ref)
  add_to(WAITING, NOW_TEXT, ref)
  if term.group then take_part(term.group) end
end
-- wait_behind(id, name, payload, opts, gate): a new task that asks for keys alone, of which the last has no room for
-- anybody, waits, in as few commands as can be; false: nothing was written. An id that is known answers 'known'; raises
-- what fails, with nothing written.
local function wait_behind(id, name, payload, opts, gate)
  local asked = terms(gate)
  local keys = asked.keys
  local term = keys[#keys]
  if not asked.plain or not term or (keys[2] and (keys[3] or not term.group or obstacle(keys[1], false))) then return false end
  local now = stands[term.key] or standing(term)
  local most, used = most_of(term, now), now.used
  if now.paused or now.rule.excess or not most or used <= 0 or used + term.weight <= most or term.weight > 1 then
    return false
  end
  if not able_to then may_accept() end
  local record, line = TASK .. id, list_of(term)
  local made = redis.pcall('HSETNX', record, 'entry', '')
  if made ~= 1 then
    if made == 0 then return 'known' end
    return error(made.err, 0)
  end
  local ok, place = pcall(new_place)
  if not ok then
    redis.pcall('HDEL', record, 'entry')
    return error(place, 0)
  end
  local text = int(place)
  local written = redis.pcall('HSET', record, 'state', 'waiting', 'reason', term.group and 'share' or 'limit', 'under',
    term.key, 'place', text, 'name', name, 'payload', payload, 'opts', opts)
  local score, ref, members, all = place - asked.priority * AGEING_US, ref_of(id), added[line], added[WAITING]
  if asked.priority ~= 0 then text = int(score) end
  local fault = type(written) == 'table' and written.err
  if not fault and all and (members or newcomers or not term.group) then
    if not members then -- the first of this call in this line, but not in any
      members = {}
      written = redis.pcall('ZADD', line, text, ref)
      fault = type(written) == 'table' and written.err
      if not fault then
        added[line] = members
        if term.group then
          local n = #newcomers
          newcomers[n + 1], newcomers[n + 2] = newcomers.since, term.group
        end
      end
    else
      local n = #members
      members[n + 1], members[n + 2] = text, ref
    end
    if not fault then
      local n = #all
      all[n + 1], all[n + 2] = NOW_TEXT, ref
    end
  else
    fault = fault or whole(stand_behind, line, text, ref, term)
  end
  if fault then
    redis.pcall('HDEL', record, unpack(NEW))
    return error(fault, 0)
  end
  if now.waiting == 0 then
    now.heads = { [line] = score }
  elseif now.heads and now.heads[line] and score < tonumber(now.heads[line]) then
    now.heads[line] = score
  end
  count(now.w, 1)
  now.waiting = now.waiting + 1
  return true
end
