-- limit_row(key): what is known of one limit key: key, the key or pattern whose rule holds ('' none), the
-- rule, slots in use, how many wait, theoretical arrival time and paused since ('' none).
local function limit_row(key)
  local prefix = string.match(key, '^[^:]*:')
  local pattern = prefix and prefix .. '*' or key
  local row = look({}, 'HMGET', LIMITS, 'r' .. key, 'r' .. pattern, 's' .. key, 'w' .. key, 't' .. key, 'p' .. key,
    'p' .. pattern)
  local by = row[1] and key or row[2] and pattern or ''
  return { key, by, row[1] or row[2] or '', row[3] or '0', row[4] or '0', row[5] or '', row[6] or row[7] or '' }
end
