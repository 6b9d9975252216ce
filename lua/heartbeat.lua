-- heartbeat: one heartbeat for all the worker processes of one supervisor.
-- KEYS:
--   1 workers
--   2 worker_prefix
--   3 meta
-- ARGV:
--   1 lease: ms until a worker that no longer beats is dead
--   for each worker (2): consumer, said (entry ids it runs with a space between and, after a line feed, the
--   bytes of memory it has, a space and the percent of one core it used, '' unknown; '=' all unchanged)
-- RETURN: the server's time in ms, the earliest deadline of any worker in ms (-1 none), paused (0 or
--   1), the positions (from 1) of workers whose details are not here: they should register again; what is
--   wished of their tasks, a flat list: position of the worker, entry, ask or force (see cancel); the
--   names of tasks that have a rule or are paused, one a line, * for all (see regate)
-- COST: TIME + ZRANGE + ZADD + HMGET, a worker HMGET, and HSET where what is said changed; of a worker with
--   wishes HGETALL + HGET and an XPENDING a wish. PERSIST +
--   ZREVRANGE when none of the lowest deadlines is fresh, and after a silence ZRANGE twice and a
--   ZADD a worker. PERSIST + ZADD when a full server refused the first ZADD
-- WHY: one lease a worker, not one a task: a living worker keeps a ten-hour task and renews
--   nothing. The answer says when it is worth looking for the dead, so no supervisor polls. A worker that
--   was taken for dead, or whose server lost its memory, must register again: without its names
--   the others would make dead letters of tasks that only it knows. Every idle worker pays for this script,
--   so the usual heartbeat asks for the lowest deadlines only once: while one of them is fresh none
--   was silent, and the earliest one after it follows from those before it. What stands
--   in a worker's own key is no reason not to beat for it: it registers again. Wishes are said with each
--   heartbeat until their entries are gone, for their message may be lost.
local GRACE_LIMIT = 1000
--@include now
--@include maxmemory
--@include grace
--@include look
local now, lease = now_ms(), tonumber(ARGV[1])
local deadline, beats, beating = int(now + lease), {}, {}
for at = 2, #ARGV, 2 do
  beats[at - 1], beats[at] = deadline, ARGV[at]
  beating[ARGV[at]] = true
end
-- One more than there are workers in this call, so the lowest of the others is always among them.
local function lowest()
  return redis.call('ZRANGE', KEYS[1], 0, #beats / 2, 'WITHSCORES')
end
local low = lowest()
if low[2] and tonumber(low[#low]) < now + lease / 2 then
  allow_growth(KEYS[1])
  extend_after_silence(KEYS[1], now, lease)
  low = lowest()
end
for from = 1, #beats, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #beats)
  if type(redis.pcall('ZADD', KEYS[1], unpack(beats, from, to))) == 'table' then
    -- Most likely a full server; any other error comes again.
    allow_growth(KEYS[1])
    redis.call('ZADD', KEYS[1], unpack(beats, from, to))
  end
end
local unregistered, wishes = {}, {}
local function say_wishes(position, consumer)
  local key = string.gsub(KEYS[2], '^worker:', 'wishes:') .. consumer
  local kept, stream = redis.pcall('HGETALL', key), string.match(KEYS[2], '^worker:(.*):$')
  local group = #kept > 0 and look('', 'HGET', KEYS[3], 'group') or ''
  local left = 0
  for i = 1, #kept, 2 do
    local held = redis.pcall('XPENDING', stream, group, kept[i], kept[i], 1, consumer)
    if not held.err and #held == 0 then
      redis.pcall('HDEL', key, kept[i])
    else
      left = left + 1
      wishes[#wishes + 1] = int(position)
      wishes[#wishes + 1] = kept[i]
      wishes[#wishes + 1] = kept[i + 1]
    end
  end
  if left == 0 then redis.pcall('HDEL', KEYS[2] .. consumer, 'asked') end
end
for at = 2, #ARGV, 2 do
  local details = redis.pcall('HMGET', KEYS[2] .. ARGV[at], 'started_ms', 'asked')
  if not details[1] then unregistered[#unregistered + 1] = at / 2 end
  if not details[1] or details[2] then say_wishes(at / 2, ARGV[at]) end
  if ARGV[at + 1] ~= '=' then
    local running, rss, cpu = string.match(ARGV[at + 1], '^([^\n]*)\n(%d*) ?(%d*)$')
    if running then
      redis.pcall('HSET', KEYS[2] .. ARGV[at], 'running', running, 'rss', rss, 'cpu', cpu)
    else
      redis.pcall('HSET', KEYS[2] .. ARGV[at], 'running', ARGV[at + 1])
    end
  end
end
local earliest = tonumber(beats[1] or low[2] or -1)
for i = 1, #low, 2 do
  if not beating[low[i]] then earliest = math.min(earliest, tonumber(low[i + 1])) end
end
local meta = look({}, 'HMGET', KEYS[3], 'paused', 'names')
return { now, earliest, tonumber(meta[1] or 0) or 0, unregistered, wishes, meta[2] or '' }
