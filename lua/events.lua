-- events: what has happened in a queue since a place in its history and its stream, at one instant; it only reads.
-- KEYS:
--   1 stream
--   2 history
--   3 task_prefix
-- ARGV:
--   1 group
--   2 limit: most ends of attempts, and most entries, that are looked at
--   3 ended: only ends of attempts after this entry of the history; '' says where the queue stands, and nothing else
--   4 added: only entries of the stream after this one
--   5 started: only entries that were handed to workers after this one
--   for each running task (2): id, progress (as it was told last; empty: not yet)
-- RETURN: the server's time in ms; ends, the oldest first: a list of entry in the history, its fields as a flat
--   list, the whole id of the attempt's entry in the stream ('' not known), what the record says in `from`; the oldest
--   entry that the history has ('' none); new entries: a list of entry, id, name, attempt, recovered, from; handed
--   over: a list of entry, consumer, idle ms, id, name, attempt; progress that has changed: a flat list of id, progress;
--   where to go on: three places, as given
-- COST: XRANGE of the history twice, XRANGE of the stream in pages of 20, XINFO GROUPS, one XPENDING; HMGET for an end of a
--   first attempt, and HGET for a new entry of one; one XRANGE for an entry handed over that was added before; HGET a running task
-- WHY: nobody writes events, so nobody pays for them: each is read from what is there anyway. What came and went between
--   two looks is in the history alone, so that is read to its end before the stream is: an entry after the
--   caller's place that is no more in the stream has ended, and its end is yet to be told. Entries are delivered in
--   their order, so the last one delivered says which were handed over. Payloads are read and not sent: some
--   megabytes of them end a page.
local STREAM, HISTORY, TASK = KEYS[1], KEYS[2], KEYS[3]
local GROUP, LIMIT, ENDED, ADDED, STARTED = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local MOST_BYTES = 4194304
--@include now
--@include look
--@include entry
local function ms(id)
  return tonumber(string.match(id, '^%d+'))
end
-- Whether an entry's id is greater than another's.
local function after(one, other)
  local a, b = ms(one), ms(other)
  if a ~= b then return a > b end
  return tonumber(string.match(one, '%d+$')) > tonumber(string.match(other, '%d+$'))
end
local function least(one, other)
  if after(one, other) then return other end
  return one
end
local function named(flat)
  local fields = {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
local delivered, groups = '0-0', look({}, 'XINFO', 'GROUPS', STREAM)
for i = 1, #groups do
  local row = named(groups[i])
  if row.name == GROUP then delivered = row['last-delivered-id'] end
end
local now = now_ms()
if ENDED == '' then
  local newest = look({}, 'XREVRANGE', HISTORY, '+', '-', 'COUNT', 1)
  local last = look({}, 'XREVRANGE', STREAM, '+', '-', 'COUNT', 1)
  local added = last[1] and last[1][1] or '0-0'
  if after(delivered, added) then added = delivered end
  return { now, {}, '', {}, {}, {}, { newest[1] and newest[1][1] or '0-0', added, delivered } }
end
local first = look({}, 'XRANGE', HISTORY, '-', '+', 'COUNT', 1)
local page, ends = look({}, 'XRANGE', HISTORY, '(' .. ENDED, '+', 'COUNT', LIMIT), {}
for i = 1, #page do
  local fields, whole, from = named(page[i][2]), '', ''
  local queued = tonumber(fields.queued_ms or '')
  if fields.id and queued and queued >= ms(STARTED)
    and (fields.attempt == '1' or queued == ms(ADDED) or queued == ms(STARTED)) then
    -- What the record says may be of a later attempt.
    local has = look({}, 'HMGET', TASK .. fields.id, 'entry', 'from', 'state')
    local own = has[3] == fields.state and has[1] or string.match(has[2] or '', '^%d+%-%d+')
    if own and own ~= '' and ms(own) == queued then whole = own end
    from = has[2] or ''
  end
  ends[i] = { page[i][1], page[i][2], whole, from }
end
local oldest = first[1] and first[1][1] or ''
if #page > 0 then ENDED = page[#page][1] end
if #page == LIMIT then return { now, ends, oldest, {}, {}, {}, { ENDED, ADDED, STARTED } } end
-- What is new in the stream, and still there.
local entries, tasks, bytes, more = {}, {}, 0, true
while more and #entries < LIMIT and bytes < MOST_BYTES do
  page = look({}, 'XRANGE', STREAM, '(' .. ADDED, '+', 'COUNT', 20)
  more = #page == 20
  for i = 1, #page do
    local task, from = named(page[i][2]), ''
    bytes = bytes + #(task.payload or '')
    if task.id and task.attempt == '1' then from = look('', 'HGET', TASK .. task.id, 'from') or '' end
    ADDED = page[i][1]
    tasks[ADDED] = task
    entries[#entries + 1] = { ADDED, task.id or '', task.name or '', task.attempt or '', task.recovered or '', from }
  end
end
-- What has been handed to workers, and is still in their hands.
local handed = {}
bytes = 0
local last = more and least(delivered, ADDED) or delivered
if after(STARTED, delivered) then STARTED = delivered end -- the server has lost what came after
if after(last, STARTED) then
  local rows = look({}, 'XPENDING', STREAM, GROUP, '(' .. STARTED, last, LIMIT)
  if #rows < LIMIT then STARTED = last end
  for i = 1, #rows do
    local entry = rows[i][1]
    local task = tasks[entry] or read(entry) or {}
    if not tasks[entry] then bytes = bytes + #(task.payload or '') end
    handed[i] = { entry, rows[i][2], rows[i][3], task.id or '', task.name or '', task.attempt or '' }
    if #rows == LIMIT or bytes >= MOST_BYTES then STARTED = entry end
    if bytes >= MOST_BYTES then break end
  end
end
if not more and STARTED == delivered and after(delivered, ADDED) then ADDED = delivered end
local progress = {}
for at = 6, #ARGV, 2 do
  local told = look('', 'HGET', TASK .. ARGV[at], 'progress')
  if told and told ~= ARGV[at + 1] then
    progress[#progress + 1] = ARGV[at]
    progress[#progress + 1] = told
  end
end
return { now, ends, oldest, entries, handed, progress, { ENDED, ADDED, STARTED } }
