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
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 dead_ttl: how long a failed task is kept, ms
--   4 limit: most entries moved by this call
--   5 max_recoveries: a task that was recovered more often than this is a dead letter
--   6 consumer: a worker reported dead, or '' for one whose deadline has passed
--   7 started: '*' when nobody knows what it had started; else 'only', and what follows is the list
--   for each started entry (1): entry
-- RETURN: recovered, dead, more (1 when the call should be made again), the consumer ('' none)
-- COST: XPENDING, and per entry XRANGE + XACK + XDEL + XADD + HSET + XADD of history
-- WHY: the deadline is checked here, by the server's clock, so a worker that beat a moment ago is
--   left alone. Only work that may have been running is charged a recovery: the keeper of a
--   worker process knows exactly what it had started, and what merely waited there goes back
--   uncounted and whatever its count. DELCONSUMER throws pending entries away, hence the look
--   before it. An entry that is no task is set aside: see lib/corrupt.lua.
local STREAM, TASK, HISTORY, COUNTERS, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local WAITERS, INBOX, DELAYED = KEYS[6], KEYS[7], nil
local BATCH, SETTLED = KEYS[10], KEYS[11]
local GROUP, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], tonumber(ARGV[3])
local LIMIT, MAX_RECOVERIES = tonumber(ARGV[4]), tonumber(ARGV[5])
--@include now
--@include entry
--@include requeue
--@include finish
--@include batch
--@include corrupt
local now, consumer = now_ms(), ARGV[6]
if consumer == '' then
  consumer = redis.call('ZRANGEBYSCORE', KEYS[8], '-inf', '(' .. int(now), 'LIMIT', 0, 1)[1]
  if not consumer then return { 0, 0, 0, '' } end
end
local exact, started = ARGV[7] == 'only', {}
for at = 8, #ARGV do started[ARGV[at]] = true end
local page = redis.pcall('XPENDING', STREAM, GROUP, '-', '+', LIMIT, consumer)
if page.err then page = {} end
local recovered, dead = 0, 0
for i = 1, #page do
  local entry = page[i][1]
  local task = read(entry)
  drop(entry)
  if sound(task) then
    local charged = not exact or started[entry]
    local count = tonumber(task.recovered) + (charged and 1 or 0)
    if charged and count > MAX_RECOVERIES then
      local error = cjson.encode({ type = 'WorkerLost', traceback = '', message = 'the worker died '
        .. 'while it ran this task, ' .. count .. ' times in all; the limit is ' .. MAX_RECOVERIES })
      finish(task.id, 'failed', task.name, task.attempt, entry, consumer, '', error, '0',
        inbox_of(task.opts), 'WorkerLost', int(now), task)
      tally_one(task.opts, task.id, 'failed', int(now))
      redis.call('HINCRBY', COUNTERS, 'failed', 1)
      dead = dead + 1
    else
      task.recovered = int(count)
      requeue(task, nil, 0, '', now)
      if charged then
        -- Its worker knew its name: waiting for one that does begins anew (see park).
        redis.call('HDEL', TASK .. task.id, 'unknown_ms', 'parked_ms')
        log_attempt(task.id, task.name, 'recovered', consumer, task.attempt, entry, '', 'WorkerLost')
        redis.call('HINCRBY', COUNTERS, 'recovered', 1)
      end
      recovered = recovered + 1
    end
  elseif task then
    set_aside(entry, task, consumer, 'fields are missing or are no numbers', DEAD_TTL, int(now))
    dead = dead + 1
  end
end
if #page == LIMIT then return { recovered, dead, 1, consumer } end
redis.pcall('XGROUP', 'DELCONSUMER', STREAM, GROUP, consumer)
redis.call('ZREM', KEYS[8], consumer)
redis.call('DEL', KEYS[9] .. consumer)
return { recovered, dead, 0, consumer }
