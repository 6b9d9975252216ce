-- agenda(limit): schedules of a queue, of all its lanes: a list of name, record without its payload, state of the last
-- task ('' unknown); at most so many. The next ones of each lane come first; of few schedules those that are
-- paused, too.
local function agenda(limit)
  local base, names, taken, rows = string.match(STREAM, '^[^!]*'), {}, {}, {}
  local key = 'schedules:' .. base
  local total = look(0, 'HLEN', key)
  if total == 0 then return rows end
  for _, lane in ipairs({ '', '!high', '!low' }) do
    for _, name in ipairs(look({}, 'ZRANGE', 'due:' .. base .. lane, 0, limit - 1)) do names[#names + 1] = name end
  end
  if #names < limit and total <= 200 then
    for _, name in ipairs(look({}, 'HKEYS', key)) do names[#names + 1] = name end
  end
  for i = 1, #names do
    local name = names[i]
    local value = not taken[name] and #rows < limit and look(false, 'HGET', key, name)
    taken[name] = true
    if value then
      local text = string.match(value, '^[^\n]*')
      local ok, has = pcall(cjson.decode, text)
      local state = ''
      if ok and type(has) == 'table' and type(has.last) == 'string' and has.last ~= '' and type(has.lane) == 'string' then
        local queue = base .. has.lane
        local record = look({}, 'HMGET', 'task:' .. queue .. ':' .. has.last, 'state', 'entry')
        state = record[1] or record[2] and 'queued' or ''
        if state == 'queued' and record[2] ~= ''
          and #look({}, 'XPENDING', queue, GROUP, record[2], record[2], 1) > 0 then state = 'running' end
      end
      rows[#rows + 1] = { name, text, state }
    end
  end
  return rows
end
