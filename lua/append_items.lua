-- append_items: chunks of what running tasks yield are kept for their readers.
-- KEYS:
--   1 stream
--   2 task_prefix
--   3 items_prefix
-- ARGV:
--   1 group
--   2 consumer
--   for each chunk (9): entry, id, generation, first (the index of its first item), count (of its items; 0: the
--     items are as they were, or none of a new generation), window (bytes that nobody has read, from which on nothing
--     is added; '' any), keep (bytes kept of items that were read, or of any without a window), ttl (of the items from
--     now on, ms), body (the items, as their writer packs them)
-- RETURN: for each chunk 'kept' (by this call, or by the same call sent before), 'full', 'lost', how far the items
--   are where it does not follow on them (the field `items`), or a list of 'broken' and an error's words
-- COST: XPENDING; per chunk HMGET + XADD + HSET + PEXPIRE, a new generation XTRIM or DEL, and per chunk that is dropped XRANGE +
--   XDEL, and HSET
-- WHY: only the attempt whose entry is pending for this consumer may add, so of two attempts one does. A chunk names its
--   first index, which must be where the items end: none is missing, and none is there twice. The id of its
--   entry is generation and first index, so a reader finds any index by a range, and a new generation comes after all
--   of the old one. How far they are stands in the record, with which it expires; the items themselves expire by a time of
--   their own, which each chunk renews.
local STREAM, TASK, ITEMS = KEYS[1], KEYS[2], KEYS[3]
local GROUP, CONSUMER = ARGV[1], ARGV[2]
--@include now
--@include fault
--@include whole
--@include pending
--@include owned
--@include items
local entries = {}
for at = 3, #ARGV, 9 do entries[#entries + 1] = ARGV[at] end
local mine = owned(entries, CONSUMER)
local function note(record, now)
  redis.call('HSET', record, 'items', int(now.generation) .. ' ' .. int(now.next) .. ' ' .. int(now.first) .. ' '
    .. int(now.written) .. ' ' .. int(now.dropped) .. ' ' .. int(now.last) .. ' ' .. now.entry)
end
-- The items come last: an entry that was taken back could not be added again under its id.
local function append(at, now, before)
  local key, record, entry = ITEMS .. ARGV[at + 1], TASK .. ARGV[at + 1], ARGV[at]
  local generation, first, count = ARGV[at + 2], ARGV[at + 3], tonumber(ARGV[at + 4])
  local anew = tonumber(generation) > now.generation
  if not before then redis.call('DEL', key) end -- of another task that had this id
  if anew then
    now.generation, now.next, now.first, now.written, now.dropped = tonumber(generation), 0, 0, 0, 0
  end
  now.written = now.written + #ARGV[at + 8]
  now.next, now.last, now.entry = tonumber(first) + count, tonumber(first), entry
  note(record, now)
  if before then undoing('HSET', record, 'items', before) else undoing('HDEL', record, 'items') end
  if count > 0 then
    redis.call('XADD', key, generation .. '-' .. first, 'n', int(count), 'to', int(now.written), 'body', ARGV[at + 8])
  end
  if anew and before then redis.pcall('XTRIM', key, 'MINID', generation .. '-0') end
end
-- Drops the oldest chunks beyond what is kept, after the new one is there; of those up to `readable`, where it is given.
local function trim(key, record, now, keep, readable)
  local before = now.dropped
  for _ = 1, 100 do
    if now.written - now.dropped <= keep then break end
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 2)
    local to = #oldest == 2 and tonumber(oldest[1][2][4])
    if not to or (readable and to > readable) then break end
    redis.call('XDEL', key, oldest[1][1])
    now.dropped, now.first = to, tonumber(string.match(oldest[2][1], '%-(%d+)$'))
  end
  if now.dropped > before then note(record, now) end
end
local answer = {}
for at = 3, #ARGV, 9 do
  local entry, id, window = ARGV[at], ARGV[at + 1], ARGV[at + 5]
  local generation, first, count = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local has = redis.pcall('HMGET', TASK .. id, 'items', 'items_read')
  local word = 'lost'
  if has.err then
    word = { 'broken', has.err }
  elseif mine[entry] then
    local now = stands(has[1])
    local read = bytes_read(has[2], now.generation)
    local same = generation == now.generation
    if same and entry == now.entry and first + count <= now.next then
      word = 'kept'
    elseif not (same and first == now.next) and not (generation > now.generation and first == 0) then
      word = has[1] or '0 0 0 0 0 0 -'
    elseif same and count > 0 and window ~= '' and now.written - read >= tonumber(window) then
      word = 'full'
    else
      local fault = whole(append, at, now, has[1])
      word = fault and { 'broken', fault } or 'kept'
      local readable = window ~= '' and (same and read or 0)
      if not fault then pcall(trim, ITEMS .. id, TASK .. id, now, tonumber(ARGV[at + 6]), readable) end
    end
    if word == 'kept' then redis.pcall('PEXPIRE', ITEMS .. id, ARGV[at + 7]) end
  end
  answer[#answer + 1] = word
end
return answer
