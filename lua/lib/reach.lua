-- reach(ref, name): the event of that name is in the record of a task that waits for it, and it runs again now.
-- Answers whether it waited, and there was one.
local function reach(ref, name)
  local id = visit(ref)
  local record = TASK .. id
  local has = look({}, 'HMGET', record, 'state', 'reason', 'awaits')
  if has[1] ~= 'delayed' or has[2] ~= 'event' then return false end
  local number, taken, last, of = string.match(has[3] or '', '^%d+ (%d+) (%d+) (%S+) (.*)$')
  if of ~= name then return false end
  taken = tonumber(taken)
  local mark, body = event_for(record, name, taken, last)
  if not mark then return false end
  keep_step(record, number, name .. '\n' .. int(NOW) .. ' 0 e ' .. mark, body)
  redis.call('ZADD', DELAYED, 'XX', int(NOW), id)
  took(record, ref, name, taken, mark)
  redis.pcall('PUBLISH', 'wake:' .. STREAM, int(NOW))
  return true
end
-- reach_all(name, going, limit): so many of those that waited for an event when it was sent go on, by that list of
-- them, and by a timer those that are left. Answers how many.
local function reach_all(name, going, limit)
  local count, refs = 0, look({}, 'ZRANGE', going, 0, limit - 1)
  for i = 1, #refs do
    if reach(refs[i], name) then count = count + 1 end
    redis.call('ZREM', going, refs[i])
  end
  if #refs == limit then timer(NOW, cjson.encode({ 'event', name, going })) end
  return count
end
