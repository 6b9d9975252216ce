-- tally(batch, ended, counts, now): ends of tasks of one batch (a flat list of id, state; and how
-- many of each state): its counters, its stream of settled ids in the order of their end, and,
-- with the last of them, its own end. The batch is countable. Raises what fails: the tasks have
-- ended all the same.
local function tally(batch, ended, counts, now)
  local key, settled = BATCH .. batch, SETTLED .. batch
  for state, n in pairs(counts) do redis.call('HINCRBY', key, state, n) end
  for from = 1, #ended, 1000 do
    local to = math.min(from + 999, #ended)
    redis.pcall('XADD', settled, '*', unpack(ended, from, to))
  end
  local has = redis.call('HMGET', key, 'total', 'succeeded', 'failed', 'cancelled', 'expired', 'dependants')
  local done = tonumber(has[2] or 0) + tonumber(has[3] or 0) + tonumber(has[4] or 0) + tonumber(has[5] or 0)
  if done >= tonumber(has[1] or 0) then
    redis.call('HSET', key, 'finished_ms', now)
    redis.call('PEXPIRE', key, 604800000)
    if has[6] then
      local lane = string.match(STREAM, '![a-z]+$')
      redis.call('HDEL', key, 'dependants')
      later('after', 'b:' .. (lane and lane .. '\n' .. batch or batch),
        has[2] == has[1] and 'succeeded' or 'failed')
    end
  end
  redis.call('PEXPIRE', settled, redis.call('PTTL', key))
end
-- tally_one(batch, id, state, now): the same for the end of a single task; what fails is passed over.
local function tally_one(batch, id, state, now)
  if batch ~= '' then pcall(tally, batch, { id, state }, { [state] = 1 }, now) end
end
