-- promote: moves due tasks from the delayed set to the stream, the earliest first.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 limit: most tasks moved by this call
-- RETURN: moved, the next due time in ms (-1 when nothing waits), the server's time in ms
-- COST: one ZRANGEBYSCORE, one PERSIST, one ZREM and, per task, HMGET + XADD + HSET + HDEL
-- WHY: all XADDs before the ZREM: an error in between leaves ids in the set whose records no longer
--   say `delayed`, or tasks that are due again, never a lost one. An id whose record does not say
--   so has no business here and only leaves the set. Any number of schedulers may call it: whoever
--   comes second finds nothing.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
--@include now
--@include full
--@include entry
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', int(now), 'LIMIT', 0, ARGV[1])
if #due > 0 then allow_growth(DELAYED) end
for i = 1, #due do
  local record = TASK .. due[i]
  local kept = redis.call('HMGET', record, 'name', 'payload', 'attempt', 'recovered', 'opts', 'state')
  if kept[1] and kept[2] and kept[6] == 'delayed' then
    local entry = add(due[i], kept[1], kept[2], kept[3] or '1', kept[4] or '0', kept[5] or '')
    redis.call('HSET', record, 'entry', entry)
    redis.call('HDEL', record, 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts')
  end
end
for from = 1, #due, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #due)
  redis.call('ZREM', DELAYED, unpack(due, from, to))
end
local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
return { #due, first[2] and tonumber(first[2]) or -1, now }
