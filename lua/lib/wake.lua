-- wake(due, channel): schedulers sleep until the earliest due time they know; an earlier one is published.
-- What is stored is stored, whether they hear of it now or look by themselves.
local function wake(due, channel)
  if due == 0 then return end
  local first = redis.pcall('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
  if first[2] and tonumber(first[2]) >= due then redis.pcall('PUBLISH', channel, int(due)) end
end
