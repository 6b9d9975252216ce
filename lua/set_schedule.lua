-- set_schedule: a schedule is made, changed, paused, resumed or deleted.
-- KEYS:
--   1 stream
--   2 delayed
-- ARGV:
--   1 name
--   2 rule: when it fires, small JSON of ours; '' leaves rule, definition and payload, '-' deletes it
--   3 definition: what it adds, small JSON of ours
--   4 payload
--   5 source: who declared it
--   6 paused: 1, 0, or '' as it is
--   7 next: when it fires next, ms, where its rule is another or a pause ends
--   8 anchor: from when an interval counts, ms
--   9 again: how long after a fire that nobody finished it is due again, ms
--   10 most: schedules of a queue
--   11 keeps: stored functions that its tasks need, one a line
-- RETURN: a word (new, changed, same, deleted, unknown, late: `next` has been, full, missing: what it keeps is not
--   there), and the record as it was
-- COST: HGET + HSET, ZADD twice, ZRANGE twice; the same again HGET + ZSCORE twice; PERSIST or PEXPIRE a stored function
-- WHY: what is set again as it is keeps its next time, whoever sets it: a schedule that is declared with
--   every start of a program fires all the same. A time that has been does not come again. A changed rule
--   counts from now; the version is another, so that no scheduler fires by what it has read before. A stored
--   function stays as long as the record that names it, which no other does, and a week for tasks that are there.
local STREAM, DELAYED = KEYS[1], KEYS[2]
local NAME, RULE, PAUSED, NEXT = ARGV[1], ARGV[2], ARGV[6], ARGV[7]
--@include now
--@include schedules
local has, payload, value = schedule(NAME)
local BLOB, WEEK = 'blob:' .. string.match(STREAM, '^[^!]*') .. ':', 604800000
-- Lets what a record kept expire, but for those names.
local function let_go(kept, names)
  for name in string.gmatch(kept or '', '[^\n]+') do
    if not string.find('\n' .. names .. '\n', '\n' .. name .. '\n', 1, true) then
      redis.pcall('PEXPIRE', BLOB .. name, WEEK)
    end
  end
end
if RULE == '-' then
  if redis.call('HDEL', SCHEDULES, NAME) == 0 then return { 'unknown', '' } end
  let_go(has and has.keeps, '')
  for _, lane in ipairs({ '', '!high', '!low' }) do
    if redis.call('ZREM', due_of(lane), NAME) == 1 then ring(lane) end
  end
  return { 'deleted', value }
end
if RULE == '' and not has then return { 'unknown', '' } end
if not value and redis.call('HLEN', SCHEDULES) >= tonumber(ARGV[10]) then return { 'full', '' } end
local now, made = now_ms(), { fired = 0, skipped = 0, past = 0, last = '', last_ms = 0, version = 0, fault = '' }
for field, kept in pairs(has or {}) do made[field] = kept end
if RULE ~= '' then
  for name in string.gmatch(ARGV[11], '[^\n]+') do
    if redis.call('PERSIST', BLOB .. name) == 0 and redis.call('EXISTS', BLOB .. name) == 0 then
      return { 'missing', '' }
    end
  end
  made.keeps = ARGV[11]
  made.rule, made.definition, made.source, made.lane = RULE, ARGV[3], ARGV[5], OF_LANE
  payload = ARGV[4]
end
local was_paused = has and has.paused or false
made.paused = PAUSED == '1' or PAUSED == '' and was_paused
local goes_on = has and has.rule == made.rule and not (was_paused and not made.paused)
if not goes_on then
  local next = tonumber(NEXT)
  if has and next <= has.past and has.past - now < 86400000 then return { 'late', value } end
  made.next, made.anchor = next, tonumber(ARGV[8])
end
local same = goes_on and made.lane == has.lane and made.paused == was_paused
  and made.definition == has.definition and string.sub(value, -#payload - 1) == '\n' .. payload
if not same or made.source ~= has.source then
  if not same then made.version, made.again = math.max(now, made.version + 1), tonumber(ARGV[9]) end
  redis.call('HSET', SCHEDULES, NAME, cjson.encode(made) .. '\n' .. payload)
  let_go(has and has.keeps, made.keeps or '')
end
local due = due_of(made.lane)
if has and has.lane ~= made.lane and redis.call('ZREM', due_of(has.lane), NAME) == 1 then ring(has.lane) end
if made.paused then
  if redis.call('ZREM', due, NAME) == 1 then ring(made.lane) end
elseif not same or not redis.call('ZSCORE', due, NAME) or not redis.call('ZSCORE', DELAYED, ALARM) then
  redis.call('ZADD', due, int(made.next), NAME)
  ring(made.lane)
end
return { same and 'same' or value and 'changed' or 'new', value or '' }
