-- extend_after_silence(workers, now, lease): the grace rule. Workers beat every third of a lease; when
-- the freshest deadline says that no worker beat for one and a half times as long, the silence was
-- the server's, the clock's or everyone's. Deadlines then say nothing about health, and every
-- worker gets one more lease to show itself: once, which a half millisecond in its deadline
-- remembers until it beats, so that a lone supervisor that is slow cannot keep the dead alive. Only a
-- silence of a whole lease, in which none could beat, counts anew. Answers whether the freshest
-- deadline has passed, or there is none.
local function extend_after_silence(workers, now, lease)
  local freshest = redis.call('ZREVRANGE', workers, 0, 0, 'WITHSCORES')[2]
  if not freshest then return true end
  local passed = tonumber(freshest) < now
  if tonumber(freshest) >= now + lease / 2 then return false end
  local silent = redis.call('ZRANGE', workers, 0, GRACE_LIMIT, 'WITHSCORES')
  for i = 1, #silent, 2 do
    local deadline = tonumber(silent[i + 1])
    if (passed or deadline % 1 == 0) and deadline < now + lease then
      redis.call('ZADD', workers, int(now + lease) .. '.5', silent[i])
    end
  end
  return passed
end
