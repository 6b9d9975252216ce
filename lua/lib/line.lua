-- waiting_row(ref, since, fields): a waiting task as a row of browse: its id, since when it waits, and its
-- details with its lane and how many are before it in its line.
local function waiting_row(ref, since, fields)
  local record, id, lane = record_of(ref)
  local flat = details(record, fields, true)
  local has = look({}, 'HMGET', record, 'under', 'opts')
  local under, gate = has[1] or '', option(has[2], 'gate')
  if under == 'door' then under = 'door\n' .. (string.match('\n' .. gate, '\ng%d+ ([^\n]*)') or '') end
  local line = under ~= '' and look(false, 'ZRANK', WAITING .. ':' .. under, ref)
  for _, value in ipairs({ 'lane', lane, 'line', line and tostring(line) or '' }) do
    flat[#flat + 1] = value
  end
  return { id, since, flat }
end
