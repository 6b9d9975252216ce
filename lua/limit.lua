-- limit: what holds for a key of the gate: its rule, whether it is paused, a penalty; what has room now goes in.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 history_max: events kept, about
--   2 key: or a pattern: what stands before the first colon, the colon, and *
--   3 rule: its words; '' leaves it, '-' takes it away
--   4 paused: 1, 0, or '' as it is
--   5 penalty: for how long nothing goes in, ms; '' none
-- RETURN: the rule that held before, '' for none
-- COST: HGET + HSET, and HSCAN for a pattern: a thousand fields a step; what follows: see lib/follow_up.lua
-- WHY: a rule holds at once for all that wait: whoever has room by it goes in now, and whoever has none
--   stays. Of a pattern, all keys that have waiting tasks are followed up, by and by. Workers hear which
--   names have a rule, and hand back what they read without its key: see regate.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local HISTORY_MAX, TTL = ARGV[1], 86400000
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
local KEY, RULE, PAUSED, PENALTY = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
--@include now
--@include fault
--@include whole
--@include look
--@include attempt
--@include history
--@include options
--@include later
--@include notify
--@include lanes
--@include batch
--@include tally
--@include room
--@include slots
--@include together
--@include turns
--@include gate
--@include unstarted
--@include more
--@include follow_up
local before = redis.call('HGET', LIMITS, 'r' .. KEY) or ''
if RULE == '-' then
  redis.call('HDEL', LIMITS, 'r' .. KEY)
elseif RULE ~= '' then
  redis.call('HSET', LIMITS, 'r' .. KEY, RULE)
end
if PAUSED == '1' then
  redis.call('HSETNX', LIMITS, 'p' .. KEY, int(NOW))
elseif PAUSED == '0' then
  redis.call('HDEL', LIMITS, 'p' .. KEY)
end
-- A name with a rule or a pause is known to the workers of all lanes, for tasks that do not name its key.
if string.sub(KEY, 1, 5) == 'name:' then
  local name = string.sub(KEY, 6)
  local has = redis.call('HMGET', LIMITS, 'r' .. KEY, 'p' .. KEY)
  for _, lane in ipairs({ '', '!high', '!low' }) do
    local meta, kept = 'meta:' .. BASE .. lane, {}
    for other in string.gmatch(look('', 'HGET', meta, 'names') or '', '[^\n]+') do
      if other ~= name then kept[#kept + 1] = other end
    end
    if has[1] or has[2] then kept[#kept + 1] = name end
    if #kept > 0 then
      redis.pcall('HSET', meta, 'names', table.concat(kept, '\n'))
    else
      redis.pcall('HDEL', meta, 'names')
    end
    redis.pcall('PUBLISH', 'wake:' .. BASE .. lane, 'names')
  end
end
if PENALTY ~= '' then
  local now = standing({ key = KEY })
  local each = now.rule.rate and now.rule.per / now.rule.rate or 0
  local tat = NOW + tonumber(PENALTY) + ((now.rule.burst or 1) - 1) * each
  redis.call('HSET', LIMITS, 't' .. KEY, string.format('%.3f', math.max(tat, now.tat)))
end
if string.sub(KEY, -1) == '*' then
  later('keys', string.sub(KEY, 1, -2), '0')
else
  later('more', KEY)
end
follow_up()
return before
