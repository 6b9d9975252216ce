-- stands(text): how far a task's items are, from the field `items` of its record: their generation, the index of
-- the next, the first that is kept, bytes written and bytes dropped in this generation, the first index of the
-- last chunk, and the entry of the attempt that wrote it.
local function stands(text)
  local found = { generation = 0, next = 0, first = 0, written = 0, dropped = 0, last = 0, entry = '' }
  local g, n, f, w, d, l, entry = string.match(text or '', '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$')
  if g then
    found.generation, found.next, found.first = tonumber(g), tonumber(n), tonumber(f)
    found.written, found.dropped, found.last, found.entry = tonumber(w), tonumber(d), tonumber(l), entry
  end
  return found
end
-- bytes_read(text, generation): how many bytes of a generation the fastest reader has taken, from the field
-- `items_read` of the record.
local function bytes_read(text, generation)
  local g, bytes = string.match(text or '', '^(%d+) (%d+)$')
  return g and tonumber(g) == generation and tonumber(bytes) or 0
end
