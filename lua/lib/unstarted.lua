-- ended_unstarted(id, task, state, words): a task that no worker runs has ended: cancelled, or expired. `task`:
-- name, attempt, entry, opts, and was: delayed, waiting, or nil for queued; `words` say why.
-- Its record is written whole or not at all; that it can leave its place was proved before.
local function ended_unstarted(id, task, state, words)
  local record, batch = TASK .. id, countable(option(task.opts, 'batch'))
  local has, gate = redis.call('HMGET', record, 'under', 'reason', 'continued', 'awaits'), option(task.opts, 'gate')
  local function written()
    if task.was == 'waiting' then redis.call('ZREM', WAITING, '') end
    redis.call('HSET', record, 'state', state, 'entry', task.entry, 'name', task.name, 'attempt', task.attempt,
      'finished_ms', int(NOW))
    if words ~= '' then redis.call('HSET', record, 'reason', words) end
    if task.was then
      undoing('HSET', record, 'state', task.was, 'reason', has[2] or '')
      undoing('HDEL', record, 'finished_ms')
    else
      undoing('HDEL', record, 'state', 'name', 'attempt', 'finished_ms', 'reason')
    end
    redis.call('PEXPIRE', record, TTL)
    undoing('PERSIST', record)
    local logged = log_attempt(id, task.name, state, '', task.attempt, task.entry, '', words)
    if logged then undoing('XDEL', HISTORY, logged) end
    beside(redis.pcall('HINCRBY', COUNTERS, state, 1))
  end
  local fault = whole(written)
  if fault then return error(fault, 0) end
  if task.was == 'delayed' then
    redis.call('ZREM', DELAYED, id)
  elseif task.was == 'waiting' then
    redis.call('ZREM', WAITING, ref_of(id))
    if has[1] and has[1] ~= '' then
      pcall(leave_line, ref_of(id), has[1], gate)
      later('more', has[1]) -- who stood behind it may have room where it had none
    end
  else
    redis.call('XDEL', STREAM, task.entry)
  end
  redis.pcall('HDEL', record, 'payload', 'opts', 'recovered', 'under', 'place', 'parents', 'due',
    'continued', words == '' and 'reason' or '')
  local child = has[3] and string.match(has[3], '^%d+ %d+ (.*)$')
  if child then later('seen', ref_of(child), ref_of(id)) end -- it is not read any more
  local event = has[4] and string.match(has[4], '^%d+ %d+ %d+ %S+ (.*)$')
  if event then redis.pcall('ZREM', 'expecting:' .. BASE .. ':' .. event, ref_of(id)) end
  if gate ~= '' then closed(id, state, gate, not task.was) end
  notify_all(id, state, words, option(task.opts, 'inbox'), false)
  tally_one(batch, id, state, int(NOW))
end
