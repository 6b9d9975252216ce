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
-- RETURN: 1 when it was set aside, 0 when the entry is not pending for this consumer
-- COST: XPENDING + XRANGE + XACK + XDEL + HSET + PEXPIRE + ZADD + HINCRBY
-- WHY: its dead letter is named corrupt-<entry>, so that it is seen, inspected and purged like any
--   other; the raw fields are kept under 'raw:<field>'. A replay refuses it: there is no task.
local STREAM, GROUP, CONSUMER = KEYS[1], ARGV[1], ARGV[2]
--@include now
--@include owned
--@include entry
local entry = ARGV[4]
if not owned({ entry }, CONSUMER)[entry] then return 0 end
local raw, now, id = read(entry) or {}, int(now_ms()), 'corrupt-' .. entry
drop(entry)
local error = cjson.encode({ type = 'CorruptEntry', message = ARGV[5], traceback = '' })
redis.call('HSET', KEYS[2] .. id, 'state', 'failed', 'entry', entry, 'name', raw.name or '', 'error', error,
  'worker', CONSUMER, 'attempt', '1', 'finished_ms', now, 'corrupt', '1')
for field, value in pairs(raw) do redis.call('HSET', KEYS[2] .. id, 'raw:' .. field, value) end
redis.call('PEXPIRE', KEYS[2] .. id, ARGV[3])
redis.call('ZADD', KEYS[3], now, id)
redis.call('HINCRBY', KEYS[4], 'failed', 1)
return 1
