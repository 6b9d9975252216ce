-- read_items: a page of what a task has yielded, from any index on; notes how far its fastest reader is.
-- KEYS:
--   1 task_prefix
--   2 items_prefix
-- ARGV:
--   1 id
--   2 generation: of the items that the reader reads; '' whichever there is
--   3 first: the index of the first item that is wanted
--   4 taken: how many bytes of that generation the reader has taken; '' nothing new
--   5 most: bytes in the page, about
-- RETURN: state ('' where the record says none), entry ('' where there is none), how far the items are (the field `items`,
--   '' none), and the chunks as entries of a stream: the first may begin before the index that is wanted
-- COST: HMGET + XREVRANGE, and XRANGE for each chunk after the first; HDEL of nothing + HSET for the first
--   reader, and where one has taken more
-- WHY: the state and the items are of one instant: a task that has ended, and whose last item is in the page, has no more.
--   What a reader has taken makes room for more, and that there is one lets calls stream whose result
--   is a list. A server beyond maxmemory takes note of that, too: it comes after
--   a write that takes no memory, for items that nobody may read would stay.
local TASK, ITEMS = KEYS[1], KEYS[2]
--@include now
--@include look
--@include items
local record, key = TASK .. ARGV[1], ITEMS .. ARGV[1]
local has = redis.call('HMGET', record, 'state', 'entry', 'items', 'items_read')
local state, now = has[1] or '', stands(has[3])
local wanted, taken = tonumber(ARGV[2] == '' and now.generation or ARGV[2]), tonumber(ARGV[4] == '' and '0' or ARGV[4])
local ended = state ~= '' and state ~= 'delayed' and state ~= 'waiting'
local own = wanted == now.generation and taken <= now.written
if not ended and (state ~= '' or has[2]) then
  if not has[4] or (own and taken > bytes_read(has[4], wanted)) then
    redis.call('HDEL', record, '')
    redis.call('HSET', record, 'items_read', int(wanted) .. ' ' .. int(own and taken or 0))
  end
end
if wanted ~= now.generation or not has[3] then return { state, has[2] or '', has[3] or '', {} } end
local chunks, first, bytes = {}, tonumber(ARGV[3]), 0
if first >= now.first and first < now.next then
  local page = look({}, 'XREVRANGE', key, int(wanted) .. '-' .. int(first), int(wanted) .. '-0', 'COUNT', 1)
  while #page > 0 and #chunks < 256 do
    local entry = page[1]
    chunks[#chunks + 1] = entry
    bytes = bytes + #entry[2][6]
    if bytes >= tonumber(ARGV[5]) then break end
    page = look({}, 'XRANGE', key, '(' .. entry[1], '+', 'COUNT', 1)
  end
end
return { state, has[2] or '', has[3] or '', chunks }
