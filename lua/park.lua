-- park: tasks that this worker cannot run, for want of a handler or a key, wait for one that can, uncounted.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
--   4 history
--   5 counters
--   6 dead
--   7 waiters
--   8 inbox_prefix
--   9 workers
--   10 worker_prefix
--   11 batch_prefix
--   12 settled_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 dead_ttl: how long a failed task is kept, ms
--   5 channel: where schedulers listen for an earlier due time
--   6 grace: how long a task waits for a worker that knows its name, or has what it needs, ms
--   for each task (4): entry, id, name, lacks ('' the handler, 'room for' and the resources that it needs, else
--     what its payload needs, as workers say that they have it)
-- RETURN: for each task 'parked', 'dead' or 'lost'; or a position (from 1) and an error's words when it
--   is broken: it could not be written, nothing of it was, and it is pending; 'asked to end' for the words
--   when that is wished of it (see cancel): it is to be settled instead
-- COST: per call one ZRANGEBYSCORE and one HMGET a living worker (1000 at most); per task as retry
-- WHY: the delay grows with the time waited (50 ms to 2 s; 15 s for room: of those there may be many), so a queue shared by different workers
--   neither loops hotly nor waits long; a name that no living worker has had for the grace time
--   ends as a dead letter that says which names are known. `parked_ms` is when it was first
--   parked, `unknown_ms` since when no worker has known it: a worker that is busy for an hour and
--   then restarts must not cost the tasks that waited for it their lives.
local STREAM, DELAYED, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local COUNTERS, DEAD, WAITERS, INBOX = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local BATCH, SETTLED, TTL = KEYS[11], KEYS[12], 86400000
local GROUP, CONSUMER, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local GRACE = tonumber(ARGV[6])
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include drop
--@include attempt
--@include postpone
--@include wake
--@include look
--@include history
--@include finish
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
--@include wish
local now = now_ms()
local names, had = '\n', '\n'
local alive = redis.call('ZRANGEBYSCORE', KEYS[9], int(now), '+inf', 'LIMIT', 0, 1000)
for i = 1, #alive do
  local has = look({}, 'HMGET', KEYS[10] .. alive[i], 'names', 'has')
  names = names .. (has[1] or '') .. '\n'
  had = had .. (has[2] or '') .. '\n'
end
local function known_names()
  local seen, list = {}, {}
  for name in string.gmatch(names, '[^\n]+') do
    if not seen[name] and #list < 20 then
      seen[name] = true
      list[#list + 1] = name
    end
  end
  table.sort(list)
  return #list > 0 and table.concat(list, ', ') or 'no names at all'
end
-- A name comes from the writer of the entry: bytes that are no UTF-8 would make an error that no one
-- can read, and with it the whole list of dead letters.
local function readable(text)
  text = string.sub(text, 1, 200)
  local rest = text
  for _, form in ipairs({ '[\194-\223]', '\224[\160-\191]', '[\225-\239][\128-\191]',
    '\240[\144-\191][\128-\191]', '[\241-\243][\128-\191][\128-\191]',
    '\244[\128-\143][\128-\191]' }) do rest = string.gsub(rest, form .. '[\128-\191]', ' ') end
  if string.find(rest, '[\128-\255]') then text = string.gsub(text, '[\128-\255]', '?') end
  return text
end
local function dead_letter(entry, id, name, task, kind, message)
  local batch = countable(option(task.opts, 'batch'))
  local body = cjson.encode({ type = kind, message = message, traceback = '' })
  local fault = finished(id, 'failed', name, task.attempt, entry, CONSUMER, '0', body, '0', kind, int(now), task)
  if fault then return error(fault, 0) end
  local ok, missing = pcall(beside, redis.pcall('HINCRBY', COUNTERS, 'failed', 1))
  if not ok then
    unfinish(id, 'failed', event)
    return error(said(missing), 0)
  end
  drop(entry)
  local gate = option(task.opts, 'gate')
  if gate ~= '' then closed(id, 'failed', gate, true) end
  notify_all(id, 'failed', body, option(task.opts, 'inbox'), true)
  tally_one(batch, id, 'failed', int(now))
end
may_drop()
local answer, earliest = {}, 0
for at = 7, #ARGV, 4 do
  local entry, id, name, lacks = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local mine = owned({ entry }, CONSUMER)[entry]
  local task = mine and read(entry)
  if mine and not task then drop(entry) end -- pending but gone: trimmed by other hands
  local record = look({}, 'HMGET', TASK .. id, 'parked_ms', 'unknown_ms', 'from', 'state', 'entry', 'worker')
  if not sound(task) then
    if record[3] == entry .. ' ' .. CONSUMER then
      answer[#answer + 1] = 'parked'
    elseif record[4] == 'failed' and record[5] == entry and record[6] == CONSUMER then
      answer[#answer + 1] = 'dead'
    else
      answer[#answer + 1] = 'lost'
    end
  else
    local parked, since = tonumber(record[1] or now) or now, tonumber(record[2] or now) or now
    -- `handler:label` is run by a worker that knows the handler.
    local handler = string.match(name, '^([^:]+):') or name
    local known = string.find(names, '\n' .. name .. '\n', 1, true)
      or string.find(names, '\n' .. handler .. '\n', 1, true)
    local room = string.match(lacks, '^room for (.+)$')
    if room then
      known = true -- it waits for as long as it takes
    elseif lacks ~= '' then
      known = string.find(had, '\n' .. lacks .. '\n', 1, true)
    end
    local fault = wish(entry, CONSUMER) and 'asked to end' or nil
    if fault then -- it is the worker's to settle
    elseif not known and now - since >= GRACE then
      local message = 'no handler named ' .. readable(name) .. '; the workers here know ' .. known_names()
      if lacks ~= '' then
        message = 'no worker here has the ' .. readable(lacks) .. ' that its payload needs: give it to them, and replay'
      elseif handler == 'redistq.call' then
        message = message .. '; a function is run by workers that share the client\'s signing key'
      end
      fault = whole(dead_letter, entry, id, name, task, lacks == '' and 'UnknownTask' or 'Unreadable', message)
      if not fault then answer[#answer + 1] = 'dead' end
    else
      local delay = math.min(math.max(math.floor((now - parked) / 4), 50), room and 15000 or 2000)
      local due
      fault, due = whole(postpone, entry, task, entry .. ' ' .. CONSUMER, delay,
        room and 'room' or 'unknown', now)
      if not fault then
        drop(entry)
        local gate = option(task.opts, 'gate')
        if gate ~= '' then pcall(give_back, id, terms(gate).keys, true, true) end
        redis.pcall('HSETNX', TASK .. id, 'parked_ms', int(now))
        if room then redis.pcall('HSET', TASK .. id, 'needs', room) end
        if known then
          redis.pcall('HDEL', TASK .. id, 'unknown_ms')
        else
          redis.pcall('HSETNX', TASK .. id, 'unknown_ms', int(now))
        end
        if earliest == 0 or due < earliest then earliest = due end
        answer[#answer + 1] = 'parked'
      end
    end
    if fault then answer[#answer + 1] = { (at - 3) / 4, fault } end
  end
end
follow_up()
wake(earliest, ARGV[5])
return answer
