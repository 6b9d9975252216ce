-- open_batch: a batch is opened, or found as it was opened before.
-- KEYS:
--   1 batches
--   2 batch_prefix
-- ARGV:
--   1 batch
--   2 name: its own, or what its tasks are called
--   3 total: how many tasks it has
--   4 ttl: when a batch that is never finished is forgotten, ms
-- RETURN: 1 when it was opened by this call or 0, and its total
-- COST: TIME + HSETNX + HSET + PEXPIRE + ZADD + ZREMRANGEBYSCORE of expired ones
-- WHY: the list of batches and the batch itself appear together, or neither; sent again, it finds
--   itself.
--@include now
--@include fault
--@include whole
local key, now = KEYS[2] .. ARGV[1], now_ms()
if redis.call('HSETNX', key, 'total', ARGV[3]) == 0 then
  return { 0, tonumber(redis.call('HGET', key, 'total')) }
end
local function open()
  undoing('DEL', key)
  redis.call('HSET', key, 'name', ARGV[2], 'created_ms', int(now))
  redis.call('PEXPIRE', key, ARGV[4])
  beside(redis.pcall('ZADD', KEYS[1], int(now), ARGV[1]))
end
local fault = whole(open)
if fault then return redis.error_reply(fault) end
redis.pcall('ZREMRANGEBYSCORE', KEYS[1], '-inf', int(now - tonumber(ARGV[4])))
return { 1, tonumber(ARGV[3]) }
