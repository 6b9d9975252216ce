-- resubmit: tasks run again as they are given now, unless they wait, run, or have a result that counts.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 dead
--   5 batch_prefix
-- ARGV:
--   1 channel: where schedulers listen for an earlier due time
--   2 history_max: events kept, about
--   3 call: a name of this very call; under the same name it may be sent again
--   for each task (7): id, name, payload, opts, due (as for enqueue), counted (the end that its batch has
--     counted, which is asked only where there is no record: succeeded|failed|cancelled, '' none),
--     outdated (1: a result that is there is no answer to this call; 1 or 0: steps that are there were another's,
--     and are forgotten; '': the task goes on after them)
-- RETURN: the tasks for which nothing was written: a position (from 1) when the task waits, runs or has
--   a result that counts; a position, an error's words and its id when the key of its record holds
--   something else. All others run again, by this call or by the same call sent before
-- COST: XADD, XDEL, and ZREM twice, of nothing; per task HMGET, and of one that runs again PTTL + ZSCORE +
--   HDEL of nothing + XADD (or ZADD) + HSET + HDEL, ZREM of a dead letter, PERSIST of what expires, and
--   EXISTS + HINCRBY twice + HDEL for its batch; HKEYS + HDEL where steps are forgotten
-- WHY: a client that dies in the midst leaves each task as it was, or waiting as it was given: payload,
--   options, place and the count of its batch change in one step. Otherwise a batch is complete
--   before its tasks are, or never. A task whose record has expired is added anew, and the end that
--   its batch has counted is counted no more. The record says which call did it, so that a call
--   sent again after a lost reply does not run once more what has ended in the meantime. First
--   what a full server refuses, then the proofs that each step can be undone, then each task, whole or
--   not at all: the HDEL that forgets its end, and the counts of its batch, come last.
local STREAM, DELAYED, TASK, DEAD, BATCH = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local HISTORY_MAX, TTL = ARGV[2], 86400000
local HISTORY, COUNTERS, WAITERS, INBOX, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include attempt
--@include look
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
--@include deadline
--@include unstarted
--@include more
--@include follow_up
--@include mark
--@include again
--@include uncount
--@include forget
--@include wake
local answer, now, earliest = {}, now_ms(), 0
-- Where a task waits from now on; answers its entry, '' in the delayed set.
local function placed(at, due, opts)
  local id = ARGV[at]
  if due == 0 then
    local entry = add(id, ARGV[at + 1], ARGV[at + 2], '1', '0', opts)
    undoing('XDEL', STREAM, entry)
    return entry
  end
  redis.call('ZADD', DELAYED, int(due), id)
  undoing('ZREM', DELAYED, id)
  return ''
end
local function again(at, due, record, kept)
  local id, ended = ARGV[at], kept[1] or ARGV[at + 5]
  local opts, gate = dated(ARGV[at + 3])
  local batch = option(opts, 'batch')
  -- An end of another batch stays counted there.
  if kept[4] and kept[4] ~= '' and option(kept[4], 'batch') ~= batch then ended = '' end
  batch = ended ~= '' and countable(batch) or ''
  local left, died = redis.call('PTTL', record), redis.call('ZSCORE', DEAD, id)
  redis.call('HDEL', record, '')
  local entry
  if gate == '' or due ~= 0 then entry = placed(at, due, opts) end
  if died then
    redis.call('ZREM', DEAD, id)
    undoing('ZADD', DEAD, died, id)
  end
  if left > 0 then
    redis.call('PERSIST', record)
    undoing('PEXPIRE', record, left)
  end
  if gate ~= '' and due == 0 then
    if kept[1] then
      undoing('HSET', record, 'state', kept[1], 'entry', kept[2] or '', 'opts', kept[4] or '')
      undoing('HDEL', record, 'from', 'resubmission')
    else
      undoing('DEL', record)
    end
    redis.call('HSET', record, 'from', 'resubmit', 'resubmission', ARGV[3])
    enter(id, { name = ARGV[at + 1], payload = ARGV[at + 2], attempt = '1', recovered = '0', opts = opts, gate = gate }, nil)
    lock(id, gate)
  elseif due == 0 then
    redis.call('HSET', record, 'entry', entry, 'from', 'resubmit', 'resubmission', ARGV[3])
    redis.call('HDEL', record, 'state', 'name', 'payload', 'opts', 'attempt', 'recovered')
  else
    redis.call('HSET', record, 'entry', '', 'from', 'resubmit', 'resubmission', ARGV[3],
      'state', 'delayed', 'reason', 'delay',
      'name', ARGV[at + 1], 'payload', ARGV[at + 2], 'attempt', '1', 'recovered', '0', 'opts', opts)
  end
  -- What has succeeded, or is another call now, does not go on where it was.
  local whole_again = kept[1] == 'succeeded' or ARGV[at + 6] ~= ''
  redis.call('HDEL', record, 'error', 'result', 'worker', 'run_ms', 'finished_ms', 'unknown_ms', 'parked_ms', 'progress',
    whole_again and 'checkpoint' or '', whole_again and 'items' or '')
  if whole_again and (kept[7] or kept[8]) then pcall(forget_steps, record) end
  pcall(uncount, batch, ended)
end
local full = redis.pcall('XADD', STREAM, '0-0', 'id', '') -- no entry can have this id
if not string.find(full.err, 'greater than 0-0', 1, true) then return full end
redis.call('XDEL', STREAM, '0-0')
redis.call('ZREM', DELAYED, '')
redis.call('ZREM', DEAD, '')
for at = 4, #ARGV, 7 do
  local record, due, when = TASK .. ARGV[at], 0, ARGV[at + 4]
  local kept = redis.pcall('HMGET', record, 'state', 'entry', 'resubmission', 'opts', 'corrupt', 'readers',
    'steps', 'events', 'after', 'read')
  if kept.err then
    if not string.find(kept.err, 'WRONGTYPE', 1, true) then
      follow_up()
      return kept
    end
    answer[#answer + 1] = { (at + 3) / 7, kept.err, ARGV[at] }
  elseif kept[3] ~= ARGV[3] then
    local waits = kept[1] == 'delayed' or kept[1] == 'waiting' or (kept[2] and not kept[1])
    if waits or kept[5] or (kept[1] == 'succeeded' and ARGV[at + 6] ~= '1') then
      answer[#answer + 1] = (at + 3) / 7
    else
      if when ~= '' then due = string.sub(when, 1, 1) == '+' and now + tonumber(when) or tonumber(when) end
      if due <= now then due = 0 end
      local fault = whole(again, at, due, record, kept)
      if fault then
        follow_up()
        return redis.error_reply(fault)
      end
      pcall(parent_again, ARGV[at], kept[6])
      if kept[9] and pcall(unread_of, ARGV[at], kept[9], kept[10]) then redis.call('HDEL', record, 'after') end
      if due ~= 0 and (earliest == 0 or due < earliest) then earliest = due end
    end
  end
end
follow_up()
wake(earliest, ARGV[1])
return answer
