-- snapshot: every figure of the dashboard at one instant; it only reads.
-- KEYS:
--   1 stream
--   2 delayed
--   3 dead
--   4 counters
--   5 workers
--   6 worker_prefix
--   7 meta
--   8 history
-- ARGV:
--   1 group
--   2 limit: most workers listed
-- RETURN: a flat list of figure, value: now_ms, length, pending, delayed, next_due_ms (-1 none), dead,
--   oldest_ms (time of the oldest unread entry, -1 none), group, lease_ms, paused, history, counters
--   (flat list), workers (a list of consumer, deadline_ms, pending, details as a flat list)
-- COST: a dozen commands whose cost does not grow with the queue, and two a worker listed
-- WHY: figures read one by one never add up; here ready + pending + delayed is what there is.
--@include now
local limit = tonumber(ARGV[2])
local pending, per_consumer, last = 0, {}, '0-0'
local summary = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if not summary.err then
  pending = summary[1]
  if summary[4] then
    for i = 1, #summary[4] do per_consumer[summary[4][i][1]] = tonumber(summary[4][i][2]) end
  end
end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if not groups.err then
  for i = 1, #groups do
    local row = {}
    for j = 1, #groups[i], 2 do row[groups[i][j]] = groups[i][j + 1] end
    if row.name == ARGV[1] then last = row['last-delivered-id'] end
  end
end
local oldest = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
local due = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local meta = redis.call('HMGET', KEYS[7], 'group', 'lease_ms', 'paused')
local members, workers = redis.call('ZREVRANGE', KEYS[5], 0, limit - 1, 'WITHSCORES'), {}
for i = 1, #members, 2 do
  workers[#workers + 1] = { members[i], tonumber(members[i + 1]), per_consumer[members[i]] or 0,
    redis.call('HGETALL', KEYS[6] .. members[i]) }
end
return {
  'now_ms', now_ms(),
  'length', redis.call('XLEN', KEYS[1]),
  'pending', pending,
  'delayed', redis.call('ZCARD', KEYS[2]),
  'next_due_ms', due[2] and tonumber(due[2]) or -1,
  'dead', redis.call('ZCARD', KEYS[3]),
  'oldest_ms', oldest[1] and tonumber(string.match(oldest[1][1], '^%d+')) or -1,
  'group', meta[1] or ARGV[1],
  'lease_ms', tonumber(meta[2] or -1),
  'paused', tonumber(meta[3] or 0),
  'history', redis.call('XLEN', KEYS[8]),
  'workers_total', redis.call('ZCARD', KEYS[5]),
  'counters', redis.call('HGETALL', KEYS[4]),
  'workers', workers,
}
