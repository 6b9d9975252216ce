-- enqueue: adds tasks, now or at a due time; a task id that is known is answered, not doubled.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 channel: where schedulers listen for an earlier due time
--   for each task (5): id, name, payload, opts, due ('' now, '+N' in N ms, 'N' at server time N ms)
-- RETURN: the positions (from 1) of tasks whose id was known already; nothing was written for them
-- COST: per task XADD + HSETNX (now) or HSETNX + HSET + ZADD (later); one TIME if any is later
-- WHY: HSETNX after XADD decides by id whether the task is new, so the usual case costs two
--   commands; the rare known id takes its entry back before anyone can read it. A client that
--   sends the call again after a lost reply finds its ids known: nothing is doubled.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
--@include now
--@include entry
--@include requeue
local known, now, earliest = {}, nil, 0
for at = 2, #ARGV, 5 do
  local id, name, payload, opts, when = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local record, due = TASK .. id, 0
  if when ~= '' then
    now = now or now_ms()
    due = string.sub(when, 1, 1) == '+' and now + tonumber(when) or tonumber(when)
  end
  if due == 0 or due <= now then
    local entry = redis.call('XADD', STREAM, '*', 'id', id, 'name', name, 'payload', payload,
      'attempt', '1', 'recovered', '0', 'opts', opts)
    if redis.call('HSETNX', record, 'entry', entry) == 0 then
      redis.call('XDEL', STREAM, entry)
      known[#known + 1] = (at + 3) / 5
    end
  elseif redis.call('HSETNX', record, 'entry', '') == 0 then
    known[#known + 1] = (at + 3) / 5
  else
    redis.call('HSET', record, 'state', 'delayed', 'reason', 'delay', 'name', name,
      'payload', payload, 'attempt', '1', 'recovered', '0', 'opts', opts)
    redis.call('ZADD', DELAYED, int(due), id)
    if earliest == 0 or due < earliest then earliest = due end
  end
end
wake(earliest, ARGV[1])
return known
