-- replay: dead letters go back to the stream with a clean slate.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 dead
--   4 batch_prefix
-- ARGV:
--   1 history_max: events kept, about
--   2 limit: without ids, the oldest dead letters up to this many
--   3 before: without ids, only those that died before this server time, ms ('+inf' all)
--   4 offset: without ids, how many of the oldest to pass over (kept by an earlier call)
--   5 anew: 1 forgets what the steps of an earlier run came to; 0 goes on after them
--   for each task (1): id
-- RETURN: replayed, kept (corrupt, without payload, or no record: they stay dead letters), dropped (no
--   dead letter any more: expired, or replayed and settled)
-- COST: per task HMGET + PTTL + ZSCORE + XADD + HDEL of nothing + HSET + PERSIST + ZREM + HDEL; of a gated
--   task as for enqueue_gated; to forget steps HKEYS + HDEL
-- WHY: XADD before ZREM. `before` and `offset` let a replay of all of them end, though some die
--   again in the meantime and others cannot be replayed. `from` says that a replay put the task
--   back: the same ids sent again are counted as they were the first time while it is unsettled.
--   Each goes whole or not at all: the HDEL that forgets its end comes last, after one of nothing has
--   proved it.
local STREAM, TASK, DEAD, BATCH = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local HISTORY_MAX, TTL = ARGV[1], 86400000
local DELAYED, HISTORY, COUNTERS, WAITERS, INBOX, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include look
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
--@include deadline
--@include unstarted
--@include more
--@include follow_up
--@include mark
--@include again
--@include uncount
--@include forget
local ids = {}
for at = 6, #ARGV do ids[#ids + 1] = ARGV[at] end
if #ids == 0 then ids = redis.call('ZRANGEBYSCORE', DEAD, '-inf', ARGV[3], 'LIMIT', ARGV[4], ARGV[2]) end
local function go(id, record, kept, left, died)
  local opts, gate = again_opts(kept[4] or '')
  redis.call('HDEL', record, '')
  if gate ~= '' then redis.call('ZADD', DEAD, 'XX', 0, '') end -- it can be undone
  undoing('HDEL', record, 'from')
  undoing('HSET', record, 'entry', kept[7] or '')
  if gate == '' then
    local entry = add(id, kept[2], kept[3], '1', '0', opts)
    undoing('XDEL', STREAM, entry)
    redis.call('HSET', record, 'entry', entry, 'from', 'replay')
  end
  redis.call('PERSIST', record)
  if left > 0 then undoing('PEXPIRE', record, left) end
  redis.call('ZREM', DEAD, id)
  if died then undoing('ZADD', DEAD, died, id) end
  uncount(option(opts, 'batch'), kept[1])
  if gate == '' then
    redis.call('HDEL', record, 'state', 'name', 'payload', 'opts', 'attempt', 'recovered')
  else
    undoing('HSET', record, 'state', kept[1], 'name', kept[2], 'payload', kept[3], 'opts', kept[4], 'attempt', kept[8] or '')
    redis.call('HSET', record, 'from', 'replay')
    enter(id, { name = kept[2], payload = kept[3], attempt = '1', recovered = '0', opts = opts, gate = gate }, nil)
    lock(id, gate)
  end
  redis.call('HDEL', record, 'error', 'worker', 'run_ms', 'finished_ms', 'unknown_ms', 'parked_ms', 'progress')
  if ARGV[5] == '1' then pcall(forget_steps, record) end
end
local replayed, kept_back, dropped = 0, 0, 0
for i = 1, #ids do
  local record = TASK .. ids[i]
  local kept = look('', 'HMGET', record, 'state', 'name', 'payload', 'opts', 'corrupt', 'from', 'entry', 'attempt',
    'readers')
  if kept == '' then
    kept_back = kept_back + 1 -- something else stands where its record was
  elseif kept[1] == 'failed' and kept[3] and kept[3] ~= '' and not kept[5] then
    local left, died = redis.call('PTTL', record), redis.call('ZSCORE', DEAD, ids[i])
    local fault = whole(go, ids[i], record, kept, left, died)
    if fault then
      follow_up()
      return redis.error_reply(fault)
    end
    pcall(parent_again, ids[i], kept[9])
    replayed = replayed + 1
  elseif kept[6] == 'replay' and (not kept[1] or kept[1] == 'waiting') then
    replayed = replayed + 1 -- the same call sent again, or one that came second
  else
    -- Not failed any more, or gone: it has no business among the dead. Corrupt ones stay.
    if kept[1] ~= 'failed' then
      redis.call('ZREM', DEAD, ids[i])
      dropped = dropped + 1
    else
      kept_back = kept_back + 1
    end
  end
end
follow_up()
return { replayed, kept_back, dropped }
