-- rights: what a worker will do and its user may not.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 history
--   5 counters
--   6 dead
--   7 waiters
--   8 inbox_prefix
--   9 workers
--   10 worker_prefix
--   11 meta
--   12 batch_prefix
--   13 settled_prefix
--   14 limits
--   15 waiting
--   16 waiting_prefix
--   17 shares
--   18 unique
--   19 dependants_prefix
--   20 items_prefix
--   21 event_prefix
--   22 expecting_prefix
--   23 schedules
--   24 due
-- ARGV:
--   1 group
--   2 consumer: a name that no other has
--   3 channel: where schedulers listen
-- RETURN: what is refused: a flat list of command, key or channel, the error's words
-- COST: some hundred commands, once a worker process
-- WHY: a right that is missing shows before a task is touched, not in the midst of one. ACL DRYRUN is not
--   for everybody and not on every server: so each command is made, on each key, in a form that
--   changes nothing (of what is not there; or with an argument that is refused, which a server
--   sees after it has seen to the rights). The one key that is written is the worker's own.
--@include fault
local refused = {}
local function may(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) ~= 'table' or not reply.err or not denied(reply.err) then return true end
  refused[#refused + 1] = command
  refused[#refused + 1] = ({ ... })[1] or ''
  refused[#refused + 1] = reply.err
end
local GROUP, NOBODY = ARGV[1], ARGV[2]
local STREAM, TASK, INBOX, WORKER = KEYS[1], KEYS[3] .. NOBODY, KEYS[8] .. NOBODY, KEYS[10] .. NOBODY
may('TIME')
may('PUBLISH', ARGV[3], '')
may('XREADGROUP', 'GROUP', GROUP, NOBODY, 'STREAMS', STREAM, 'x')
may('XADD', STREAM, '0-0', 'id', '')
may('XACK', STREAM, GROUP, '0-0')
may('XDEL', STREAM, '0-0')
may('XRANGE', STREAM, '0-0', '0-0')
may('XPENDING', STREAM, GROUP, '0-0', '0-0', 1)
may('XGROUP', 'CREATE', STREAM, GROUP, 'x')
may('XGROUP', 'DELCONSUMER', STREAM, GROUP, '')
may('XINFO', 'GROUPS', STREAM)
may('XINFO', 'CONSUMERS', STREAM, GROUP)
may('PERSIST', TASK)
for _, set in ipairs({ KEYS[2], KEYS[6], KEYS[9], KEYS[15], KEYS[16] .. NOBODY, KEYS[17],
  KEYS[22] .. NOBODY, KEYS[24] }) do
  may('ZADD', set, 'XX', 0, '')
  may('ZREM', set, '')
  may('ZRANGE', set, 0, 0)
  may('ZREVRANGE', set, 0, 0)
  may('ZRANGEBYSCORE', set, 0, 0, 'LIMIT', 0, 1)
end
may('ZSCORE', KEYS[9], '')
for _, hash in ipairs({ TASK, KEYS[5], KEYS[7], WORKER, KEYS[11], KEYS[12] .. NOBODY, KEYS[14], KEYS[18], KEYS[23],
  'wishes:' .. STREAM .. ':' .. NOBODY }) do
  may('HGET', hash, '')
  may('HMGET', hash, '')
  may('HDEL', hash, '')
  may('HSET', hash, 'field', 'value', 'no value')
  may('HINCRBY', hash, '', 'x')
end
may('HGETALL', 'wishes:' .. STREAM .. ':' .. NOBODY)
may('HEXISTS', WORKER, '')
may('HSETNX', KEYS[7], '')
may('HSCAN', KEYS[14], 'x')
local line = KEYS[19] .. NOBODY
if may('RPUSH', line, '') then redis.pcall('DEL', line) end
may('LPOP', line)
may('LRANGE', line, 0, 0)
may('GET', KEYS[21] .. NOBODY)
may('TYPE', WORKER)
may('EXISTS', KEYS[7])
may('PTTL', KEYS[12] .. NOBODY)
if may('DEL', WORKER) then
  may('HSETNX', WORKER, 'started_ms', '0')
  redis.call('DEL', WORKER)
end
for _, stream in ipairs({ KEYS[4], INBOX, KEYS[13] .. NOBODY }) do may('XADD', stream, '0-0', 'id', '') end
for _, key in ipairs({ TASK, INBOX, KEYS[12] .. NOBODY, KEYS[13] .. NOBODY }) do may('PEXPIRE', key, 1) end
local items = KEYS[20] .. NOBODY
may('XADD', items, '0-0', 'n', '')
may('XRANGE', items, '0-0', '0-0')
may('XDEL', items, '0-0')
may('XTRIM', items, 'MINID', '0')
may('PEXPIRE', items, 1)
may('DEL', items)
may('PEXPIRE', KEYS[22] .. NOBODY, 1)
return refused
