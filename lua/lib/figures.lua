-- figures(limit): every figure of a queue at one instant, as a flat list (see snapshot.lua), with
-- at most `limit` workers, those with the latest deadline first; then these workers again. Its cost does not grow with the
-- queue: sizes are counters of the server, and only the ends of stream and sets are read.
local function figures(limit)
  local pending, per_consumer, last = 0, {}, '0-0'
  local summary = redis.pcall('XPENDING', STREAM, GROUP)
  if not summary.err then
    pending = summary[1]
    if summary[4] then
      for i = 1, #summary[4] do per_consumer[summary[4][i][1]] = tonumber(summary[4][i][2]) end
    end
  end
  local groups = redis.pcall('XINFO', 'GROUPS', STREAM)
  if not groups.err then
    for i = 1, #groups do
      local row = {}
      for j = 1, #groups[i], 2 do row[groups[i][j]] = groups[i][j + 1] end
      if row.name == GROUP then last = row['last-delivered-id'] end
    end
  end
  local oldest = redis.call('XRANGE', STREAM, '(' .. last, '+', 'COUNT', 1)
  local due = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  local meta = redis.call('HMGET', META, 'group', 'lease_ms', 'paused')
  local members, workers = redis.call('ZREVRANGE', WORKERS, 0, limit - 1, 'WITHSCORES'), {}
  for i = 1, #members, 2 do
    workers[#workers + 1] = { members[i], tonumber(members[i + 1]), per_consumer[members[i]] or 0,
      redis.call('HGETALL', WORKER .. members[i]) }
  end
  return {
    'now_ms', now_ms(),
    'length', redis.call('XLEN', STREAM),
    'pending', pending,
    'delayed', redis.call('ZCARD', DELAYED),
    'next_due_ms', due[2] and tonumber(due[2]) or -1,
    'dead', redis.call('ZCARD', DEAD),
    'oldest_ms', oldest[1] and tonumber(string.match(oldest[1][1], '^%d+')) or -1,
    'group', meta[1] or GROUP,
    'lease_ms', tonumber(meta[2] or -1),
    'paused', tonumber(meta[3] or 0),
    'history', redis.call('XLEN', HISTORY),
    'workers_total', redis.call('ZCARD', WORKERS),
    'counters', redis.call('HGETALL', COUNTERS),
    'workers', workers,
  }, workers
end
