-- tick: all that one refresh of a dashboard shows, at one instant and in one call; it only reads.
-- KEYS:
--   1 stream
--   2 delayed
--   3 dead
--   4 counters
--   5 workers
--   6 worker_prefix
--   7 meta
--   8 history
--   9 task_prefix
--   10 batches
--   11 batch_prefix
--   12 waiting
--   13 limits
-- ARGV:
--   1 group
--   2 workers_limit: most workers listed
--   3 after: only events after this entry of the history; '' the newest
--   4 events: most events
--   5 running: most entries in workers' hands, over all workers
--   6 dead_limit: most dead letters, the newest
--   7 batches_limit: most batches, the newest
--   8 held: entries in workers' hands whose details the caller has, as JSON: entry to id
--   9 limits_limit: most limit keys, those under which most tasks wait
--   10 schedules_limit: most schedules, the next ones
--   for each known dead letter (2): id, died_ms
-- RETURN: figures (see snapshot); events, newest first, as XREVRANGE answers; running: a list of
--   entry, consumer, idle ms, started (1 when the last heartbeat listed it), id, name, attempt,
--   recovered, start of the payload (these five empty when they are known), progress ('' none); dead letters: id,
--   died_ms, details as a flat list (none when they are known); batches: id, fields as a flat list;
--   reasons of the 100 oldest waiting tasks, a flat list of reason, count; limit keys: a list of key, the
--   key or pattern whose rule holds ('' none), its rule, slots in use, how many wait, the theoretical
--   arrival time of its rate in ms and paused since in ms ('' none); schedules: a list of name, record without
--   its payload, state of the last task ('' unknown)
-- COST: snapshot; one entry read an event, running task, dead letter and batch listed, and the progress of each
--   running task; one record a waiting
--   task looked at, the 100 oldest (and newest, where there are many limit keys); HLEN, one HMGET of the
--   limit keys looked at and one a key listed; HLEN and, where there are schedules, ZRANGE three times and HGET + HMGET a
--   schedule listed; nothing that grows with the queue
-- WHY: one script, because what a worker runs is known only after the workers are, and because a
--   second round trip would show another instant. A failed task may carry 20 kB of traceback and
--   an entry a payload of megabytes: the caller says which ones it has, and they are not read again.
local STREAM, DELAYED, DEAD, COUNTERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local WORKERS, WORKER, META, HISTORY, GROUP = KEYS[5], KEYS[6], KEYS[7], KEYS[8], ARGV[1]
local TASK, WAITING, LIMITS = KEYS[9], KEYS[12], KEYS[13]
--@include now
--@include look
--@include entry
--@include unread
--@include delayed
--@include figures
--@include record
--@include ref
--@include limit_row
--@include waits
--@include agenda
local now = now_ms()
local numbers, workers = figures(tonumber(ARGV[2]))
local events = look({}, 'XREVRANGE', HISTORY, '+', ARGV[3] == '' and '-' or '(' .. ARGV[3],
  'COUNT', ARGV[4])
local text = ARGV[8]
local held = cjson.decode(text)
local busy, running, left = {}, {}, tonumber(ARGV[5])
for i = 1, #workers do
  if workers[i][2] >= now and workers[i][3] > 0 then busy[#busy + 1] = workers[i] end
end
local share = math.max(1, math.floor(left / math.max(1, #busy)))
for i = 1, #busy do
  if left <= 0 then break end
  local consumer, started = busy[i][1], ''
  for j = 1, #busy[i][4], 2 do
    if busy[i][4][j] == 'running' then started = ' ' .. busy[i][4][j + 1] .. ' ' end
  end
  local page = look({}, 'XPENDING', STREAM, GROUP, '-', '+', math.min(share, left), consumer)
  for j = 1, #page do
    local entry = page[j][1]
    local task = not held[entry] and read(entry) or {}
    local progress = look('', 'HGET', TASK .. (task.id or held[entry] or ''), 'progress') or ''
    running[#running + 1] = { entry, consumer, page[j][3],
      string.find(started, ' ' .. entry .. ' ', 1, true) and 1 or 0, task.id or '', task.name or '',
      task.attempt or '', task.recovered or '', string.sub(task.payload or '', 1, 200), progress }
  end
  left = left - #page
end
local known = {}
for at = 11, #ARGV, 2 do known[ARGV[at]] = ARGV[at + 1] end
local members, dead = look({}, 'ZREVRANGE', DEAD, 0, tonumber(ARGV[6]) - 1, 'WITHSCORES'), {}
for i = 1, #members, 2 do
  local flat = {}
  if known[members[i]] ~= members[i + 1] then
    flat = details(TASK .. members[i], { 'name', 'attempt', 'worker', 'run_ms', 'error', 'entry' }, false)
  end
  dead[#dead + 1] = { members[i], members[i + 1], flat }
end
local ids, batches = look({}, 'ZREVRANGE', KEYS[10], 0, tonumber(ARGV[7]) - 1), {}
for i = 1, #ids do batches[i] = { ids[i], look({}, 'HGETALL', KEYS[11] .. ids[i]) } end
local reasons, keys = waits(100, tonumber(ARGV[9]))
return { numbers, events, running, dead, batches, reasons, keys, agenda(tonumber(ARGV[10])) }
