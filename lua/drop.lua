-- drop: a client needs some stored functions and arguments no more.
-- KEYS:
--   1 blob_prefix
-- ARGV:
--   1 client: who needed them
--   2 brief: how long they are kept from now on, ms; 0: not at all
--   for each blob (1): name
-- RETURN: how many are not needed now
-- COST: per name GET, and DEL + PEXPIRE
-- WHY: one that others need too keeps its time. What is dear to send stays for a moment for a client that
--   sends the same again.
--@include look
local dropped = 0
for at = 3, #ARGV do
  local key = KEYS[1] .. ARGV[at]
  if look('', 'GET', key .. ':user') == ARGV[1] then
    redis.call('DEL', key .. ':user')
    dropped = dropped + redis.call('PEXPIRE', key, ARGV[2])
  end
end
return dropped
