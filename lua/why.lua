-- why: what one waiting task waits for; it only reads.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 waiting
--   4 limits
-- ARGV:
--   1 id
-- RETURN: the server's time in ms, the reason ('' it does not wait), the key under which it waits ('' none; of
--   a fair share the group), how many are before it in its line (-1 no line), the limit key as in tick (empty
--   for none), how many of its parents have not ended, how many it has, and the first of those that have not:
--   a list of t (task), b (batch) or = (a
--   task that it returned, and as which it ends) and the ref
-- COST: HMGET, ZRANK, two reads of the key, or one a parent, of the first fifty at most
-- WHY: places and figures of one instant agree with one another. A task may have ten thousand parents:
--   those looked at are bounded, and the count is the record's.
local WAITING, LIMITS = KEYS[3], KEYS[4]
--@include now
--@include look
--@include limit_row
--@include options
local record = look({}, 'HMGET', KEYS[2] .. ARGV[1], 'state', 'reason', 'under', 'opts', 'parents', 'after', 'continued')
if record[1] ~= 'waiting' then return { now_ms(), '', '', -1, {}, 0, 0, {} } end
local base, lane = string.match(KEYS[1], '^([^!]*)(.*)$')
local ref = (lane ~= '' and lane .. '\n' or '') .. ARGV[1]
local reason, under, line, key = record[2] or '', record[3] or '', false, {}
local left, total, first = tonumber(record[5] or '') or 0, 0, {}
local function ended(kind, queue, id)
  if kind == 'b' then return look(false, 'HGET', 'batch:' .. queue .. ':' .. id, 'finished_ms') end
  local found = look({}, 'HMGET', 'task:' .. queue .. ':' .. id, 'state', 'entry')
  if not found[1] then return not found[2] end
  return found[1] ~= 'waiting' and found[1] ~= 'delayed'
end
local returned = record[7] and string.match(record[7], '^%d+ %d+ (.*)$')
if returned then
  total, first[1] = 1, '=' .. (lane ~= '' and lane .. '\n' or '') .. returned
elseif reason == 'parents' then
  for line in string.gmatch(record[6] or '', '[^\n]+') do
    local kind, of, id = string.match(line, '^.(.)(%S*) (.*)$')
    total = total + 1
    if kind and total <= 50 and #first < 5 and not ended(kind, base .. of, id) then
      first[#first + 1] = kind .. (of ~= '' and of .. '\n' or '') .. id
    end
  end
elseif under ~= '' then
  key = limit_row(under)
  if under == 'door' then
    under = string.match('\n' .. option(record[4], 'gate'), '\ng%d+ ([^\n]*)') or ''
    line = look(false, 'ZRANK', WAITING .. ':door\n' .. under, ref)
  else
    line = look(false, 'ZRANK', WAITING .. ':' .. under, ref)
  end
end
return { now_ms(), reason, under, line or -1, key, left, total, first }
