-- browse: one page of pending, delayed, waiting or dead tasks, or of one task's history; it only reads.
-- KEYS:
--   1 stream
--   2 delayed
--   3 dead
--   4 task_prefix
--   5 history
--   6 waiting
-- ARGV:
--   1 group
--   2 kind: pending (by age), delayed (by due time), waiting (oldest first, of all lanes), dead (newest
--     first) or history (newest first)
--   3 limit: most rows looked at
--   4 start: where the page begins: the last page's `next`, or ''
--   5 full: 1 sends whole errors, else their type and the start of their message
--   6 id: of the task whose history is wanted, else ''
-- RETURN: the server's time in ms, rows, next ('' at the end). A row of pending: entry, consumer,
--   idle ms, deliveries, id, name, attempt, recovered, start of the payload, progress ('' none); of delayed,
--   waiting and dead: id, due, since or died ms, details as a flat list (of waiting also `lane` and `line`:
--   how many are before it under its key); of history: entry, fields as a flat list. Timers among the
--   delayed are passed over
-- COST: one range read and one record a row (of pending two), of waiting also a ZRANK; nothing that grows with the queue
-- WHY: rows and the records they name are of one instant and come in one round trip. A page is
--   bounded, so that looking never holds up work.
local STREAM, DELAYED, DEAD, TASK, HISTORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local WAITING = KEYS[6]
local GROUP, KIND, LIMIT, FROM, BRIEF = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5] ~= '1'
--@include now
--@include look
--@include entry
--@include options
--@include record
--@include ref
--@include line
local rows, seen, after = {}, 0, ''
if KIND == 'pending' then
  local page = look({}, 'XPENDING', STREAM, GROUP, FROM == '' and '-' or '(' .. FROM, '+', LIMIT)
  seen = #page
  for i = 1, seen do
    local task = read(page[i][1]) or {}
    rows[i] = { page[i][1], page[i][2], page[i][3], page[i][4], task.id or '', task.name or '',
      task.attempt or '', task.recovered or '', string.sub(task.payload or '', 1, 200),
      look('', 'HGET', TASK .. (task.id or ''), 'progress') or '' }
    after = page[i][1]
  end
elseif KIND == 'history' then
  local page = look({}, 'XREVRANGE', HISTORY, FROM == '' and '+' or '(' .. FROM, '-', 'COUNT', LIMIT)
  seen = #page
  for i = 1, seen do
    if page[i][2][2] == ARGV[6] then rows[#rows + 1] = page[i] end
    after = page[i][1]
  end
else
  local first = tonumber(FROM == '' and 0 or FROM)
  local verb, key = 'ZRANGE', DELAYED
  local fields = { 'name', 'attempt', 'recovered', 'reason', 'error', 'awaits' }
  if KIND == 'dead' then
    verb, key, fields = 'ZREVRANGE', DEAD, { 'name', 'attempt', 'worker', 'run_ms', 'error', 'entry' }
  elseif KIND == 'waiting' then
    key, fields = WAITING, { 'name', 'attempt', 'reason', 'under', 'parents', 'due' }
  end
  local page = look({}, verb, key, first, first + LIMIT - 1, 'WITHSCORES')
  seen = #page / 2
  for i = 1, #page, 2 do
    if KIND == 'waiting' then
      rows[#rows + 1] = waiting_row(page[i], page[i + 1], fields)
    elseif string.sub(page[i], 1, 1) ~= '\n' then
      rows[#rows + 1] = { page[i], page[i + 1], details(TASK .. page[i], fields, BRIEF) }
    end
  end
  after = string.format('%d', first + seen)
end
return { now_ms(), rows, seen < LIMIT and '' or after }
