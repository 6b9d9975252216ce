-- option(opts, name): a text among a task's options, '' where there is none. They are our own small
-- JSON, never a payload, and decoded only where the name stands in them at all.
local function option(opts, name)
  if not opts or not string.find(opts, '"' .. name .. '"', 1, true) then return '' end
  if name == 'gate' then -- it comes first, and most have nothing in it that is escaped
    local plain = string.match(opts, '^{"gate":"([^"\\]*)"')
    if plain then return plain end
  end
  local ok, decoded = pcall(cjson.decode, opts)
  return ok and type(decoded) == 'table' and type(decoded[name]) == 'string' and decoded[name] or ''
end
