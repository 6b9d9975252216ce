-- details(record, fields, brief): fields of a task's record, by its key, as a flat list, and 'payload', its start:
-- a payload may be megabytes, and one that is large is not even read. `brief` leaves out the
-- traceback and the end of a long message (the error is our own JSON, never a payload).
local function details(record, fields, brief)
  local flat = {}
  local values = look({}, 'HMGET', record, unpack(fields))
  for i = 1, #fields do
    local value = values[i] or ''
    if brief and fields[i] == 'error' and #value > 500 then
      local ok, error = pcall(cjson.decode, value)
      if ok and type(error) == 'table' then
        value = cjson.encode({ type = string.sub(tostring(error.type), 1, 200),
          message = string.sub(tostring(error.message), 1, 500) })
      else
        value = string.sub(value, 1, 500)
      end
    end
    flat[#flat + 1] = fields[i]
    flat[#flat + 1] = value
  end
  flat[#flat + 1] = 'payload'
  if look(0, 'HSTRLEN', record, 'payload') <= 65536 then
    flat[#flat + 1] = string.sub(look('', 'HGET', record, 'payload') or '', 1, 200)
  else
    flat[#flat + 1] = '(large)'
  end
  return flat
end
