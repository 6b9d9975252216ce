-- enqueue: adds tasks, now or at a due time; a task id that is known is answered, not doubled.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 channel: where schedulers listen for an earlier due time
--   for each task (5): id, name, payload, opts, due ('' now, '+N' in N ms, 'N' at server time N ms)
-- RETURN: the tasks for which nothing was written: a position (from 1) when its id was known already; a
--   position, an error's words and its id when the key of its record holds something else
-- COST: per task XADD + HSETNX (now) or HSETNX + HSET + ZADD (later); one TIME if any is later
-- WHY: HSETNX after XADD decides by id whether the task is new, so the usual case costs two
--   commands; the rare known id takes its entry back before anyone can read it. A client that
--   sends the call again after a lost reply finds its ids known: nothing is doubled. A task that
--   cannot be stored takes back what was written of it, and the others are stored.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
--@include now
--@include fault
--@include whole
--@include wake
local function wait(id, record, name, payload, opts, due)
  undoing('HDEL', record, 'entry', 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts')
  redis.call('HSET', record, 'state', 'delayed', 'reason', 'delay', 'name', name,
    'payload', payload, 'attempt', '1', 'recovered', '0', 'opts', opts)
  redis.call('ZADD', DELAYED, int(due), id)
end
local answer, now, earliest = {}, nil, 0
-- Notes a task that was not stored; answers an error that is not its own alone.
local function not_stored(position, made, id)
  if made == 0 then
    answer[#answer + 1] = position -- known
  elseif string.find(made.err, 'WRONGTYPE', 1, true) then
    answer[#answer + 1] = { position, made.err, id }
  else
    return made
  end
end
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
    local made = redis.pcall('HSETNX', record, 'entry', entry)
    if made ~= 1 then
      redis.call('XDEL', STREAM, entry)
      local fault = not_stored((at + 3) / 5, made, id)
      if fault then return fault end
    end
  else
    local made = redis.pcall('HSETNX', record, 'entry', '')
    if made ~= 1 then
      local fault = not_stored((at + 3) / 5, made, id)
      if fault then return fault end
    else
      local fault = whole(wait, id, record, name, payload, opts, due)
      if fault then return redis.error_reply(fault) end
      if earliest == 0 or due < earliest then earliest = due end
    end
  end
end
wake(earliest, ARGV[1])
return answer
