-- hold: a stored function or argument is kept for a client that needs it.
-- KEYS:
--   1 blob_prefix
-- ARGV:
--   1 name
--   2 client: who needs it
--   3 ttl: how long it is needed at least, ms
--   4 brief: how long one is kept that is not needed, ms
-- RETURN: 0 when there is none of that name, 1 when there is
-- COST: PTTL + GET, and SET + PEXPIRE
-- WHY: who needs it alone may drop it when done, so that data of finished calls does not fill the
--   server. One that was not needed any more, or that is new, has a brief time left, and the
--   first client needs it alone; each later one is noted as one of several, for good.
--@include look
local key = KEYS[1] .. ARGV[1]
local user, ttl, left = key .. ':user', tonumber(ARGV[3]), redis.call('PTTL', key)
if left == -2 then return 0 end
local alone = left > tonumber(ARGV[4]) and look('', 'GET', user) or ARGV[2]
if left > ttl then ttl = left end
redis.call('SET', user, alone == ARGV[2] and alone or 'several', 'PX', ttl)
if left ~= -1 then redis.call('PEXPIRE', key, ttl) end
return 1
