-- promote: moves due tasks from the delayed set to the stream, the earliest first.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 history_max: events kept, about
--   2 limit: most tasks moved by this call
-- RETURN: moved, the next due time in ms (-1 when nothing waits), the server's time in ms, the broken: a
--   list of id, an error's words: its record cannot be read, and it is due again in five seconds; the
--   schedules that are due: a list of name, record without its payload
-- COST: one ZRANGEBYSCORE, one ZREM of nothing, one ZREM and, per task, HMGET + XADD + HSET + HDEL; one ZRANGE when
--   nothing is due; per schedule HGET + ZADD
-- WHY: the ZREM of nothing proves that ids can leave the set, and takes no memory, so a full server
--   allows what follows. Each task is moved whole or not at all, and one whose record cannot be
--   read holds up no other. All XADDs before the ZREM, so that nothing is lost in between. An id
--   whose record does not say `delayed` has no business here and only leaves the set. Any number
--   of schedulers may call it: the second to call finds nothing. A member that begins with a line feed is
--   no id but a timer: it leaves the set first, and what it says is followed up. That of the schedules
--   stays: who calls is to compute and `fire` them, and they are due again soon if it dies before. Where it is
--   missing, as when an older scheduler has taken it for another, it is put back when nothing is due.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local HISTORY_MAX, TTL, GROUP = ARGV[1], 86400000, nil
local HISTORY, COUNTERS, DEAD, WAITERS, INBOX, BATCH, SETTLED = nil
--@include now
--@include fault
--@include whole
--@include attempt
--@include later
--@include schedules
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', int(now), 'LIMIT', 0, ARGV[2])
if #due > 0 then redis.call('ZREM', DELAYED, '') end
local function ready(id, record, kept)
  local entry = add(id, kept[1], kept[2], kept[3] or '1', kept[4] or '0', kept[5] or '')
  undoing('XDEL', STREAM, entry)
  redis.call('HSET', record, 'entry', entry)
  undoing('HSET', record, 'entry', '')
  redis.call('HDEL', record, 'state', 'reason', 'name', 'payload', 'attempt', 'recovered', 'opts')
end
local leaving, broken, gated, asked, events, refused, rings = {}, {}, {}, {}, {}, nil, false
-- The words of a timer, which begins with a line feed, are followed up; nothing is moved for it.
local function is_timer(member)
  if string.byte(member) ~= 10 then return false end
  if member == ALARM then
    rings = true
    return true
  end
  redis.call('ZREM', DELAYED, member)
  local text = string.sub(member, 2)
  local ok, words = pcall(cjson.decode, text)
  if ok and type(words) == 'table' then
    if words[1] == 'oldest' then
      asked[#asked + 1] = words[2]
    elseif words[1] == 'event' then
      events[#events + 1] = words
    else
      later(words[1], words[2], words[3])
    end
  end
  return true
end
for i = 1, #due do
  local record = TASK .. due[i]
  local kept = not is_timer(due[i])
    and redis.pcall('HMGET', record, 'name', 'payload', 'attempt', 'recovered', 'opts', 'state')
  if kept and kept.err and not denied(kept.err) then
    broken[#broken + 1] = due[i]
    broken[#broken + 1] = kept.err
  elseif kept then
    refused = kept.err
    local waits = kept[1] and kept[2] and kept[6] == 'delayed'
    if waits and kept[5] and string.find(kept[5], '"gate"', 1, true) then
      gated[#gated + 1] = { due[i], kept }
    else
      if waits then refused = whole(ready, due[i], record, kept) end
      if refused then break end -- by the stream, or for want of a right: so will the others be
      leaving[#leaving + 1] = due[i]
    end
  end
end
for from = 1, #leaving, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, #leaving)
  redis.call('ZREM', DELAYED, unpack(leaving, from, to))
end
local moved = #leaving
-- What holds keys, and what timers say. What that takes is made only here.
if #todo > 0 or #gated > 0 or #asked > 0 or #events > 0 then
--@include look
--@include pending
--@include entry
--@include ask
--@include history
--@include options
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
--@include step
--@include event
--@include reach
  local function ready_gated(id, kept)
    local record = TASK .. id
    undoing('HSET', record, 'state', 'delayed', 'entry', '')
    local task = { name = kept[1], payload = kept[2], attempt = kept[3] or '1', recovered = kept[4] or '0',
      opts = kept[5], gate = option(kept[5], 'gate') }
    task.held = redis.call('HGET', record, 'held') or nil
    enter(id, task, nil)
  end
  -- Asks the oldest task that holds a key to end, so that one which waits may go in; one that has not started has
  -- ended at once. Of each lane the first thousand entries are looked at.
  local function holds(fields, key)
    return fields and term_of(option(fields.opts, 'gate'), key)
  end
  local function ask_oldest(key)
    for _, lane in ipairs({ '', '!high', '!low' }) do
      go_to(lane)
      GROUP = look('', 'HGET', 'meta:' .. STREAM, 'group') or '' -- that of its workers; schedulers have none
      local page = pending('-', '+', 1000)
      for i = 1, #page do
        local entry, consumer = page[i][1], page[i][2]
        if holds(read(entry), key)
          and redis.call('HEXISTS', 'wishes:' .. STREAM .. ':' .. consumer, entry) == 0 then
          return ask_to_end(entry, consumer, 'ask', 'wake:' .. STREAM)
        end
      end
    end
    for _, lane in ipairs({ '', '!high', '!low' }) do
      go_to(lane)
      GROUP = look('', 'HGET', 'meta:' .. STREAM, 'group') or ''
      local page = look({}, 'XRANGE', STREAM, '-', '+', 'COUNT', 1000)
      for i = 1, #page do
        local entry = page[i][1]
        local fields = read(entry)
        if holds(fields, key) and sound(fields) and GROUP ~= ''
          and #pending(entry, entry, 1) == 0 then
          return ended_unstarted(fields.id, { name = fields.name, attempt = fields.attempt, entry = entry,
            opts = fields.opts }, 'cancelled', 'made room for another under ' .. key)
        end
      end
    end
  end
  for i = 1, #asked do pcall(ask_oldest, asked[i]) end
  for i = 1, #events do
    if not pcall(reach_all, events[i][2], events[i][3], 200) then timer(NOW + 5000, cjson.encode(events[i])) end
  end
  go_to(HOME)
  for i = 1, #gated do
    local fault = whole(ready_gated, gated[i][1], gated[i][2])
    if fault then
      stands = {}
      refused = refused or fault
    else
      redis.call('ZREM', DELAYED, gated[i][1])
      moved = moved + 1
    end
  end
  follow_up()
end
if refused then return redis.error_reply(refused) end
-- The schedules that are due, each due again by and by until somebody has fired it.
local fires = {}
local function due_schedules()
  local due_set = due_of(OF_LANE)
  local names = redis.call('ZRANGEBYSCORE', due_set, '-inf', int(now), 'LIMIT', 0, 50)
  for i = 1, #names do
    local has, payload, value = schedule(names[i])
    if not has or has.paused or has.lane ~= OF_LANE then
      redis.call('ZREM', due_set, names[i])
      if value and not has then
        fires[#fires + 1] = names[i]
        fires[#fires + 1] = ''
      end
    else
      redis.call('ZADD', due_set, int(has.next > now and has.next or now + has.again), names[i])
      if has.next <= now then
        fires[#fires + 1] = names[i]
        fires[#fires + 1] = string.sub(value, 1, -#payload - 2)
      end
    end
  end
  ring(OF_LANE)
end
if rings then
  local ok, fault = pcall(due_schedules)
  if not ok then
    broken[#broken + 1] = ALARM
    broken[#broken + 1] = said(fault)
  end
elseif #due == 0 then
  local first = redis.pcall('ZRANGE', due_of(OF_LANE), 0, 0, 'WITHSCORES')
  if first[2] then redis.pcall('ZADD', DELAYED, 'NX', first[2], ALARM) end
end
for i = 1, #broken, 2 do redis.call('ZADD', DELAYED, int(now + 5000), broken[i]) end
local first = redis.call('ZRANGE', DELAYED, 0, 0, 'WITHSCORES')
return { moved, first[2] and tonumber(first[2]) or -1, now, broken, fires }
