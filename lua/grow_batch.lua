-- grow_batch: a batch has more tasks from now on, and what names their calls is kept with it.
-- KEYS:
--   1 stream
--   2 batch_prefix
--   3 settled_prefix
--   4 calls_prefix
--   5 dependants_prefix
-- ARGV:
--   1 batch
--   2 start: how many tasks it has
--   3 end: how many it has from now on
--   4 names: what names the calls of the new ones, in bytes of one length each
--   5 ttl: when a batch that is never finished is forgotten, ms
--   6 names_ttl: when what names its calls is, ms
-- RETURN: how many tasks it has: `end`, or what another client has made of it; -1 where there is no such batch
-- COST: HGET, SETRANGE, HSETNX, HSET, HDEL, PEXPIRE thrice; EXISTS + HSET where it had finished
-- WHY: of two clients that add tasks at the same time one takes these places, and the other sees by the names whose they
--   are. The names come first, in places that nobody else reads until the total says so; then the total: should the client
--   die here, the batch waits for tasks that the same call, made again, sends. One that had finished has not any more.
--   Sent again, it finds itself.
local BATCH, CALLS = KEYS[2], KEYS[4]
--@include now
--@include fault
local key, calls = BATCH .. ARGV[1], CALLS .. ARGV[1]
local total = redis.call('HGET', key, 'total')
if not total then return -1 end
if total ~= ARGV[2] then return tonumber(total) end
local size = string.len(ARGV[4]) / (tonumber(ARGV[3]) - tonumber(ARGV[2]))
redis.call('SETRANGE', calls, int(size * tonumber(total)), ARGV[4])
redis.call('PEXPIRE', calls, ARGV[6])
redis.call('HSETNX', key, 'opened', total)
redis.call('HSET', key, 'total', ARGV[3])
if redis.pcall('HDEL', key, 'finished_ms') == 1 then
  local lane = string.match(KEYS[1], '![a-z]+$')
  local ref = lane and lane .. '\n' .. ARGV[1] or ARGV[1]
  if redis.pcall('EXISTS', KEYS[5] .. 'b:' .. ref) == 1 then beside(redis.pcall('HSET', key, 'dependants', '1')) end
end
redis.pcall('PEXPIRE', key, ARGV[5])
redis.pcall('PEXPIRE', KEYS[3] .. ARGV[1], ARGV[5])
return tonumber(ARGV[3])
