-- set_aside(entry, raw, consumer, reason, dead_ttl, now): an entry that is no task becomes the dead
-- letter corrupt-<entry> with its raw fields under 'raw:<field>': it is seen, inspected and purged
-- like any other, and a replay refuses it, for there is no task. The entry is the caller's to
-- drop, afterwards. It notes what undoes it (see whole).
local function set_aside(entry, raw, consumer, reason, dead_ttl, now)
  local id = 'corrupt-' .. entry
  local error = cjson.encode({ type = 'CorruptEntry', message = reason, traceback = '' })
  redis.call('HSET', TASK .. id, 'state', 'failed', 'entry', entry, 'name', raw.name or '', 'error', error,
    'worker', consumer, 'attempt', '1', 'finished_ms', now, 'corrupt', '1')
  undoing('DEL', TASK .. id)
  for field, value in pairs(raw) do redis.call('HSET', TASK .. id, 'raw:' .. field, value) end
  redis.call('PEXPIRE', TASK .. id, dead_ttl)
  redis.call('ZADD', DEAD, now, id)
  undoing('ZREM', DEAD, id)
  beside(redis.pcall('HINCRBY', COUNTERS, 'failed', 1))
end
