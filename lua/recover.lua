-- recover: a dead worker's pending tasks go back or to the dead letters; then the worker is removed.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 history
--   4 counters
--   5 dead
--   6 waiters
--   7 inbox_prefix
--   8 workers
--   9 worker_prefix
--   10 batch_prefix
--   11 settled_prefix
--   12 meta
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 dead_ttl: how long a failed task is kept, ms
--   4 limit: most entries moved by this call, about
--   5 max_recoveries: a task that was recovered more often than this is a dead letter
--   6 consumer: a worker reported dead, or '' for one whose deadline has passed
--   7 started: '*' when it is not known what it had started; else 'only', and what follows is the list
--   for each started entry (1): entry
-- RETURN: recovered, dead, more (1 when the call should be made again), the consumer ('' none), the
--   broken: a list of entry, an error's words: it could not be moved, and is pending
-- COST: XACK and XDEL of nothing, HGET and ZREVRANGE without a consumer, HGET for '*', XPENDING, and per
--   entry XRANGE + XADD + HSET + XADD of history + HINCRBY + XACK + XDEL
-- WHY: the deadline is checked here, by the server's clock, so a worker that beat a moment ago is
--   left alone. Only work that may have been running is charged a recovery: the supervisor of a
--   worker process knows exactly what it had started, and what merely waited there goes back
--   uncounted and whatever its count. Of a worker that cannot be asked any more, only as many are
--   charged as it has slots, the oldest: a worker starts its tasks in the order of their delivery,
--   and while one waits unstarted all slots are taken by older ones. What it held of its other
--   queues cannot be seen from here, so each queue charges its slots in full: an innocent task may be
--   charged, but of two queues neither spares a task that kills for the other's. DELCONSUMER throws
--   pending entries away, hence the look before it. An entry that is no task is set aside: see
--   lib/corrupt.lua. Each is moved whole or
--   not at all, and one that cannot be moved stops no other: it stays pending, its worker leaves
--   the list, and adopt gives it another deadline. The grace rule runs here too, before any
--   worker is judged, in every call. What was asked to end (see cancel) ends as cancelled and runs no
--   more: it counts as recovered here, for it is taken back.
local STREAM, TASK, HISTORY, COUNTERS, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local WAITERS, INBOX = KEYS[6], KEYS[7]
local BATCH, SETTLED, DELAYED, TTL = KEYS[10], KEYS[11], nil, 86400000
local GROUP, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], tonumber(ARGV[3])
local LIMIT, MAX_RECOVERIES = tonumber(ARGV[4]), tonumber(ARGV[5])
local GRACE_LIMIT = 1000
--@include now
--@include fault
--@include whole
--@include pending
--@include entry
--@include drop
--@include attempt
--@include requeue
--@include history
--@include finish
--@include options
--@include look
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
--@include corrupt
--@include grace
--@include wish
local now, consumer = now_ms(), ARGV[6]
may_drop()
if consumer == '' then
  local lease = tonumber(look(false, 'HGET', KEYS[12], 'lease_ms') or nil)
  if lease then extend_after_silence(KEYS[8], now, lease) end
  consumer = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', '(' .. int(now), 'LIMIT', 0, 1)[1]
  if not consumer then return { 0, 0, 0, '', {} } end
end
local exact, started = ARGV[7] == 'only', {}
for at = 8, #ARGV do started[ARGV[at]] = true end
local slots = not exact and tonumber(look(false, 'HGET', KEYS[9] .. consumer, 'slots') or nil) or nil
local recovered, dead, broken = 0, 0, {}
local function ended(entry, task, state, body, ttl)
  local batch = countable(option(task.opts, 'batch'))
  local fault = finished(task.id, state, task.name, task.attempt, entry, consumer, '', body, ttl,
    'WorkerLost', int(now), task)
  if fault then return error(fault, 0) end
  local ok, missing = pcall(beside, redis.pcall('HINCRBY', COUNTERS, state, 1))
  if not ok then
    unfinish(task.id, state, event)
    return error(said(missing), 0)
  end
  drop(entry)
  local gate = option(task.opts, 'gate')
  if gate ~= '' then closed(task.id, state, gate, true) end
  notify_all(task.id, state, body, option(task.opts, 'inbox'), true)
  tally_one(batch, task.id, state, int(now))
end
local function dead_letter(entry, task, count)
  return ended(entry, task, 'failed', cjson.encode({ type = 'WorkerLost', traceback = '', message =
    'the worker died while it ran this task, ' .. count .. ' times in all; the limit is '
    .. MAX_RECOVERIES }), '0')
end
local function put_back(entry, task, charged)
  requeue(entry, task)
  if not charged then return end
  local logged = log_attempt(task.id, task.name, 'recovered', consumer, task.attempt, entry, '', 'WorkerLost')
  if logged then undoing('XDEL', HISTORY, logged) end
  beside(redis.pcall('HINCRBY', COUNTERS, 'recovered', 1))
end
local function move(entry)
  local task, fault = read(entry), nil
  if sound(task) then
    local charged = started[entry] or not (exact or slots and slots <= 0)
    local count = tonumber(task.recovered) + (charged and 1 or 0)
    if wish(entry, consumer) then
      fault = whole(ended, entry, task, 'cancelled', 'asked to end; its worker is gone', '86400000')
      if fault then return fault end
      fulfilled(entry, consumer)
      recovered = recovered + 1
      if charged and slots then slots = slots - 1 end
      return nil
    end
    if charged and count > MAX_RECOVERIES then
      fault = whole(dead_letter, entry, task, count)
      if not fault then dead = dead + 1 end
      if slots then slots = slots - 1 end
      return fault
    end
    task.recovered = int(count)
    fault = whole(put_back, entry, task, charged)
    if fault then return fault end
    drop(entry)
    if charged and slots then slots = slots - 1 end
    -- Its worker knew its name: waiting for one that does begins anew (see park).
    if charged then redis.pcall('HDEL', TASK .. task.id, 'unknown_ms', 'parked_ms') end
    recovered = recovered + 1
    return nil
  end
  if task then
    local reason = 'fields are missing or are no numbers'
    fault = whole(set_aside, entry, task, consumer, reason, DEAD_TTL, int(now))
    if fault then return fault end
    dead = dead + 1
  end
  drop(entry) -- set aside, or gone: trimmed by other hands
end
local from, page = '-', nil
for _ = 1, 50 do -- page after page only past what cannot be moved
  page = pending(from, '+', LIMIT, consumer)
  for i = 1, #page do
    local entry = page[i][1]
    local fault = move(entry)
    if fault then
      broken[#broken + 1] = entry
      broken[#broken + 1] = fault
    end
    from = '(' .. entry
  end
  if #page < LIMIT or recovered + dead >= LIMIT then break end
end
follow_up()
if slots then redis.pcall('HSET', KEYS[9] .. consumer, 'slots', int(slots)) end -- for the next call
if #page == LIMIT and recovered + dead > 0 then return { recovered, dead, 1, consumer, broken } end
if #broken == 0 and #page < LIMIT then redis.pcall('XGROUP', 'DELCONSUMER', STREAM, GROUP, consumer) end
redis.call('ZREM', KEYS[8], consumer)
redis.call('DEL', KEYS[9] .. consumer)
if #broken == 0 then redis.pcall('DEL', 'wishes:' .. STREAM .. ':' .. consumer) end
return { recovered, dead, 0, consumer, broken }
