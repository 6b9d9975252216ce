-- read(entry): the fields of a stream entry as a table, or nil when the entry is gone.
local function read(entry)
  local found = redis.call('XRANGE', STREAM, entry, entry)
  if #found == 0 then return nil end
  local flat, fields = found[1][2], {}
  for i = 1, #flat, 2 do fields[flat[i]] = flat[i + 1] end
  return fields
end
