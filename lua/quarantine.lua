-- quarantine: a stream entry that is no task is set aside with its raw fields; the queue goes on.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 dead
--   4 counters
-- ARGV:
--   1 group
--   2 consumer
--   3 dead_ttl: how long it is kept, ms
--   4 entry
--   5 reason
-- RETURN: 1 when this consumer set it aside, now or before; 0 when it is not pending for this consumer;
--   an error's words when it is broken: it could not be written, nothing of it was, and it is pending
-- COST: XPENDING + XRANGE + XACK and XDEL twice + HSET + PEXPIRE + ZADD + HINCRBY
-- WHY: no worker can run it, and nothing may be thrown away unseen: see lib/corrupt.lua.
local STREAM, TASK, DEAD, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include corrupt
local entry = ARGV[4]
if not owned({ entry }, CONSUMER)[entry] then
  return redis.pcall('HGET', TASK .. 'corrupt-' .. entry, 'worker') == CONSUMER and 1 or 0
end
local now = int(now_ms())
may_drop()
local fault = whole(set_aside, entry, read(entry) or {}, CONSUMER, ARGV[5], ARGV[3], now)
if fault then return fault end
drop(entry)
return 1
