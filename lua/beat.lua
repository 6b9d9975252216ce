-- beat: one heartbeat for all the worker processes of one keeper.
-- KEYS:
--   1 workers
--   2 worker_prefix
--   3 meta
-- ARGV:
--   1 lease: ms until a worker that no longer beats is dead
--   for each worker (2): consumer, running (entry ids with a space between, '=' unchanged)
-- RETURN: the server's time in ms, the earliest deadline of any worker in ms (-1 none), paused (0 or
--   1), the positions (from 1) of workers whose details are not here: they should register again
-- COST: TIME + PERSIST + ZREVRANGE + ZRANGE + HGET, a worker ZADD + HEXISTS, and HSET where `running`
--   changed
-- WHY: one lease a worker, not one a task: a living worker keeps a ten-hour task and renews
--   nothing. The answer says when it is worth looking for the dead, so nobody polls. A worker that
--   was taken for dead, or whose server lost its memory, must register again: without its names
--   the others would bury the tasks that only it knows.
local GRACE_LIMIT = 1000
--@include now
--@include full
--@include grace
local now, lease = now_ms(), tonumber(ARGV[1])
allow_growth(KEYS[1])
extend_after_silence(KEYS[1], now, lease)
local deadline, strangers = int(now + lease), {}
for at = 2, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], deadline, ARGV[at])
  if redis.call('HEXISTS', KEYS[2] .. ARGV[at], 'started_ms') == 0 then strangers[#strangers + 1] = at / 2 end
  if ARGV[at + 1] ~= '=' then redis.call('HSET', KEYS[2] .. ARGV[at], 'running', ARGV[at + 1]) end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return { now, tonumber(first[2] or -1), tonumber(redis.call('HGET', KEYS[3], 'paused') or 0), strangers }
