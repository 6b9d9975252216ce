-- purge: dead letters are deleted for good.
-- KEYS:
--   1 task_prefix
--   2 dead
-- ARGV:
--   1 limit: without ids, the oldest dead letters up to this many
--   2 before: without ids, only those that died before this server time, ms ('+inf' all)
--   for each task (1): id
-- RETURN: how many were deleted; the same ids sent again answer 0, for nothing is left of them
-- COST: per task ZREM + HGET + DEL
-- WHY: only ids in the dead set are touched: a task that was replayed in the meantime lives.
local TASK, DEAD = KEYS[1], KEYS[2]
local ids = {}
for at = 3, #ARGV do ids[#ids + 1] = ARGV[at] end
if #ids == 0 then ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', ARGV[2], 'LIMIT', 0, ARGV[1]) end
local purged = 0
for i = 1, #ids do
  if redis.call('ZREM', DEAD, ids[i]) == 1 then
    if redis.call('HGET', TASK .. ids[i], 'state') == 'failed' then redis.call('DEL', TASK .. ids[i]) end
    purged = purged + 1
  end
end
return purged
