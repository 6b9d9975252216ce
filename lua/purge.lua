-- purge: dead letters are deleted for good.
-- KEYS:
--   1 task_prefix
--   2 dead
--   3 items_prefix
-- ARGV:
--   1 limit: without ids, the oldest dead letters up to this many
--   2 before: without ids, only those that died before this server time, ms ('+inf' all)
--   for each task (1): id
-- RETURN: how many were deleted; the same ids sent again answer 0, for nothing is left of them
-- COST: ZREM of nothing, per task ZSCORE + HMGET + DEL + ZREM, and DEL of what it had yielded
-- WHY: only ids in the dead set are touched: a task that was replayed in the meantime lives. Its id
--   leaves the set last, and that it can is proved first: what is not deleted is seen.
local TASK, DEAD = KEYS[1], KEYS[2]
--@include look
local ids = {}
for at = 3, #ARGV do ids[#ids + 1] = ARGV[at] end
if #ids == 0 then ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', ARGV[2], 'LIMIT', 0, ARGV[1]) end
redis.call('ZREM', DEAD, '')
local purged = 0
for i = 1, #ids do
  if redis.call('ZSCORE', DEAD, ids[i]) then
    local has = look({}, 'HMGET', TASK .. ids[i], 'state', 'items')
    if has[1] == 'failed' then redis.call('DEL', TASK .. ids[i]) end
    if has[1] == 'failed' and has[2] then redis.pcall('DEL', KEYS[3] .. ids[i]) end
    redis.call('ZREM', DEAD, ids[i])
    purged = purged + 1
  end
end
return purged
