-- beat: one heartbeat for all the worker processes of one keeper.
-- KEYS:
--   1 workers
--   2 worker_prefix
--   3 meta
-- ARGV:
--   1 lease: ms until a worker that no longer beats is dead
--   for each worker (2): consumer, running (entry ids with a space between, '=' unchanged)
-- RETURN: the server's time in ms, the earliest deadline of any worker in ms, paused (0 or 1)
-- COST: TIME + ZREVRANGE + ZADD a worker + ZRANGE + HGET, and HSET where `running` changed
-- WHY: one lease a worker, not one a task: a living worker keeps a ten-hour task and renews
--   nothing. The answer says when it is worth looking for the dead, so nobody polls.
local GRACE_LIMIT = 1000
--@include now
--@include grace
local now, lease = now_ms(), tonumber(ARGV[1])
extend_after_silence(KEYS[1], now, lease)
local deadline = int(now + lease)
for at = 2, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], deadline, ARGV[at])
  if ARGV[at + 1] ~= '=' then redis.call('HSET', KEYS[2] .. ARGV[at], 'running', ARGV[at + 1]) end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return { now, tonumber(first[2] or -1), tonumber(redis.call('HGET', KEYS[3], 'paused') or 0) }
