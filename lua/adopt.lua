-- adopt: consumers with pending entries that no worker answers for get a deadline.
-- KEYS:
--   1 stream
--   2 workers
-- ARGV:
--   1 group
--   2 lease: ms they are given to show themselves
-- RETURN: how many were adopted
-- COST: PERSIST, XINFO CONSUMERS (one row a consumer) and one ZSCORE a consumer with pending entries
-- WHY: a worker that died before its first heartbeat, or whose key was lost, is in no list of
--   workers, and its tasks would wait for ever. From here on it is dead like any other. It reads
--   consumers, not entries: no page of long-running tasks can hide a dead owner.
--@include now
--@include maxmemory
--@include look
local consumers = look({}, 'XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if #consumers == 0 then return 0 end
allow_growth(KEYS[2])
local adopted, deadline = 0, int(now_ms() + tonumber(ARGV[2]))
for i = 1, #consumers do
  local row = {}
  for j = 1, #consumers[i], 2 do row[consumers[i][j]] = consumers[i][j + 1] end
  if row.pending > 0 and not redis.call('ZSCORE', KEYS[2], row.name) then
    redis.call('ZADD', KEYS[2], deadline, row.name)
    adopted = adopted + 1
  end
end
return adopted
