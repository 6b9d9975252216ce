-- The keys of a queue's lanes (itself and its priorities) and of the gate, which they share. They are
-- made of the stream's name: which lane a task is in that is let in or released is known only
-- here. protocol/keys.py makes the same names.
local BASE, HOME = string.match(STREAM, '^([^!]*)(.*)$')
local HOME_DELAYED, HERE = DELAYED or 'delayed:' .. STREAM, nil
local LIMITS, WAITING, SHARES = 'limits:' .. BASE, 'waiting:' .. BASE, 'shares:' .. BASE
local UNIQUE, DEPENDANTS = 'unique:' .. BASE, 'dependants:' .. BASE .. ':'
INBOX = 'inbox:' .. BASE .. ':'
-- go_to(lane): from now on, the keys that all functions use are those of a lane: '', '!high' or '!low'.
local function go_to(lane)
  if lane == HERE then return end
  local queue = BASE .. lane
  HERE, STREAM, TASK = lane, queue, 'task:' .. queue .. ':'
  DELAYED = lane == HOME and HOME_DELAYED or 'delayed:' .. queue
  HISTORY, COUNTERS, DEAD, WAITERS = 'history:' .. queue, 'counters:' .. queue, 'dead:' .. queue, 'waiters:' .. queue
  BATCH, SETTLED = 'batch:' .. queue .. ':', 'settled:' .. queue .. ':'
  waited = nil
end
go_to(HOME)
-- ref_of(id): what names a task of this lane in all lanes: its id in the normal one.
local function ref_of(id)
  return HERE == '' and id or HERE .. '\n' .. id
end
-- split(ref): the lane and the id that a ref names.
local function split(ref)
  if string.byte(ref) ~= 33 then return '', ref end -- no exclamation mark
  local lane, id = string.match(ref, '^(![a-z]+)\n(.*)$')
  if lane then return lane, id end
  return '', ref
end
-- visit(ref): goes to the lane of a task that is named over all lanes; answers its id.
local function visit(ref)
  local lane, id = split(ref)
  go_to(lane)
  return id
end
-- timer(due, words): promote will follow up what the words say at that time, in ms. An earlier one stays.
local function timer(due, words)
  redis.call('ZADD', HOME_DELAYED, 'LT', int(due), '\n' .. words)
  local first = redis.pcall('ZRANGE', HOME_DELAYED, 0, 0, 'WITHSCORES')
  if first[2] and tonumber(first[2]) >= due then
    redis.pcall('PUBLISH', 'wake:' .. BASE .. HOME, int(due))
  end
end
