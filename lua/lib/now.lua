-- now_ms(): the server's clock in whole milliseconds; clients' clocks are never compared.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
-- int(x): an integer as text; tostring() would turn a millisecond stamp into 1.76e+12.
local function int(x)
  return string.format('%d', x)
end
