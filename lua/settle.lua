-- settle: the terminal outcome of many attempts of one worker, each counted once or refused.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 history
--   4 counters
--   5 dead
--   6 waiters
--   7 inbox_prefix
--   8 batch_prefix
--   9 settled_prefix
-- ARGV:
--   1 group
--   2 consumer
--   3 history_max: events kept, about
--   4 dead_ttl: how long a failed task is kept, ms
--   5 gated: of outcomes whose task is gated a JSON list: the gate's text, then positions (from 1) of those that
--     have it; '' none
--   6 children: tasks to add with the outcome they belong to, seven fields each: its position, and those
--     of enqueue_gated, each as its length in bytes, a colon and the bytes; '' none
--   for each outcome (11): entry, id, state (succeeded|failed|cancelled|expired, or continued: the task
--     waits for one of its children, and ends as that one does), name, attempt, run_ms,
--     body (result or error, JSON; of a cancelled or expired task why, in words; of a continued one that child's
--     id), ttl (of a result, or of the record of a cancelled or expired task, ms; 0 keeps none), inbox ('' none),
--     note (error type or ''), batch ('' none)
-- RETURN: the outcomes that were refused: a position (from 1) when the lease was lost; a position and
--   an error's words when it is broken: it could not be written, nothing of it was, and it is pending
-- COST: per call XPENDING, XDEL of nothing, XACK, XDEL and one HINCRBY a state; per outcome HSET +
--   PEXPIRE + XADD; per batch among them a handful (see lib/tally.lua); HMGET and HSET of the keys of gated tasks, and
--   what follows from these: see lib/more.lua and lib/follow_up.lua; per continued task the writes of
--   lib/continued.lua, and HMGET
-- WHY: the entry must be pending for this very consumer (see lib/owned.lua). A server undoes nothing
--   of a script that fails: so first it is proved that entries can be dropped, then each record is
--   written, whole or not at all, then the entries of those are dropped, and last the inboxes that wait are
--   notified. One outcome that cannot be written does not touch the others. An outcome sent again
--   after a lost reply finds its own entry and worker in the record and is answered as settled. Children
--   are added only with an outcome that counts: a task that runs twice leaves its children once. What ends a
--   continued task is written before its entry is dropped, and before the child is there; where no child can
--   be added, the task ends as cancelled in the same script.
local redis, ARGV = redis, ARGV -- to find a global takes longer, many times a task
local STREAM, TASK, HISTORY, DEAD = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local WAITERS, INBOX, BATCH, SETTLED = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local DELAYED, COUNTERS, TTL = nil
local GROUP, CONSUMER, HISTORY_MAX, DEAD_TTL = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include entry
--@include history
--@include finish
--@include later
--@include notify
--@include wish
--@include mark
-- Whether there is more than succeeded tasks of no batch; whether any names an inbox.
local entries, n, mixed, addressed = {}, 0, false, false
for at = 7, #ARGV, 11 do
  n = n + 1
  entries[n] = ARGV[at]
  if ARGV[at + 2] ~= 'succeeded' or ARGV[at + 10] ~= '' then mixed = true end
  if ARGV[at + 8] ~= '' then addressed = true end
end
local mine = owned(entries, CONSUMER)
local gated, children, text = ARGV[5], ARGV[6], ARGV[5]
local lists = {}
if gated ~= '' then
  lists = cjson.decode(text)
end
local refused, tasks, batches, now = {}, nil, nil, nil
if next(mine) then
  redis.call('XDEL', STREAM, '0-0') -- as may_drop; a refused XACK is undone below
  now = int(now_ms())
end
if children ~= '' and now then -- they come with the outcome or not at all
  local base = string.match(STREAM, '^[^!]*')
  redis.call('HDEL', 'limits:' .. base, '')
  redis.call('ZREM', 'waiting:' .. base, '')
end
local countable_of, tally_of, tally_one_of
local function batches_too()
--@include batch
--@include tally
  countable_of, tally_of, tally_one_of = countable, tally, tally_one
end
local undos, continued_of = {}, nil -- by outcome: what undoes a task that continues
-- A task waits for one of its children from now on; raises what fails.
local function go_on(i, at, task)
  if not continued_of then
--@include continued
    continued_of = continued
  end
  if wish(entries[i], CONSUMER) then error('asked to end', 0) end
  if children == '' then error('it continues without children', 0) end
  if not (task and task.payload) then -- the stream was trimmed by other hands
    local told = { inbox = ARGV[at + 8], batch = ARGV[at + 10] }
    task = { payload = '', recovered = '0', opts = cjson.encode(told) }
  end
  local fault = whole(continued_of, ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], entries[i], CONSUMER, ARGV[at + 5],
    ARGV[at + 7], ARGV[at + 6], now, task)
  if fault then error(fault, 0) end
  undos[i] = noted
end
if mixed then
  batches_too()
  tasks, batches = {}, {}
  for i = 1, n do
    local batch = ARGV[11 * i + 6]
    if mine[entries[i]] then
      local state = ARGV[11 * i - 2]
      if state == 'failed' or state == 'continued' then tasks[i] = read(entries[i]) or {} end
      if batch ~= '' and not batches[batch] then batches[batch] = { {}, {}, countable_of(batch) } end
    end
  end
end
-- Who waits for each outcome's task, where anyone does for any; and whose result is kept for dependants.
local heard, kept = nil, {}
if now and anyone_waits() then
  local ids = {}
  for i = 1, n do ids[i] = ARGV[11 * i - 3] end
  for from = 1, n, 1000 do
    local to = math.min(from + 999, n)
    local page = redis.pcall('HMGET', WAITERS, unpack(ids, from, to))
    if page.err then
      heard = nil
      break
    end
    heard = heard or {}
    for i = from, to do
      heard[i] = page[i - from + 1]
      local counts = heard[i] and string.byte(heard[i], -1) == 62 and ARGV[11 * i - 2] == 'succeeded' and ARGV[11 * i + 3] ~= '0'
      if counts then kept[i] = redis.pcall('HEXISTS', TASK .. ids[i], 'readers') == 1 end
    end
  end
end
local settled, events, drops, done, counts = {}, {}, {}, 0, {}
local i = 1 -- the outcome that is being written
-- Writes all from i on; raises what fails of one of them. Not a pcall each: most often none fails.
local function write()
  while i <= n do
    local entry, at = entries[i], 11 * i - 4
    local id, state = ARGV[at + 1], ARGV[at + 2]
    if mine[entry] then
      mine[entry] = false -- the same outcome twice in one call counts once
      if state == 'continued' then
        go_on(i, at, tasks[i])
      else
        finish(id, state, ARGV[at + 3], ARGV[at + 4], entry, CONSUMER, ARGV[at + 5], ARGV[at + 6],
          ARGV[at + 7], ARGV[at + 9], now, tasks and tasks[i], kept[i])
        counts[state] = (counts[state] or 0) + 1
      end
      begun = false
      done = done + 1
      settled[done], drops[done], events[done] = i, entry, event or ''
    elseif mine[entry] == nil then
      -- run_ms too: a recovery that ended the task names this worker and entry, but no run time.
      local fields = state == 'continued' and { 'from' } or { 'state', 'entry', 'worker', 'run_ms' }
      local record = redis.pcall('HMGET', TASK .. id, unpack(fields))
      local same = record[1] == entry .. ' ' .. CONSUMER
      if state ~= 'continued' then
        same = record[1] == state and record[2] == entry and record[3] == CONSUMER and record[4] == ARGV[at + 5]
      end
      if not same then refused[#refused + 1] = i end
    end
    i = i + 1
  end
end
while i <= n do
  local ok, fault = pcall(write)
  if not ok then
    if begun then unfinish(ARGV[11 * i - 3], ARGV[11 * i - 2], event) end
    refused[#refused + 1] = { i, said(fault) }
    i = i + 1
  end
end
local missing -- a right without which none of them has ended
for state, count in pairs(counts) do
  local counted = redis.pcall('HINCRBY', KEYS[4], state, count)
  if type(counted) == 'table' then
    local ok, fault = pcall(beside, counted)
    if not ok then missing = fault end
  end
end
for from = 1, missing and 0 or done, 1000 do -- unpack has its limit at about 8,000 values
  local to = math.min(from + 999, done)
  local acknowledged = redis.pcall('XACK', STREAM, GROUP, unpack(drops, from, to))
  if type(acknowledged) == 'table' then
    for state, count in pairs(counts) do redis.pcall('HINCRBY', KEYS[4], state, -count) end
    missing = acknowledged
    break
  end
  redis.call('XDEL', STREAM, unpack(drops, from, to))
end
if not (missing or mixed or addressed or gated ~= '' or children ~= '' or anyone_waits()) then
  return refused -- the usual
end
local told = {}
for k = 1, done do
  local at = 11 * settled[k] - 4
  local id, state, batch = ARGV[at + 1], ARGV[at + 2], ARGV[at + 10]
  if missing then
    if undos[settled[k]] then
      undo(undos[settled[k]])
    else
      unfinish(id, state, events[k] ~= '' and events[k])
    end
    refused[#refused + 1] = { settled[k], said(missing) }
  elseif state ~= 'continued' then
    local body, inbox, unkept, waiting = ARGV[at + 6], ARGV[at + 8], ARGV[at + 7] == '0', heard and heard[settled[k]]
    if not heard then
      notify_all(id, state, body, inbox, unkept)
    else
      if inbox ~= '' then notify(inbox, id, state, body, unkept) end
      if waiting then
        told[#told + 1] = id
        tell(id, state, body, inbox, unkept, waiting, kept[settled[k]])
      end
    end
    if state == 'cancelled' then fulfilled(entries[settled[k]], CONSUMER) end
    if batch ~= '' then
      local ends = batches[batch]
      ends[1][#ends[1] + 1] = id
      ends[1][#ends[1] + 1] = state
      ends[2][state] = (ends[2][state] or 0) + 1
    end
  end
end
for from = 1, #told, 1000 do
  local to = math.min(from + 999, #told)
  redis.pcall('HDEL', WAITERS, unpack(told, from, to))
end
local function tally_all()
  for batch, ends in pairs(batches or {}) do
    if ends[3] ~= '' then pcall(tally_of, batch, ends[1], ends[2], now) end
  end
end
if missing then return refused end
if children == '' then tally_all() end
if gated == '' and children == '' and #todo == 0 then return refused end
-- What follows from the ends of gated tasks, and of those with dependants. What it takes is made only here, and in
-- functions: a function inside one finds what it uses of the script's own at once.
local ended = {}
for k = 1, done do ended[settled[k]] = true end
TTL = 86400000
local function follow()
--@include look
--@include options
--@include lanes
--@include room
--@include slots
for _, list in ipairs(lists) do
  local asked, n = terms(list[1]), 0
  if asked.plain then
    for k = 2, #list do
      if ended[list[k]] then n = n + 1 end
    end
    if n > 0 then give_back(nil, asked.keys, true, false, n) end
  end
  for k = asked.plain and #list + 1 or 2, #list do
    local i = list[k]
    if ended[i] and asked.reads and ARGV[11 * i - 2] ~= 'continued' then
      later('read', ref_of(ARGV[11 * i - 3]))
    elseif ended[i] and ARGV[11 * i - 2] == 'continued' then -- it has its unique key until it ends
      give_back(ARGV[11 * i - 3], terms(list[1]).keys, true, false)
    elseif ended[i] then
      closed(ARGV[11 * i - 3], ARGV[11 * i - 2], list[1], true)
    end
  end
end
free()
if children == '' and #todo == 0 then return write_counts() end
--@include attempt
--@include together
--@include turns
--@include all_in
steps = steps + 5 * done -- most go on with one or two others
if children == '' then
  local ok, all = pcall(all_in)
  if ok and all then return write_counts() end -- the usual
end
if not tally_of then batches_too() end
local countable, tally_one = countable_of, tally_one_of
--@include gate
--@include unstarted
--@include more
--@include follow_up
if children ~= '' then
--@include deadline
--@include accept
-- The next of the fields in `children`, and where the one after it begins.
local function field(from)
  local colon = string.find(children, ':', from, true)
  local to = colon + tonumber(string.sub(children, from, colon - 1))
  return string.sub(children, colon + 1, to), to + 1
end
local depends_on = {} -- by outcome that continues: refs of the first thousand of those that wait for its task
local function waits_for(i, ref)
  if not depends_on[i] then
    local own = ref_of(ARGV[11 * i - 3])
    depends_on[i] = { [own] = true }
    local edges = redis.pcall('LRANGE', DEPENDANTS .. 't:' .. own, 0, 999) -- whatever it answers: children go before
    for k = 1, #edges do depends_on[i][string.match(edges[k], '^.%d+ (.*)$') or ''] = true end
  end
  return depends_on[i][ref]
end
-- Why a child would never run: it waits for what waits for the task that returned it; nil where it does not.
local function in_a_circle(child)
  local i = tonumber(child[1])
  if not undos[i] then return nil end
  for of, id in string.gmatch('\n' .. child[7], '\n%at(!?%a*) ([^\n]*)') do
    if waits_for(i, of == '' and id or of .. '\n' .. id) then
      return id .. ' waits for the task that returned what waits for it'
    end
  end
end
-- Adds one child; one that cannot be added as it is asked for has ended as cancelled, and says why.
local function add_child(child)
  local due, batch = 0, option(child[5], 'batch')
  if child[6] ~= '' then
    due = string.sub(child[6], 1, 1) == '+' and NOW + tonumber(child[6]) or tonumber(child[6])
  end
  local task = { id = child[2], name = child[3], payload = child[4], opts = child[5], due = due, conditions = child[7] }
  local happened, words = 'fault', in_a_circle(child)
  if not words then happened, words = accept(task) end
  local stored = not happened or happened[1] == 'again' or happened[1] == 'dropped'
  if happened == 'fault' and redis.pcall('HSETNX', TASK .. task.id, 'entry', '') == 1 then
    local made = { name = task.name, payload = task.payload, opts = task.opts, attempt = '1', recovered = '0' }
    if whole(wait, task.id, made, 'parents', '') then
      redis.pcall('DEL', TASK .. task.id)
    else
      stored = true
      later('end', ref_of(task.id), 'cancelled\n' .. words)
    end
  end
  if stored and batch ~= '' and redis.pcall('EXISTS', BATCH .. batch) == 1 then
    redis.pcall('HINCRBY', BATCH .. batch, 'total', 1)
  end
end
local from = 1
while from <= #children do
  local child = {}
  for k = 1, 7 do child[k], from = field(from) end
  if ended[tonumber(child[1])] then add_child(child) end
end
for k = 1, done do
  if undos[settled[k]] then
    local child = ARGV[11 * settled[k] + 2]
    local has = redis.pcall('HMGET', TASK .. child, 'state', 'entry')
    local stands = not has.err and (has[1] or has[2] or 'cancelled') -- not even as cancelled could it be added
    if ENDS[stands] then -- or there was such a task, which had ended
      redis.pcall('HDEL', WAITERS, child)
      later('after', 't:' .. ref_of(child), stands)
    elseif waits_for(settled[k], ref_of(child)) then
      later('end', ref_of(ARGV[11 * settled[k] - 3]), 'cancelled\nwhat it returned, ' .. child .. ', waits for it')
    end
  end
end
tally_all()
write_parents()
end
follow_up()
end
follow()
return refused
