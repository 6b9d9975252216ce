-- Schedules: their records, which all lanes of a queue share, and of each lane the set of names by the time at
-- which they are due. One timer in the lane's delayed set stands for the earliest of these. A record is
-- JSON of ours on one line (its definition is text to scripts), a line feed, and the payload.
local OF_LANE, SCHEDULES = string.match(STREAM, '!.*$') or '', 'schedules:' .. string.match(STREAM, '^[^!]*')
local ALARM, OWN_DELAYED = '\n["schedules"]', DELAYED
-- queue_of(lane): a lane of this queue.
local function queue_of(lane)
  return string.match(STREAM, '^[^!]*') .. lane
end
-- due_of(lane): the set of the names of a lane's schedules.
local function due_of(lane)
  return 'due:' .. queue_of(lane)
end
-- schedule(name): what is known of a schedule, its payload, and both as they are stored; nil where there is none,
-- and where its record cannot be read.
local function schedule(name)
  local value = redis.call('HGET', SCHEDULES, name)
  if not value then return nil end
  local cut = string.find(value, '\n', 1, true) or #value + 1
  local text = string.sub(value, 1, cut - 1)
  local ok, has = pcall(cjson.decode, text)
  local sound = ok and type(has) == 'table' and tonumber(has.next) and tonumber(has.version) and has.lane
  return sound and has or nil, string.sub(value, cut + 1), value
end
-- ring(lane): the lane's timer stands at the time of its earliest schedule; its schedulers hear of an earlier one.
local function ring(lane)
  local delayed = lane == OF_LANE and OWN_DELAYED or 'delayed:' .. queue_of(lane)
  local first = redis.call('ZRANGE', due_of(lane), 0, 0, 'WITHSCORES')
  if not first[2] then return redis.call('ZREM', delayed, ALARM) end
  redis.call('ZADD', delayed, first[2], ALARM)
  local next = redis.pcall('ZRANGE', delayed, 0, 0)
  if next[1] == ALARM then redis.pcall('PUBLISH', 'wake:' .. queue_of(lane), int(tonumber(first[2]))) end
end
