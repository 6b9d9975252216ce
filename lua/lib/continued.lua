-- continued(id, name, attempt, entry, worker, run_ms, ttl_ms, child, now, task): a task that a worker had waits from now
-- on for the last of the tasks it returned, and ends as that one does (see ends_as). That one is added
-- afterwards by the same script: so what would be lost without it stands already. Notes what undoes it; the caller
-- drops the task's entry then.
local function continued(id, name, attempt, entry, worker, run_ms, ttl_ms, child, now, task)
  local base, lane = string.match(STREAM, '^([^!]*)(.*)$')
  local record, of = TASK .. id, TASK .. child
  local before = lane ~= '' and lane .. '\n' or ''
  local place = int(math.max(tonumber(redis.call('HGET', 'limits:' .. base, 'n') or 0) + 1, tonumber(now) * 1000))
  redis.call('HSET', 'limits:' .. base, 'n', place)
  redis.call('HSET', record, 'state', 'waiting', 'entry', '', 'reason', 'parents', 'place', place,
    'parents', '1', 'name', name, 'payload', task.payload, 'attempt', attempt, 'recovered', task.recovered,
    'opts', task.opts, 'from', entry .. ' ' .. worker, 'worker', worker, 'run_ms', run_ms, 'continued', ttl_ms .. ' ' .. int(DEAD_TTL) .. ' ' .. child)
  undoing('HSET', record, 'entry', entry)
  undoing('HDEL', record, 'state', 'reason', 'place', 'parents', 'name', 'payload', 'attempt', 'recovered', 'opts',
    'from', 'worker', 'run_ms', 'continued')
  redis.call('ZADD', 'waiting:' .. base, now, before .. id)
  undoing('ZREM', 'waiting:' .. base, before .. id)
  if redis.call('HINCRBY', of, 'readers', 1) == 1 then
    undoing('HDEL', of, 'readers')
  else
    undoing('HINCRBY', of, 'readers', -1)
  end
  if redis.call('HEXISTS', WAITERS, child) == 0 then undoing('HDEL', WAITERS, child) end
  mark_parent(child)
  local line, edge = 'dependants:' .. base .. ':t:' .. before .. child, '=' .. place .. ' ' .. before .. id
  if redis.call('RPUSH', line, edge) == 1 then undoing('LPOP', line) end -- among others it would be passed over
  local logged = log_attempt(id, name, 'continued', worker, attempt, entry, run_ms, child)
  if logged then undoing('XDEL', HISTORY, logged) end
end
