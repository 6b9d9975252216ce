-- register: a worker process announces itself before it fetches its first task.
-- KEYS:
--   1 workers
--   2 worker_prefix
--   3 meta
-- ARGV:
--   1 lease: ms until a worker that no longer beats is dead
--   2 group
--   3 consumer
--   for each detail (2): field, value
-- RETURN: the group and the lease (ms) that this queue's other workers use
-- COST: TIME + PERSIST + ZREVRANGE + TYPE + ZADD + HSETNX + HSET a detail + HMGET + HSET
-- WHY: two groups on one queue would each take the other's work away, and two leases let the more
--   impatient worker rob the other: the caller warns when the answer is not its own setting.
--   The grace rule is the same as in heartbeat: the newcomer must not find a silent queue and judge. A
--   worker's key is its own: what else stands there goes.
local GRACE_LIMIT = 1000
--@include now
--@include maxmemory
--@include grace
--@include look
local now, lease = now_ms(), tonumber(ARGV[1])
local used = look({}, 'HMGET', KEYS[3], 'group', 'lease_ms')
allow_growth(KEYS[1])
local alone = extend_after_silence(KEYS[1], now, lease)
local kind = redis.call('TYPE', KEYS[2] .. ARGV[3]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[2] .. ARGV[3]) end
redis.call('HSETNX', KEYS[2] .. ARGV[3], 'started_ms', int(now))
for at = 4, #ARGV, 2 do redis.call('HSET', KEYS[2] .. ARGV[3], ARGV[at], ARGV[at + 1]) end
redis.call('ZADD', KEYS[1], int(now + lease), ARGV[3])
if alone or not used[1] then
  redis.pcall('HSET', KEYS[3], 'group', ARGV[2], 'lease_ms', ARGV[1])
  return { ARGV[2], lease }
end
return { used[1], tonumber(used[2]) or lease }
