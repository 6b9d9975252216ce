-- event_for(record, name, taken, last): the next event of a name for a task: the first of its own messages that it
-- has not taken (`taken` counts those), else the one that is kept for all, unless that is the `last` it took.
-- Answers its mark and its body; nothing where there is none.
local function event_for(record, name, taken, last)
  local own = redis.call('HGET', record, string.format('event:%d:%s', taken + 1, name))
  local value = own or redis.call('GET', 'event:' .. string.match(STREAM, '^[^!]*') .. ':' .. name)
  local cut = value and string.find(value, '\n', 1, true)
  if not cut then return nil end
  local mark = (own and 'm' or 'a') .. string.sub(value, 1, cut - 1)
  if mark == last then return nil end
  return mark, string.sub(value, cut + 1)
end
-- took(record, ref, name, taken, mark): a task that waited for an event waits no more: it is not among those that
-- do, and a message of its own is in its step now.
local function took(record, ref, name, taken, mark)
  redis.call('HDEL', record, 'awaits')
  redis.call('ZREM', 'expecting:' .. string.match(STREAM, '^[^!]*') .. ':' .. name, ref)
  if string.sub(mark, 1, 1) ~= 'm' then return end
  if redis.call('HDEL', record, string.format('event:%d:%s', taken + 1, name)) == 1 then
    redis.call('HINCRBY', record, 'events', -1)
  end
end
