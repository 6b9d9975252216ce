-- mark_parent(id): a task has dependants: whatever ends it follows them up, and keeps its record for those
-- who have still to read it. A task that nobody depends on pays nothing for it.
local function mark_parent(id)
  if redis.call('HSETNX', WAITERS, id, '>') == 1 then return end
  local waiting = redis.call('HGET', WAITERS, id)
  if not string.find('\n' .. waiting .. '\n', '\n>\n', 1, true) then
    redis.call('HSET', WAITERS, id, waiting .. '\n>')
  end
end
