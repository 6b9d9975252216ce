-- wait_after(id, name, payload, opts, gate, conditions): a new task that runs after others, none of which has ended, and
-- asks for nothing else, waits, in as few commands as can be; false: nothing was written. An id that is known answers
-- 'known'; raises what fails, with nothing written.
local function wait_after(id, name, payload, opts, gate, conditions)
  local asked = terms(gate)
  if not asked.reads or asked.expires or not (counting and marks[HOME] and added[WAITING]) then return false end
  local of, n = {}, 0
  for line in string.gmatch(conditions, '[^\n]+') do
    local key = string.sub(line, 2)
    local found = known[key]
    if not found or found == true then
      local kind, there, parent = string.match(key, '^(t)(!?%a*) (.*)$')
      if not kind or there ~= HOME or parent == id then return false end
      found = parent_of(key, kind, there, parent)
      if not found then return false end
    end
    if found.state ~= '' or found.lane ~= HOME or found.kind ~= 't' then return false end
    n = n + 1
    of[n] = found
  end
  local record, place = TASK .. id, int(new_place())
  local made = redis.pcall('HSETNX', record, 'entry', '')
  if made ~= 1 then
    if made == 0 then return 'known' end
    return error(made.err, 0)
  end
  local written = redis.pcall('HSET', record, 'state', 'waiting', 'reason', 'parents', 'place', place, 'name', name,
    'payload', payload, 'opts', opts, 'parents', int(n), 'after', conditions)
  if type(written) == 'table' then
    redis.pcall('HDEL', record, unpack(NEW))
    return error(written.err, 0)
  end
  local all, edge = added[WAITING], place .. ' ' .. ref_of(id)
  local last = #all
  all[last + 1], all[last + 2] = NOW_TEXT, ref_of(id)
  local from = 1
  for i = 1, n do
    local edges = of[i].edges
    if not edges[1] then parents[#parents + 1] = of[i] end
    edges[#edges + 1] = string.sub(conditions, from, from) .. edge
    of[i].readers = of[i].readers + 1
    from = string.find(conditions, '\n', from, true)
    from = from and from + 1
  end
  known[OWN .. id] = true
  return true
end
