-- cancel: tasks that wait are cancelled; a running task is left alone, or asked to end.
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
--   3 channel: where the supervisors of workers listen
--   4 ttl: how long the record of a cancelled task is kept, ms
--   5 wish: what is wished of a running task: '' nothing, ask (that it ends), force (it, or its process)
--   for each task (1): id
-- RETURN: for each task 'cancelled', 'running' ('asked' where something is wished of it), its settled
--   state, or 'unknown' (also when its record is none); an error when one cannot be cancelled: what was
--   not answered is as it was
-- COST: XDEL of nothing, per task HMGET + (ZREM twice, or XPENDING + XRANGE + XDEL) + HSET + PEXPIRE + XADD
--   of history + HINCRBY, and what follows from it: see lib/follow_up.lua; per wish HGET + HSET + HEXISTS +
--   HSET, and PUBLISH a worker
-- WHY: an entry that is pending has been handed to a worker, which may have started it; only its
--   settlement may end it. One that is not pending can be deleted: no worker has seen it. That it can
--   leave its place is proved before its record is written; it leaves it afterwards. A wish is kept
--   under the worker that has the entry, and says nothing of how the task ends: a task that ends first
--   has succeeded. The supervisor of the worker hears of it at once by the channel, and with every
--   heartbeat until the entry is gone, so a lost message only delays. It dies with the worker.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local COUNTERS, WAITERS, INBOX, DEAD = KEYS[5], KEYS[6], KEYS[7], nil
local BATCH, SETTLED = KEYS[8], KEYS[9]
local GROUP, HISTORY_MAX, CHANNEL, TTL, WISH = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
--@include now
--@include fault
--@include whole
--@include pending
--@include look
--@include entry
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
--@include ask
local answer = {}
redis.call('XDEL', STREAM, '0-0')
-- Cancels one; raises what fails.
local function cancel(id)
  local record = look({}, 'HMGET', TASK .. id, 'state', 'entry', 'name', 'attempt', 'opts')
  local task = { was = record[1] or nil, entry = record[2], name = record[3] or '', attempt = record[4] or '1',
    opts = record[5] }
  if record[1] == 'delayed' or record[1] == 'waiting' then
    redis.call('ZREM', record[1] == 'delayed' and DELAYED or WAITING, '')
    ended_unstarted(id, task, 'cancelled', '')
    answer[#answer + 1] = 'cancelled'
  elseif record[1] then
    answer[#answer + 1] = record[1]
  elseif not record[2] then
    answer[#answer + 1] = 'unknown'
  else
    local entry = record[2]
    local held = pending(entry, entry, 1)
    if #held == 1 then
      if WISH ~= '' then ask_to_end(entry, held[1][2], WISH, CHANNEL) end
      answer[#answer + 1] = WISH == '' and 'running' or 'asked'
    else
      local fields = read(entry)
      if fields and fields.id == id then
        task.name, task.attempt, task.opts = fields.name or '', fields.attempt or '', fields.opts
        ended_unstarted(id, task, 'cancelled', '')
        answer[#answer + 1] = 'cancelled'
      else
        -- The stream was trimmed or deleted by other hands: nothing is left that could run.
        local waiting = redis.pcall('HGET', WAITERS, id)
        redis.call('DEL', TASK .. id)
        redis.pcall('HDEL', WAITERS, id)
        if type(waiting) == 'string' and string.find('\n' .. waiting .. '\n', '\n>\n', 1, true) then
          later('after', 't:' .. ref_of(id), 'cancelled')
        end
        answer[#answer + 1] = 'unknown'
      end
    end
  end
end
local fault
for at = 6, #ARGV do
  local ok, why = pcall(cancel, ARGV[at])
  if not ok then
    fault = why
    break
  end
end
follow_up()
if fault then return redis.error_reply(said(fault)) end
return answer
