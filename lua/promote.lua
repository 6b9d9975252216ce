-- promote: moves due tasks from the delayed set to the stream, the earliest first.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 limit: most tasks moved by this call
-- RETURN: moved, the next due time in ms (-1 when nothing waits), the server's time in ms, the broken: a
--   list of id, an error's words: its record cannot be read, and it is due again in five seconds
-- COST: one ZRANGEBYSCORE, one ZREM of nothing, one ZREM and, per task, HMGET + XADD + HSET + HDEL
-- WHY: the ZREM of nothing proves that ids can leave the set, and takes no memory, so a full server
--   allows what follows. Each task is moved whole or not at all, and one whose record cannot be
--   read holds up no other. All XADDs before the ZREM, so that nothing is lost in between. An id
--   whose record does not say `delayed` has no business here and only leaves the set. Any number
--   of schedulers may call it: the second to call finds nothing.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
--@include now
--@include fault
--@include whole
--@include attempt
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', int(now), 'LIMIT', 0, ARGV[1])
if #due > 0 then redis.call('ZREM', DELAYED, '') end
local function ready(id, record, kept)
  local entry = add(id, kept[1], kept[2], kept[3] or '1', kept[4] or '0', kept[5] or '')
  undoing('XDEL', STREAM, entry)
  redis.call('HSET', record, 'entry', entry)
  undoing('HSET', record, 'entry', '')
  redis.call('HDEL', record, 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts')
end
local leaving, broken, refused = {}, {}, nil
for i = 1, #due do
  local record = TASK .. due[i]
  local kept = redis.pcall('HMGET', record, 'name', 'payload', 'attempt', 'recovered', 'opts', 'state')
  if kept.err and not denied(kept.err) then
    broken[#broken + 1] = due[i]
    broken[#broken + 1] = kept.err
  else
    refused = kept.err
    if kept[1] and kept[2] and kept[6] == 'delayed' then refused = whole(ready, due[i], record, kept) end
    if refused then break end -- by the stream, or for want of a right: so will the others be
    leaving[#leaving + 1] = due[i]
  end
end
for from = 1, #leaving, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #leaving)
  redis.call('ZREM', DELAYED, unpack(leaving, from, to))
end
if refused then return redis.error_reply(refused) end
for i = 1, #broken, 2 do redis.call('ZADD', DELAYED, int(now + 5000), broken[i]) end
local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
return { #leaving, first[2] and tonumber(first[2]) or -1, now, broken }
