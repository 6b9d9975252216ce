-- suspend: attempts that ended to go on later: their tasks sleep, or wait for an event.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 history
--   5 counters
--   6 batch_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 channel: where schedulers listen for an earlier due time
--   for each attempt (11): entry, id, kind (sleep|event), name, attempt, run_ms, number (which step of the task this
--     is), event (its name; '' of a sleep), delay (ms; '' without end), taken (how many messages of that name it
--     has taken), last (the event of that name that it took last; '-' none)
-- RETURN: the attempts that were refused, as retry answers them
-- COST: XACK and XDEL of nothing, one EXISTS; per attempt XPENDING + XRANGE + HMGET + HSET twice + ZADD + XADD of
--   history + HINCRBY + XACK + XDEL + HDEL; of an event HGET + GET, ZADD + ZRANGE + ZREVRANGE + PEXPIRE; per gated
--   task and key HINCRBY + HMGET, and what follows
-- WHY: the step is written as the task is put off, so no crash can do one without the other. An event that came since
--   it was looked for is taken here, and the task goes on at once. It is no attempt more: see a snooze. Keys are
--   given back as by a retry. Who waits for an event that is for all is in a list under its name, which expires a day
--   after the last of them does; two of the oldest are looked at each time, and leave it where they wait no more.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BATCH, GROUP, CONSUMER, HISTORY_MAX = KEYS[6], ARGV[1], ARGV[2], ARGV[3]
local COUNTERS, DEAD, WAITERS, INBOX, SETTLED, TTL = nil
local WAITING, NO_END_MS, DAY_MS = 'waiting:' .. string.match(STREAM, '^[^!]*'), 1000000000000, 86400000
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include attempt
--@include requeue
--@include postpone
--@include wake
--@include history
--@include options
--@include later
--@include wish
--@include deadline
--@include started
--@include look
--@include ref
--@include step
--@include event
local refused, earliest, now = {}, 0, now_ms()
local slept, done = {}, {} -- of tasks that hold keys; what was taken of events
local base, lane = string.match(STREAM, '^([^!]*)(.*)$')
local function named(id) return lane == '' and id or lane .. '\n' .. id end
-- Those that wait for an event no more leave its list: of the two with the earliest ends.
local function sweep(list, event)
  local refs = redis.call('ZRANGE', list, 0, 1)
  for i = 1, #refs do
    local has = look({}, 'HMGET', record_of(refs[i]), 'state', 'reason', 'awaits')
    local of = string.match(has[3] or '', '^%d+ %d+ %d+ %S+ (.*)$')
    if has[1] ~= 'delayed' or has[2] ~= 'event' or of ~= event then redis.call('ZREM', list, refs[i]) end
  end
end
-- The list of those that wait for an event has one more.
local function listed(id, event, due)
  local list = 'expecting:' .. base .. ':' .. event
  sweep(list, event)
  redis.call('ZADD', list, int(due), named(id))
  undoing('ZREM', list, named(id))
  local last = redis.call('ZREVRANGE', list, 0, 0, 'WITHSCORES')
  redis.call('PEXPIRE', list, int(tonumber(last[2]) - now + DAY_MS))
end
local function put_off(at, task)
  local entry, id, event, record = ARGV[at], task.id, ARGV[at + 7], TASK .. task.id
  local number, taken, last = ARGV[at + 6], ARGV[at + 9], ARGV[at + 10]
  local delay = tonumber(ARGV[at + 8] ~= '' and ARGV[at + 8] or NO_END_MS)
  local of_event, from, due, mark, body = ARGV[at + 2] == 'event', entry .. ' ' .. CONSUMER, 0, nil, nil
  if string.find(task.opts, '"gate"', 1, true) then task.opts = started_opts(task.opts) end
  local was = redis.call('HMGET', record, 'step:' .. number, 'steps', 'awaits')
  if of_event then mark, body = event_for(record, event, tonumber(taken), last) end
  if mark then
    requeue(entry, task, from)
  else
    due = postpone(entry, task, from, delay, ARGV[at + 2], now)
  end
  if was[1] then
    undoing('HSET', record, 'step:' .. number, was[1], 'steps', was[2] or '0')
  else
    undoing('HDEL', record, 'step:' .. number, was[2] and '' or 'steps')
  end
  if mark then
    keep_step(record, number, event .. '\n' .. int(now) .. ' 0 e ' .. mark, body)
    done[#done + 1] = { record, named(id), event, tonumber(taken), mark }
  else
    local head = of_event and event .. '\n' .. int(now) .. ' 0 w ' or 'sleep\n' .. int(now) .. ' 0 s '
    keep_step(record, number, head .. int(due), '')
    local awaits = of_event and table.concat({ int(due), number, taken, last, event }, ' ') or int(due)
    undoing('HDEL', record, 'awaits')
    redis.call('HSET', record, 'awaits', awaits)
    if of_event then listed(id, event, due) end
  end
  local logged = log_attempt(id, ARGV[at + 3], 'snoozed', CONSUMER, ARGV[at + 4], entry, ARGV[at + 5],
    of_event and 'event ' .. event or 'sleep')
  if logged then undoing('XDEL', HISTORY, logged) end
  beside(redis.pcall('HINCRBY', KEYS[5], 'snoozed', 1))
  return due
end
may_drop()
for at = 5, #ARGV, 11 do
  local entry, id = ARGV[at], ARGV[at + 1]
  local mine = owned({ entry }, CONSUMER)[entry]
  local task = mine and read(entry)
  if mine and not task then drop(entry) end
  if sound(task) then
    local fault, due = wish(entry, CONSUMER) and 'asked to end', nil
    if not fault then fault, due = whole(put_off, at, task) end
    if fault then
      refused[#refused + 1] = { (at + 6) / 11, fault }
    else
      drop(entry)
      if due ~= 0 then
        if string.find(task.opts, '"gate"', 1, true) then slept[#slept + 1] = { id, task.opts } end
        if earliest == 0 or due < earliest then earliest = due end
      end
      redis.pcall('HDEL', TASK .. id, 'unknown_ms', 'parked_ms')
      local batch = option(task.opts, 'batch')
      if batch ~= '' and redis.pcall('EXISTS', BATCH .. batch) == 1 then
        redis.pcall('HINCRBY', BATCH .. batch, 'snoozed', 1)
      end
    end
  elseif redis.pcall('HGET', TASK .. id, 'from') ~= entry .. ' ' .. CONSUMER then
    refused[#refused + 1] = (at + 6) / 11
  end
end
for i = 1, #done do pcall(took, done[i][1], done[i][2], done[i][3], done[i][4], done[i][5]) end
-- What sleeps gives its keys back, but for its turn of a strict order.
if #slept > 0 then
  TTL = 86400000
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
  for i = 1, #slept do
    pcall(give_back, slept[i][1], terms(option(slept[i][2], 'gate')).keys, true, true)
  end
  follow_up()
end
wake(earliest, ARGV[4])
return refused
