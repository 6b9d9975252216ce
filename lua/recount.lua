-- recount: slots that no entry holds any more are given back, and what has room goes in.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 group
--   2 history_max: events kept, about
--   3 limit: entries looked at by this call, about
--   4 most: waiting and delayed tasks, and facts about keys, that the last call looks at
--   5 normal: the last entry looked at in the normal lane, '' none
--   6 high: in the high one
--   7 low: in the low one
--   for each counted key (2): key, slots
-- RETURN: 0, the last entry looked at in each of three lanes, and keys and slots counted so far, where there is more
--   to look at; 1, keys with their slots as they were and as they are, a flat list, at the end; 2 and how many, where
--   there are more than `most`; 3 and how many, where workers still run tasks whose entries were deleted. Only the
--   second has changed anything
-- COST: XRANGE, three times; at the end XPENDING + EXISTS a page, HMGET a waiting or delayed task, ZADD one that waits,
--   HGETALL of the limits, and what follows: see lib/follow_up.lua
-- WHY: who trims the stream, or deletes entries, takes slots along: nothing else knows which. Entries are added at the
--   end alone: whatever stands in the stream when a call has reached the ends of all lanes has been counted by it
--   or before. So what was counted is never less than what is in use, and what is given back was leaked; a
--   stream that fits in one call is counted exactly. A deleted entry that a worker still runs gives its
--   slots back at its end: nothing is counted meanwhile. Who waits and stands in no line has its place again.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, HISTORY_MAX, TTL, MOST = ARGV[1], ARGV[2], 86400000, tonumber(ARGV[4])
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include look
--@include pending
--@include attempt
--@include history
--@include options
--@include later
--@include notify
--@include lanes
--@include batch
--@include tally
--@include room
--@include slots
--@include together
--@include turns
--@include gate
--@include unstarted
--@include more
--@include follow_up
local LANES, places, counted = { '', '!high', '!low' }, { ARGV[5], ARGV[6], ARGV[7] }, {}
for at = 8, #ARGV, 2 do counted[ARGV[at]] = tonumber(ARGV[at + 1]) end
local exact = ARGV[5] .. ARGV[6] .. ARGV[7] == ''
local function count(term)
  counted[term.key] = (counted[term.key] or 0) + term.weight
end
local left = tonumber(ARGV[3])
for i = 1, 3 do
  go_to(LANES[i])
  local page = {}
  if left > 0 then
    local from = places[i] == '' and '-' or '(' .. places[i]
    page = look({}, 'XRANGE', STREAM, from, '+', 'COUNT', left)
  end
  for k = 1, #page do
    local fields = page[k][2]
    for f = 1, #fields, 2 do
      if fields[f] == 'opts' then
        for _, term in ipairs(terms(option(fields[f + 1], 'gate')).keys) do count(term) end
      end
    end
    places[i] = page[k][1]
  end
  left = left - #page
end
if left <= 0 then
  local sums = {}
  for key, n in pairs(counted) do
    sums[#sums + 1] = key
    sums[#sums + 1] = int(n)
  end
  return { 0, places, sums }
end
local size, running = look(0, 'HLEN', LIMITS) + look(0, 'ZCARD', WAITING), 0
for i = 1, 3 do
  go_to(LANES[i])
  size = size + look(0, 'ZCARD', DELAYED)
  GROUP = look(false, 'HGET', 'meta:' .. STREAM, 'group') or ARGV[1] -- that of its workers
  local from = '-'
  while size <= MOST do
    local page = pending(from, '+', 1000)
    size = size + #page
    for k = 1, #page do
      if #redis.call('XRANGE', STREAM, page[k][1], page[k][1]) == 0 then running = running + 1 end
      from = '(' .. page[k][1]
    end
    if #page < 1000 then break end
  end
end
if size > MOST then return { 2, size } end
if running > 0 then return { 3, running } end
-- Turns of a strict order that are kept between attempts, or while another key is waited for; and who stands in no line.
local lines = {}
local function line_up(ref, has)
  local term = has[3] and has[3] ~= '' and term_of(option(has[2], 'gate'), has[3])
  if not term then return end
  local line, place = list_of(term), tonumber(has[4] or 0)
  local priority = terms(option(has[2], 'gate')).priority
  redis.call('ZADD', line, 'NX', int(term.order and place or place - priority * AGEING_US), ref)
  lines[term.key] = lines[term.key] or {}
  lines[term.key][line] = true
  if term.group then redis.call('ZADD', SHARES, 'NX', redis.call('HGET', LIMITS, 'v') or 0, term.group) end
end
local function see(id, ref)
  local has = look({}, 'HMGET', TASK .. id, 'held', 'opts', 'under', 'place', 'state')
  local first = has[1] and terms(option(has[2], 'gate')).keys[1]
  if first and first.order then count(first) end
  if ref and has[5] == 'waiting' then line_up(ref, has) end
end
for i = 1, 3 do
  go_to(LANES[i])
  for _, id in ipairs(look({}, 'ZRANGE', DELAYED, 0, -1)) do
    if string.byte(id) ~= 10 then see(id) end
  end
end
for _, ref in ipairs(look({}, 'ZRANGE', WAITING, 0, -1)) do see(visit(ref), ref) end
go_to(HOME)
for key, of in pairs(lines) do
  local n = 0
  for line in pairs(of) do n = n + redis.call('ZCARD', line) end
  redis.call('HSET', LIMITS, 'w' .. key, n)
end
local facts, used, answer = look({}, 'HGETALL', LIMITS), {}, {}
for i = 1, #facts, 2 do
  if #facts[i] > 1 and string.sub(facts[i], 1, 1) == 's' then used[string.sub(facts[i], 2)] = tonumber(facts[i + 1]) end
end
local function mend(key, before, after)
  if before == after or (before < after and not exact) then return end
  if before > after then
    free_key(key, before - after)
  else
    redis.call('HSET', LIMITS, 's' .. key, after)
  end
  for _, word in ipairs({ key, before, after }) do answer[#answer + 1] = word end
end
for key, before in pairs(used) do mend(key, before, counted[key] or 0) end
for key, after in pairs(counted) do
  if not used[key] then mend(key, 0, after) end
end
stands = {}
later('keys', '', '0')
follow_up()
return { 1, answer }
