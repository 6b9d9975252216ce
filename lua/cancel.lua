-- cancel: tasks that wait are cancelled; a running task is left alone.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 history
--   5 counters
--   6 waiters
--   7 inbox_prefix
--   8 batch_prefix
--   9 settled_prefix
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 ttl: how long the record of a cancelled task is kept, ms
--   for each task (1): id
-- RETURN: for each task 'cancelled', 'running', its settled state, or 'unknown' (also when its record is
--   none); an error when one cannot be cancelled: what was not answered is as it was
-- COST: XDEL of nothing, per task HMGET + (ZREM twice, or XPENDING + XRANGE + XDEL) + HSET + PEXPIRE + XADD
--   of history + HINCRBY
-- WHY: an entry that is pending has been handed to a worker, which may have started it; only its
--   settlement may end it. One that is not pending can be deleted: no worker has seen it. That it can
--   leave its place is proved before its record is written; it leaves it afterwards.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WAITERS, INBOX = KEYS[6], KEYS[7]
local BATCH, SETTLED = KEYS[8], KEYS[9]
local GROUP, HISTORY_MAX, TTL = ARGV[1], ARGV[2], ARGV[3]
--@include now
--@include fault
--@include whole
--@include pending
--@include look
--@include entry
--@include history
--@include notify
--@include options
--@include batch
--@include tally
local now, answer = int(now_ms()), {}
local function written(id, name, attempt, entry, delayed)
  local record = TASK .. id
  redis.call('HSET', record, 'state', 'cancelled', 'entry', entry, 'name', name, 'attempt', attempt,
    'finished_ms', now)
  if delayed then
    undoing('HSET', record, 'state', 'delayed')
    undoing('HDEL', record, 'finished_ms')
  else
    undoing('HDEL', record, 'state', 'name', 'attempt', 'finished_ms')
  end
  redis.call('PEXPIRE', record, TTL)
  undoing('PERSIST', record)
  local logged = log_attempt(id, name, 'cancelled', '', attempt, entry, '', '')
  if logged then undoing('XDEL', HISTORY, logged) end
  beside(redis.pcall('HINCRBY', KEYS[5], 'cancelled', 1))
end
local function cancelled(id, name, attempt, entry, opts, delayed)
  local batch = countable(option(opts, 'batch'))
  local fault = whole(written, id, name, attempt, entry, delayed)
  if fault then return error(fault, 0) end
  if delayed then
    redis.call('ZREM', DELAYED, id)
    redis.pcall('HDEL', TASK .. id, 'payload', 'opts', 'recovered', 'reason')
  else
    redis.call('XDEL', STREAM, entry)
  end
  notify_all(id, 'cancelled', '', option(opts, 'inbox'), false)
  tally_one(batch, id, 'cancelled', now)
  answer[#answer + 1] = 'cancelled'
end
redis.call('XDEL', STREAM, '0-0')
for at = 4, #ARGV do
  local id = ARGV[at]
  local record = look({}, 'HMGET', TASK .. id, 'state', 'entry', 'name', 'attempt', 'opts')
  if record[1] == 'delayed' then
    redis.call('ZREM', DELAYED, '')
    cancelled(id, record[3] or '', record[4] or '', '', record[5], true)
  elseif record[1] then
    answer[#answer + 1] = record[1]
  elseif not record[2] then
    answer[#answer + 1] = 'unknown'
  else
    local entry = record[2]
    if #pending(entry, entry, 1) == 1 then
      answer[#answer + 1] = 'running'
    else
      local task = read(entry)
      if task and task.id == id then
        cancelled(id, task.name or '', task.attempt or '', entry, task.opts, false)
      else
        -- The stream was trimmed or deleted by other hands: nothing is left that could run.
        redis.call('DEL', TASK .. id)
        redis.pcall('HDEL', WAITERS, id)
        answer[#answer + 1] = 'unknown'
      end
    end
  end
end
return answer
