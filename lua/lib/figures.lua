-- figures(limit): every figure of a queue at one instant, as a flat list (see snapshot.lua), with at
-- most `limit` workers, those with the latest deadline first; then these workers again. Its cost does
-- not grow with the queue: sizes are counters of the server, and only the ends of stream and sets are
-- read.
local function figures(limit)
  local pending, per_consumer = 0, {}
  local summary = look({ 0 }, 'XPENDING', STREAM, GROUP)
  pending = summary[1]
  if summary[4] then
    for i = 1, #summary[4] do per_consumer[summary[4][i][1]] = tonumber(summary[4][i][2]) end
  end
  local oldest = oldest_unread()
  local waiting = look(0, 'ZCARD', WAITING)
  local first = waiting > 0 and look({}, 'ZRANGE', WAITING, 0, 0, 'WITHSCORES') or {}
  local delayed, due, timer = delayed_tasks(waiting)
  local meta = look({}, 'HMGET', META, 'group', 'lease_ms', 'paused')
  local members, workers = look({}, 'ZREVRANGE', WORKERS, 0, limit - 1, 'WITHSCORES'), {}
  for i = 1, #members, 2 do
    workers[#workers + 1] = { members[i], tonumber(members[i + 1]), per_consumer[members[i]] or 0,
      look({}, 'HGETALL', WORKER .. members[i]) }
  end
  return {
    'now_ms', now_ms(),
    'length', look(0, 'XLEN', STREAM),
    'pending', pending,
    'delayed', delayed,
    'next_due_ms', due or -1,
    'next_timer_ms', timer or -1,
    'waiting', waiting,
    'waiting_since_ms', first[2] and tonumber(first[2]) or -1,
    'dead', look(0, 'ZCARD', DEAD),
    'oldest_ms', oldest and tonumber(string.match(oldest, '^%d+')) or -1,
    'group', meta[1] or GROUP,
    'lease_ms', tonumber(meta[2] or -1) or -1,
    'paused', tonumber(meta[3] or 0) or 0,
    'history', look(0, 'XLEN', HISTORY),
    'workers_total', look(0, 'ZCARD', WORKERS),
    'counters', look({}, 'HGETALL', COUNTERS),
    'workers', workers,
  }, workers
end
