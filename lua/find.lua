-- find: ids of tasks that have not ended, by name or batch; one page of one place; it only reads.
-- KEYS:
--   1 stream
--   2 delayed
--   3 task_prefix
-- ARGV:
--   1 place: stream (those that are ready or run), delayed, or waiting
--   2 start: where the page begins: the last page's `next`, or ''
--   3 most: tasks looked at, about
--   4 name: of the tasks, without the label after a colon, or with it; '' any
--   5 batch: that they belong to; '' any
-- RETURN: the ids, next ('' at the end), how many were looked at
-- COST: one range read, and in the other places than the stream an HMGET a task
-- WHY: what is to be chosen by its name stays on the server, payloads and all. A page is bounded. In the
--   sets a page begins after so many members: a caller that takes some out of them begins so many
--   earlier.
local STREAM, DELAYED, TASK = KEYS[1], KEYS[2], KEYS[3]
local PLACE, FROM, MOST, NAME, BELONGS = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
--@include look
--@include options
local ids = {}
local function choose(id, name, opts)
  local fits = NAME == '' or name == NAME or string.sub(name, 1, #NAME + 1) == NAME .. ':'
  if fits and (BELONGS == '' or option(opts, 'batch') == BELONGS) then ids[#ids + 1] = id end
end
if PLACE == 'stream' then
  local page = look({}, 'XRANGE', STREAM, FROM == '' and '-' or '(' .. FROM, '+', 'COUNT', MOST)
  for i = 1, #page do
    local fields = {}
    for k = 1, #page[i][2], 2 do fields[page[i][2][k]] = page[i][2][k + 1] end
    if fields.id then choose(fields.id, fields.name or '', fields.opts or '') end
  end
  return { ids, #page < MOST and '' or page[#page][1], #page }
end
-- A waiting task of another lane has that lane before its id, and a line feed.
local base, lane = string.match(STREAM, '^([^!]*)(!?%a*)$')
local key, own = DELAYED, ''
if PLACE == 'waiting' then
  key, own = 'waiting:' .. base, lane == '' and '' or lane .. '\n'
end
local first = tonumber(FROM == '' and '0' or FROM)
local page = look({}, 'ZRANGE', key, first, first + MOST - 1)
for i = 1, #page do
  local id = string.sub(page[i], 1, #own) == own and string.sub(page[i], #own + 1)
  if id and not string.find(id, '\n', 1, true) then
    local has = look({}, 'HMGET', TASK .. id, 'name', 'opts')
    choose(id, has[1] or '', has[2] or '')
  end
end
return { ids, #page < MOST and '' or string.format('%d', first + #page), #page }
