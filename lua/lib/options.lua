-- The gates of options that were decoded.
local gates = {}
-- option(opts, name): a text among a task's options, '' where there is none. They are our own small
-- JSON, never a payload, and decoded only where the name stands in them at all.
local function option(opts, name)
  if not opts then return '' end
  if name == 'gate' then -- many have the same; it comes first, and most have nothing in it that is escaped
    local plain = gates[opts] or string.match(opts, '^{"gate":"([^"\\]*)"')
    gates[opts] = plain
    if plain then return plain end
  end
  if not string.find(opts, '"' .. name .. '"', 1, true) then return '' end
  local ok, decoded = pcall(cjson.decode, opts)
  local found = ok and type(decoded) == 'table' and type(decoded[name]) == 'string' and decoded[name] or ''
  if name == 'gate' then gates[opts] = found end
  return found
end
