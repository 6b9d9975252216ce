-- extend_after_silence(workers, now, lease): the grace rule. When the freshest deadline of all has
-- passed, nobody beat for a whole lease: the server was down, the clock jumped or everyone stalled.
-- Deadlines then say nothing about health, and every worker gets one more lease to show itself.
-- Answers whether there was silence.
local function extend_after_silence(workers, now, lease)
  local freshest = redis.call('ZREVRANGE', workers, 0, 0, 'WITHSCORES')[2]
  if not freshest then return true end
  if tonumber(freshest) >= now then return false end
  local silent = redis.call('ZRANGE', workers, 0, GRACE_LIMIT)
  for i = 1, #silent do redis.call('ZADD', workers, int(now + lease), silent[i]) end
  return true
end
